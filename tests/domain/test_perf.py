"""The roofline: bare formulas, and the measured points that its constants were set by."""

import pytest

from tessera.domain.catalog import models, products
from tessera.domain.footprint import kv_bytes_per_token, weight_bytes
from tessera.domain.hardware import Hardware, part, whole
from tessera.domain.perf import (
    decode_floor_seconds,
    ridge,
    step_time,
)
from tests.builders import A100, H100

TERA = 1e12


def gpus(product: str, count: int = 1) -> Hardware:
    return whole(products()[product], count)


@pytest.mark.parametrize(("bits", "gigabytes"), [(16, 140), (8, 70), (4, 35)])
def test_weights_are_parameters_times_bits(bits: int, gigabytes: int) -> None:
    assert weight_bytes(70 * 10**9, bits) == gigabytes * 10**9


@pytest.mark.parametrize(
    ("weights_gb", "terabytes_per_second", "milliseconds"),
    [(140, 2.0, 70.0), (35, 2.0, 17.5), (16, 2.0, 8.0), (140, 3.35, 41.79), (35, 3.35, 10.45)],
)
def test_a_decode_step_reads_every_weight_once(
    weights_gb: float, terabytes_per_second: float, milliseconds: float
) -> None:
    floor = decode_floor_seconds(weights_gb * 1e9, terabytes_per_second * TERA)
    assert floor * 1e3 == pytest.approx(milliseconds, rel=1e-3)


@pytest.mark.parametrize(("flops", "bandwidth", "expected"), [(989, 3.35, 295.2), (312, 2, 156.0)])
def test_the_ridge_is_where_compute_begins_to_bind(
    flops: float, bandwidth: float, expected: float
) -> None:
    assert ridge(flops * TERA, bandwidth * TERA) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("layers", "heads", "expected"), [(32, 32, 524_288), (32, 8, 131_072), (80, 8, 327_680)]
)
def test_the_cache_of_a_token_counts_kv_heads(layers: int, heads: int, expected: int) -> None:
    assert kv_bytes_per_token(layers, heads, 128) == expected


MEASURED = [
    # model, precision, hardware, sequences of 2048 tokens, milliseconds
    ("meta-llama/Llama-3.1-8B-Instruct", None, gpus(H100), 1, 6.2),
    ("meta-llama/Llama-3.1-8B-Instruct", None, gpus(H100), 32, 9.6),
    ("meta-llama/Llama-3.1-8B-Instruct", None, gpus(H100), 128, 18.1),
    ("meta-llama/Llama-3.1-8B-Instruct", None, gpus(A100), 1, 11.8),
    ("meta-llama/Llama-3.1-8B-Instruct", None, gpus(A100), 32, 19.1),
    ("meta-llama/Llama-3.1-8B-Instruct", None, gpus(A100), 128, 34.4),
    ("Qwen/Qwen3-32B", "fp8", gpus(H100), 32, 22.1),
    ("Qwen/Qwen3-32B", None, gpus(H100, 2), 32, 17.6),
    ("meta-llama/Llama-3.1-70B-Instruct", "fp8", gpus(H100, 2), 1, 17.1),
    ("meta-llama/Llama-3.1-70B-Instruct", "fp8", gpus(H100, 2), 128, 34.5),
    ("meta-llama/Llama-3.1-70B-Instruct", None, gpus(H100, 4), 32, 18.4),
]


@pytest.mark.parametrize(("model", "precision", "hardware", "sequences", "milliseconds"), MEASURED)
def test_the_roofline_meets_published_decode_steps_within_a_fifth(
    model: str, precision: str | None, hardware: Hardware, sequences: int, milliseconds: float
) -> None:
    resident = 2048 * sequences if sequences > 1 else 0
    got = step_time(models()[model], precision, hardware)
    assert got.seconds(decoding=sequences, kv_tokens=resident) * 1e3 == pytest.approx(
        milliseconds, rel=0.2
    )


def test_a_slice_has_the_bandwidth_of_its_memory_and_the_compute_of_its_multiprocessors() -> None:
    whole_gpu = products()[H100]
    slice_3g = part(whole_gpu, "3g.40gb")
    assert slice_3g is not None
    assert slice_3g.bandwidth == pytest.approx(3.35 * TERA / 2)
    assert slice_3g.bf16_flops == pytest.approx(989 * TERA * 60 / 132)


def test_a_mixture_of_experts_reads_only_its_active_weights() -> None:
    dense = models()["meta-llama/Llama-3.1-70B-Instruct"]
    dense = dense.model_copy(update={"embedding_parameters": None})
    sparse = dense.model_copy(update={"active_parameters": dense.parameters // 4})
    hardware = gpus(H100, 4)
    assert step_time(sparse, None, hardware).weights == pytest.approx(
        step_time(dense, None, hardware).weights / 4
    )
