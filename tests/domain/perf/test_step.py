"""Speed: bare formulas, published steps that the table has to meet, and which source is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import (
    Hardware,
    sized_profiles,
    slice_hardware,
    whole_gpu_hardware,
)
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.perf.experts import ExpertsTime
from tessera.domain.perf.footprint import kv_bytes_per_token, weight_bytes
from tessera.domain.perf.roofline import arithmetic, expert_kernel, min_read_seconds, takes_machete
from tessera.domain.perf.sources import (
    SpeedMeasurement,
    measurement_key,
    predict_step_time,
    step_time,
)
from tessera.domain.perf.step import StepTime, attention_pairs
from tessera.domain.perf.table import shipped_speed_table
from tests.builders import A100, H100

TERA = 1e12
H200 = "NVIDIA-H200"
B8 = "meta-llama/Llama-3.1-8B-Instruct"
B32 = "Qwen/Qwen3-32B"
B70 = "meta-llama/Llama-3.1-70B-Instruct"
MIXTURE = "Qwen/Qwen3-30B-A3B"
WINDOWS = "google/gemma-3-12b-it"
INT4 = "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16"
FIGURES = Path(__file__).parents[3] / "docs/figures/steps-h100.json"
STEPS = json.loads(FIGURES.read_text(encoding="utf-8"))["rows"]


def gpus(product: str, count: int = 1) -> Hardware:
    return whole_gpu_hardware(products()[product], count)


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
    least_seconds = min_read_seconds(weights_gb * 1e9, terabytes_per_second * TERA)
    assert least_seconds * 1e3 == pytest.approx(milliseconds, rel=1e-3)


@pytest.mark.parametrize(
    ("layers", "heads", "expected"), [(32, 32, 524_288), (32, 8, 131_072), (80, 8, 327_680)]
)
def test_the_cache_of_a_token_counts_kv_heads(layers: int, heads: int, expected: int) -> None:
    assert kv_bytes_per_token(layers, heads, 128) == expected


DECODE = [
    # model, precision, hardware, sequences, tokens of each in the cache, milliseconds
    (B8, None, gpus(H100), 1, 2048, 6.24),
    (B8, None, gpus(H100), 32, 2048, 9.63),
    (B8, None, gpus(H100), 256, 512, 14.86),
    (B8, None, gpus(H100), 256, 8192, 95.5),
    (B8, "fp8", gpus(H100), 128, 2048, 16.1),
    (B8, None, gpus(A100), 1, 2048, 12.0),
    (B8, None, gpus(A100), 32, 2048, 19.1),
    (B8, None, gpus(H200), 128, 2048, 13.9),
    (B32, "fp8", gpus(H100), 32, 2048, 22.1),
    (B32, None, gpus(A100, 2), 64, 2048, 40.2),
    (B70, "fp8", gpus(H100, 2), 128, 2048, 34.5),
    (B70, "fp8", gpus(H200, 2), 1, 2048, 13.9),
    (B70, None, gpus(H100, 4), 32, 2048, 18.4),
    (B70, None, gpus(A100, 4), 256, 2048, 86.4),
]
PREFILL = [
    (B8, None, gpus(H100), 2048, 43.5),
    (B8, None, gpus(H100), 8192, 199.7),
    (B8, None, gpus(A100), 8192, 557.0),
    (B32, "fp8", gpus(H200), 4096, 252.3),
    (B70, None, gpus(A100, 4), 8192, 1371.5),
]


@pytest.mark.parametrize(
    ("model", "precision", "hardware", "sequences", "context", "milliseconds"), DECODE
)
def test_decode_steps_are_those_published_within_an_eighth(
    model: str,
    precision: str | None,
    hardware: Hardware,
    sequences: int,
    context: int,
    milliseconds: float,
) -> None:
    step = step_time(models()[model], precision, hardware)
    seconds = step.seconds(decoding=sequences, kv_tokens=sequences * context)
    assert seconds * 1e3 == pytest.approx(milliseconds, rel=0.125)
    assert step.source == "Table"


@pytest.mark.parametrize(("model", "precision", "hardware", "tokens", "milliseconds"), PREFILL)
def test_prompts_are_read_as_published_within_a_tenth(
    model: str, precision: str | None, hardware: Hardware, tokens: int, milliseconds: float
) -> None:
    got = step_time(models()[model], precision, hardware).prefill_seconds(tokens, chunk=8192)
    assert got * 1e3 == pytest.approx(milliseconds, rel=0.1)


# What a real vLLM took on an H100: tools/bench_steps.py. No fit has seen it, but that of 4 bits.


def measured_errors(
    model: str, precision: str | None, phase: str, context: range = range(10_000)
) -> list[float]:
    """The relative errors of the predicted steps."""
    step = step_time(models()[model], precision, gpus(H100))
    selected = [
        row
        for row in STEPS
        if (row["model"], row["precision"], row["phase"]) == (model, precision, phase)
        and row["context"] in context
    ]
    return [measured_error(step, **row) for row in selected]


def measured_error(
    step: StepTime, phase: str, batch: int, context: int, ms: float, **_: object
) -> float:
    if phase == "prefill":
        seconds = step.prefill_seconds(context, chunk=8192)
    else:
        seconds = step.seconds(decoding=batch, kv_tokens=batch * context)
    return 1e3 * seconds / ms - 1


SHORT, LONG = range(1000), range(2000, 10_000)


@pytest.mark.parametrize(
    ("model", "precision", "context", "least", "most"),
    [
        (B8, None, SHORT, -0.01, 0.03),
        (B8, None, LONG, -0.01, 0.0),
        (B8, "fp8", SHORT, 0.0, 0.07),
        (B8, "fp8", LONG, -0.02, 0.03),
        (WINDOWS, None, SHORT, -0.05, 0.0),
        (WINDOWS, None, LONG, -0.04, 0.0),
        (MIXTURE, None, SHORT, -0.04, 0.06),
        (MIXTURE, None, LONG, -0.01, 0.05),
        (INT4, None, SHORT, -0.04, 0.05),
        (INT4, None, LONG, -0.04, 0.01),
    ],
)
def test_decoding_in_a_real_engine_is_predicted_with_the_error_that_is_written(
    model: str, precision: str | None, context: range, least: float, most: float
) -> None:
    errors = measured_errors(model, precision, "decode", context)
    assert len(errors) == (8 if context is SHORT else 3)
    assert least <= min(errors) <= max(errors) <= most


@pytest.mark.parametrize(
    ("model", "precision", "least", "most"),
    [
        (B8, None, -0.12, 0.0),
        (B8, "fp8", -0.25, 0.02),
        (WINDOWS, None, -0.12, 0.02),
        # The least time of a token in an expert is from the prompt of 2,048 tokens.
        (MIXTURE, None, -0.02, 0.07),
        (INT4, None, -0.07, 0.03),
    ],
)
def test_prompts_in_a_real_engine_are_predicted_with_the_error_that_is_written(
    model: str, precision: str | None, least: float, most: float
) -> None:
    errors = measured_errors(model, precision, "prefill")
    assert len(errors) == 3
    assert least <= min(errors) <= max(errors) <= most


def test_a_token_of_a_long_prompt_costs_more_than_one_of_a_short_prompt() -> None:
    step = step_time(models()[B8], None, gpus(H100))
    short, long = (step.prefill_seconds(tokens, chunk=2048) / tokens for tokens in (4096, 65_536))
    assert long > 1.5 * short


def test_a_prompt_in_chunks_attends_to_as_many_tokens_as_in_one_piece() -> None:
    attention = StepTime(weights=0, kv_token=0, token=0, pair=1, fixed=0)
    assert attention.prefill_seconds(1000, chunk=1000) == 1000**2
    assert attention.prefill_seconds(1000, chunk=64) == 1000**2
    assert attention.prefill_seconds(1000, chunk=64, cached=600) == 1000**2 - 600**2


# Which source


@pytest.mark.parametrize(
    ("product", "profile", "precision", "bits", "source"),
    [
        (H100, None, None, 16, "Table"),
        (H100, None, "fp8", 16, "Table"),
        (H100, "2g.20gb", None, 16, "Table"),
        (A100, None, None, 16, "Table"),
        (A100, None, "fp8", 16, "Roofline"),
        (H100, None, None, 4, "Roofline"),
        (H200, None, "awq-int4", 16, "Table"),
        (H100, "2g.20gb", "gptq-int4", 16, "Table"),
        (A100, None, "awq-int4", 16, "Roofline"),
        ("NVIDIA-L40S", None, "awq-int4", 16, "Roofline"),
        ("NVIDIA-GH200-480GB", None, "awq-int4", 16, "Roofline"),
        ("NVIDIA-B200", None, None, 16, "Roofline"),
    ],
)
def test_the_source_says_whether_anything_alike_was_measured(
    product: str, profile: str | None, precision: str | None, bits: int, source: str
) -> None:
    known = products()[H100 if product == "NVIDIA-B200" else product]
    renamed = known.model_copy(update={"product": product})
    hardware = slice_hardware(renamed, profile) if profile else whole_gpu_hardware(renamed, 1)
    assert hardware is not None
    shape = models()[B8].model_copy(update={"bits_per_weight": bits})
    assert step_time(shape, precision, hardware).source == source


def test_what_this_cluster_saw_replaces_the_prediction_for_its_own_case_only() -> None:
    shape, hardware = models()[B8], gpus(H100)
    measured = {measurement_key(shape, None, hardware): SpeedMeasurement(ratio=1.25, requests=100)}
    plain, got = (
        step_time(shape, None, hardware),
        step_time(shape, None, hardware, measured=measured),
    )
    assert got.source == "Measured"
    assert got.seconds(decoding=40, kv_tokens=50_000) == pytest.approx(
        1.25 * plain.seconds(decoding=40, kv_tokens=50_000)
    )
    assert got.prefill_seconds(3000, 512) == pytest.approx(1.25 * plain.prefill_seconds(3000, 512))
    for other in (gpus(H100, 2), gpus(A100)):
        assert step_time(shape, None, other, measured=measured) == step_time(shape, None, other)
    assert step_time(shape, "fp8", hardware, measured=measured).source == "Table"


def test_a_few_requests_have_measured_nothing() -> None:
    shape, hardware = models()[B8], gpus(H100)
    measured = {measurement_key(shape, None, hardware): SpeedMeasurement(ratio=1.25, requests=99)}
    assert step_time(shape, None, hardware, measured=measured) == step_time(shape, None, hardware)


# Precisions and hardware


@pytest.mark.parametrize(
    ("model", "precision", "takes"),
    [
        (B8, "awq-int4", True),
        (B8, "gptq-int4", True),
        (INT4, None, True),
        ("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", None, True),
        (B8, None, False),
        (B8, "fp8", False),
        (B8, "nvfp4", False),
        (MIXTURE, "awq-int4", False),
        ("openai/gpt-oss-20b", None, False),
    ],
)
def test_machete_takes_dense_weights_of_four_bits_in_integers(
    model: str, precision: str | None, takes: bool
) -> None:
    assert takes_machete(models()[model], precision) is takes


@pytest.mark.parametrize(
    ("group", "takes"), [(None, True), (32, False), (64, True), (128, True), (256, False)]
)
def test_machete_takes_groups_of_its_sizes(group: int | None, takes: bool) -> None:
    shape = models()[INT4].model_copy(update={"group_size": group})
    assert takes_machete(shape, None) is takes


@pytest.mark.parametrize("product", [H100, H200, "NVIDIA-GH200-480GB"])
def test_a_hopper_reads_four_bits_at_the_share_of_its_kernel(product: str) -> None:
    """At little more than half the speed of 16 bits, so they take about half of the time."""
    wide, narrow = (
        step_time(models()[B8], precision, gpus(product)) for precision in (None, "awq-int4")
    )
    assert 0.45 < narrow.weights / wide.weights < 0.65
    assert narrow.token > wide.token


def test_another_gpu_has_the_shares_of_16_bits_for_four() -> None:
    wide, narrow = (
        step_time(models()[B8], precision, gpus(A100)) for precision in (None, "awq-int4")
    )
    assert narrow.weights / wide.weights < 0.4
    assert (wide.source, narrow.source) == ("Table", "Roofline")


def test_fp8_halves_what_is_read_and_only_hopper_computes_faster_with_it() -> None:
    shape = models()[B8]
    for product, faster in ((A100, False), (H100, True)):
        wide, narrow = (step_time(shape, precision, gpus(product)) for precision in (None, "fp8"))
        assert narrow.weights < 0.65 * wide.weights
        assert (narrow.token < wide.token * 0.9) is faster


def test_a_slice_has_the_bandwidth_of_its_memory_and_the_compute_of_its_multiprocessors() -> None:
    whole_gpu = products()[H100]
    slice_3g = slice_hardware(whole_gpu, "3g.40gb")
    assert slice_3g is not None
    assert slice_3g.bandwidth == pytest.approx(3.35 * TERA / 2)
    assert slice_3g.bf16_flops == pytest.approx(989 * TERA * 60 / 132)


def mixture() -> ModelShape:
    """A model that uses a quarter of its weights for a token, of experts that it does not name."""
    dense = models()[B70].model_copy(update={"embedding_parameters": None})
    return dense.model_copy(update={"active_parameters": dense.parameters // 4})


def test_a_mixture_of_unknown_experts_reads_the_share_of_its_active_weights() -> None:
    shape = mixture()
    experts = step_time(shape, None, gpus(H100, 4)).experts
    assert experts is not None
    assert experts.unread_share == pytest.approx(3 / 4)
    # Any weight may be one of an expert.
    assert step_time(shape, None, gpus(H100, 4)).weights == 0


def test_the_experts_are_the_weights_that_a_single_token_may_leave_out() -> None:
    shape = models()[MIXTURE]
    step = step_time(shape, None, gpus(H100))
    assert step.experts is not None
    assert step.experts.unread_share == pytest.approx(1 - 8 / 128)
    # 48 layers of 128 experts, each of three matrices of 2,048 x 768, read at 91 % of the peak.
    expert_bytes = 48 * 128 * 3 * 2048 * 768 * 2
    assert step.experts.read == pytest.approx(expert_bytes / (0.9103 * 3.35 * TERA), rel=1e-3)


@pytest.mark.parametrize(("tokens", "share"), [(1, 0.0625), (8, 0.403), (64, 0.984)])
def test_more_tokens_wake_more_experts(tokens: int, share: float) -> None:
    experts = ExpertsTime(read=1.0, unread_share=1 - 8 / 128, token=0)
    assert experts.seconds(tokens, 0) == pytest.approx(share, abs=1e-3)


def test_only_tokens_of_prompts_have_a_least_time_and_only_so_many() -> None:
    experts = ExpertsTime(
        read=0, unread_share=0.5, token=1e-3, prompt_token=5e-3, prompt_tokens=100
    )
    assert experts.seconds(100, 0) == pytest.approx(0.1)
    assert experts.seconds(100, 50) == pytest.approx(0.25)
    assert experts.seconds(100, 100) == pytest.approx(0.5)
    assert experts.seconds(400, 400) == pytest.approx(0.5)
    assert experts.seconds(600, 600) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("product", "has_one"), [(H100, True), (A100, False), ("NVIDIA-B200", False)]
)
def test_prompts_have_a_least_time_on_the_gpu_alone_that_showed_it(
    product: str, has_one: bool
) -> None:
    step = step_time(models()[MIXTURE], None, gpus(product))
    assert step.experts is not None
    assert (step.experts.prompt_token > 0) is has_one


def test_more_experts_than_were_measured_have_no_least_time() -> None:
    many = models()[MIXTURE].model_copy(update={"experts": 256})
    step = step_time(many, None, gpus(H100))
    assert step.experts is not None
    assert step.experts.prompt_token == 0


@pytest.mark.parametrize(
    ("model", "precision", "product", "kernel"),
    [
        (MIXTURE, None, H100, "Bf16"),
        (MIXTURE, "fp8", H100, "Fp8"),
        (f"{MIXTURE}-FP8", None, H100, "Fp8Blocks"),
        (f"{MIXTURE}-FP8", "fp8", H100, "Fp8Blocks"),
        # Ampere widens 8 bits.
        (MIXTURE, "fp8", A100, "Bf16"),
        (MIXTURE, "awq-int4", H100, "Int4"),
        ("openai/gpt-oss-20b", None, H100, "Mxfp4"),
    ],
)
def test_the_kernel_of_experts_follows_how_their_weights_are_loaded(
    model: str, precision: str | None, product: str, kernel: str
) -> None:
    shape, hardware = models()[model], gpus(product)
    fp8 = arithmetic(shape, precision, hardware) == "fp8"
    assert expert_kernel(shape, precision, fp8=fp8) == kernel


@pytest.mark.parametrize(("tokens", "least", "most"), [(1, 1.0, 1.2), (32, 1.45, 1.65)])
def test_experts_in_fp8_are_as_much_faster_as_the_kernel_that_the_engine_takes(
    tokens: int, least: float, most: float
) -> None:
    shape, hardware = models()[MIXTURE], gpus(H100)
    wide, narrow = (
        step_time(shape, precision, hardware).seconds(decoding=tokens, kv_tokens=tokens * 500)
        for precision in (None, "fp8")
    )
    assert least < wide / narrow < most


def test_experts_without_a_measured_kernel_have_the_usual_shares_and_say_so() -> None:
    speed_table, shape, hardware = shipped_speed_table(), models()[MIXTURE], gpus(H100)
    experts = speed_table.experts.model_copy(update={"families": ()})
    without = speed_table.model_copy(update={"experts": experts})
    assert predict_step_time(speed_table, shape, None, hardware).source == "Table"
    assert predict_step_time(without, shape, None, hardware).source == "Roofline"
    assert predict_step_time(without, models()[B8], None, hardware).source == "Table"


def windowed_step() -> tuple[StepTime, StepTime]:
    """The steps of a model with windows, and of the same without them."""
    shape = models()[WINDOWS]
    full = shape.model_copy(update={"sliding_window": None, "sliding_layers": None})
    return step_time(shape, None, gpus(H100)), step_time(full, None, gpus(H100))


def test_layers_with_a_window_read_no_more_than_it_of_each_sequence() -> None:
    windowed, full = windowed_step()

    def cache_seconds(step: StepTime, tokens: int) -> float:
        return step.seconds(decoding=8, kv_tokens=8 * tokens) - step.seconds(
            decoding=8, kv_tokens=0
        )

    assert cache_seconds(windowed, 1024) == pytest.approx(cache_seconds(full, 1024))
    # 40 of 48 layers have a window of 1,024 tokens.
    for tokens in (4096, 65_536):
        share = (8 + 40 * 1024 / tokens) / 48
        assert cache_seconds(windowed, tokens) == pytest.approx(share * cache_seconds(full, tokens))


def test_a_token_of_a_prompt_attends_to_no_more_than_the_window() -> None:
    windowed, full = windowed_step()

    def attention(step: StepTime, tokens: int, cached: int = 0) -> float:
        return step.attention_seconds(tokens, attention_pairs(tokens, cached))

    assert attention(windowed, 2048) == pytest.approx(attention(full, 2048))
    # A token attends to half of a whole prompt on average, so 8,192 are 4 windows.
    assert attention(windowed, 8192) == pytest.approx((8 + 40 / 4) / 48 * attention(full, 8192))
    assert attention(windowed, 64, cached=64_000) < attention(full, 64, cached=64_000) / 5
    step = windowed.prefill_seconds(8192, 8192) - replace(
        windowed, pair=0.0, windowed_pair=0.0
    ).prefill_seconds(8192, 8192)
    assert step == pytest.approx(attention(windowed, 8192))


def test_a_ratio_and_a_narrow_cache_count_for_windows_too() -> None:
    windowed, _ = windowed_step()
    sizes = {"decoding": 8, "kv_tokens": 8 * 9000, "prefill_tokens": 500, "prefill_pairs": 500**2}
    twice = windowed.scaled(2.0, "Measured").seconds(**sizes)
    assert twice == pytest.approx(2 * windowed.seconds(**sizes))
    narrow = step_time(models()[WINDOWS], None, gpus(H100), EngineTerms(kv_bits=8))
    assert narrow.windowed_token == windowed.windowed_token / 2 > 0


@given(
    model=st.sampled_from(sorted(models())),
    precision=st.sampled_from([None, "fp8"]),
    product=st.sampled_from(sorted(products())),
    decoding=st.integers(0, 512),
    kv_tokens=st.integers(0, 400_000),
    prefill=st.integers(0, 8192),
)
def test_more_work_never_takes_less_time_and_a_faster_device_never_more(
    model: str, precision: str | None, product: str, decoding: int, kv_tokens: int, prefill: int
) -> None:
    shape = models()[model]
    step = step_time(shape, precision, gpus(product))

    def seconds(step: StepTime, more: int = 0) -> float:
        return step.seconds(
            decoding=decoding + more,
            kv_tokens=kv_tokens + more,
            prefill_tokens=prefill + more,
            prefill_pairs=(prefill + more) ** 2,
        )

    assert 0 < seconds(step) <= seconds(step, 1)
    for gi_profile in sized_profiles(products()[product]):
        hardware = slice_hardware(products()[product], gi_profile.name)
        assert hardware is not None
        assert seconds(step_time(shape, precision, hardware)) >= seconds(step) * (1 - 1e-12)
