"""Bytes of weights and caches, against published figures."""

import pytest

from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.perf.footprint import (
    cache_bytes,
    cache_bytes_per_token,
    computes_in_fp8,
    resident_bytes,
    single_token_read_bytes,
)

GIB = 2**30
B8 = "meta-llama/Llama-3.1-8B-Instruct"
B70 = "meta-llama/Llama-3.1-70B-Instruct"
V3 = "deepseek-ai/DeepSeek-V3"
GEMMA = "google/gemma-3-27b-it"


@pytest.mark.parametrize(
    ("model", "weights_gib", "token_bytes", "context_gib", "tokens_per_gib"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 2.3, 32_768, 0.25, 32_768),
        ("Qwen/Qwen2.5-7B-Instruct", 14.2, 57_344, 0.44, 18_724),
        ("mistralai/Mistral-7B-Instruct-v0.3", 13.5, 131_072, 1.0, 8_192),
        (B8, 15.0, 131_072, 1.0, 8_192),
        ("Qwen/Qwen3-8B", 15.3, 147_456, 1.13, 7_281),
        ("Qwen/Qwen2.5-14B-Instruct", 27.5, 196_608, 1.5, 5_461),
        ("Qwen/Qwen3-32B", 61.0, 262_144, 2.0, 4_096),
        (B70, 131.4, 327_680, 2.5, 3_276),
        (V3, 625, 70_272, 0.54, 15_279),
    ],
)
def test_weights_and_cache_are_those_of_the_published_table(
    model: str, weights_gib: float, token_bytes: int, context_gib: float, tokens_per_gib: int
) -> None:
    shape = models()[model]
    token = cache_bytes_per_token(shape, 1)
    assert resident_bytes(shape, None) / GIB == pytest.approx(weights_gib, rel=0.005)
    assert (token, GIB // token) == (token_bytes, tokens_per_gib)
    assert cache_bytes(shape, 8192, 1) / GIB == pytest.approx(context_gib, abs=0.006)
    assert cache_bytes_per_token(shape, 1, kv_bits=8) * 2 == token_bytes


@pytest.mark.parametrize(("heads", "bytes_at_4096", "sequences"), [(32, 2.0, 29), (8, 0.5, 119)])
def test_grouped_heads_quarter_the_cache_of_llama_3_8b(
    heads: int, bytes_at_4096: float, sequences: int
) -> None:
    shape = models()[B8].model_copy(update={"kv_heads": heads})
    request = cache_bytes(shape, 4096, 1)
    assert request / GIB == bytes_at_4096
    assert 64 * 10**9 // request == sequences


@pytest.mark.parametrize(
    ("model", "precision", "gigabytes"),
    [
        ("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", None, 5.73),
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", None, 39.77),
        (B70, "awq-int4", 39.77),
        (B70, "fp8", 72.7),
        (B70, "int8", 72.7),
        ("openai/gpt-oss-20b", None, 13.76),
        ("openai/gpt-oss-120b", None, 65.2),
    ],
)
def test_quantised_files_count_scales_zeros_and_what_keeps_16_bits(
    model: str, precision: str | None, gigabytes: float
) -> None:
    sizes = resident_bytes(models()[model], precision) / 1e9
    assert sizes == pytest.approx(gigabytes, rel=0.002)


def test_a_whole_row_has_one_scale_and_smaller_groups_have_more() -> None:
    awq = models()["hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"]
    finer = awq.model_copy(update={"group_size": 32})
    row = awq.model_copy(update={"group_size": None})
    quantised = awq.parameters - (awq.unquantized_parameters or 0)
    sizes = [resident_bytes(model, None) for model in (row, awq, finer)]
    assert sizes[1] - sizes[0] == pytest.approx(quantised / 128 * 20 / 8)
    assert sizes[2] - sizes[0] == pytest.approx(quantised / 32 * 20 / 8)


def test_the_latent_cache_is_not_divided_among_devices() -> None:
    shape = models()[V3]
    assert cache_bytes_per_token(shape, 8) == cache_bytes_per_token(shape, 1)


def test_heads_are_divided_until_each_device_has_one() -> None:
    shape = models()[B8]
    sizes = [cache_bytes_per_token(shape, devices) for devices in (1, 2, 8, 16)]
    assert sizes == [131_072, 65_536, 16_384, 16_384]


def test_a_step_reads_one_row_of_an_embedding_that_is_not_the_output_layer() -> None:
    apart, tied = models()[B8], models()["meta-llama/Llama-3.2-1B-Instruct"]
    assert resident_bytes(apart, None) - single_token_read_bytes(apart, None) == 2 * 128_256 * 4096
    assert resident_bytes(tied, None) == single_token_read_bytes(tied, None)


def test_of_a_mixture_a_single_token_reads_its_experts_only() -> None:
    shape = models()["Qwen/Qwen3-30B-A3B"]
    active = shape.active_parameters or 0
    assert single_token_read_bytes(shape, None) == 2 * (active - 151_936 * 2048)


def test_eight_bit_files_compute_at_eight_bits_as_loading_to_eight_bits_does() -> None:
    files, plain = models()["Qwen/Qwen3-8B-FP8"], models()["Qwen/Qwen3-8B"]
    assert computes_in_fp8(files, None)
    assert computes_in_fp8(plain, "fp8")
    assert not computes_in_fp8(plain, None)
    assert not computes_in_fp8(models()["Qwen/Qwen2.5-7B-Instruct-AWQ"], None)


def test_windows_bound_the_cache_of_long_requests() -> None:
    shape = models()[GEMMA]
    row = 2 * 16 * 128 * 2
    # 10 layers keep every token; the 52 others stand in 6 groups of 10.
    assert cache_bytes(shape, 32_768, 1) == row * (10 * 32_768 + 60 * 1024)
    assert cache_bytes(shape, 32_768, 1, step_tokens=8192) == row * (10 * 32_768 + 60 * 9216)
    assert cache_bytes(shape, 512, 1) == row * 70 * 512


def test_a_model_of_windows_alone_keeps_one_window() -> None:
    shape = models()["mistralai/Mistral-7B-Instruct-v0.1"]
    assert cache_bytes(shape, 16_384, 1) == cache_bytes(shape, 4096, 1)


@pytest.mark.parametrize(("sliding", "full", "padded"), [(28, 34, 34), (24, 38, 24)])
def test_kinds_of_layers_that_are_nearly_as_many_stand_in_one_group_each(
    sliding: int, full: int, padded: int
) -> None:
    shape = models()[GEMMA].model_copy(update={"sliding_layers": sliding})
    row, groups = 2 * 16 * 128 * 2, -(-full // padded)
    assert cache_bytes(shape, 1024, 1) == row * 1024 * padded * (1 + groups)
