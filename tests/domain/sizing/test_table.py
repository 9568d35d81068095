"""All hardware in all precisions: golden verdicts, order, prices, advice."""

from dataclasses import replace
from datetime import date, timedelta

import pytest

from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.sizing import prices
from tessera.domain.sizing import table as size_table
from tessera.domain.sizing.oversized import memory_share
from tessera.domain.sizing.precision import caveat, mismatch_reason, unsupported_reason
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import DeviceKvCache, ReplicaFit, plan_device_memory, size
from tessera.domain.sizing.table import (
    SizeRow,
    SizeVerdict,
    all_rows,
    smallest_serving_rows,
)
from tessera.domain.sizing.tensor_parallel import can_shard, sharding_problem
from tests.builders import A100, H100

BOOK = prices.price_book(prices.ASSUMED, prices.list_prices(), date(2026, 11, 20))
A40G = "NVIDIA-A100-SXM4-40GB"
T4 = "Tesla-T4"
B1 = "meta-llama/Llama-3.2-1B-Instruct"
B8 = "meta-llama/Llama-3.1-8B-Instruct"
B70 = "meta-llama/Llama-3.1-70B-Instruct"
GEMMA = "google/gemma-3-27b-it"


def demand(model: str, length: int = 8192, **more: object) -> Demand:
    defaults = Demand(
        shape=models()[model],
        precision=None,
        max_model_len=length,
        input_tokens=1200,
        output_tokens=250,
        ttft=timedelta(seconds=10),
        inter_token=timedelta(milliseconds=250),
    )
    return defaults if not more else _with(defaults, more)


def _with(defaults: Demand, more: dict[str, object]) -> Demand:
    fields = {name: getattr(defaults, name) for name in defaults.__dataclass_fields__}
    return Demand(**(fields | more))


def row(model: str, product: str, name: str, precision: str | None, length: int = 8192) -> SizeRow:
    rows = all_rows(demand(model, length), [products()[product]], [precision], BOOK)
    return next(candidate for candidate in rows if candidate.hardware.name == name)


@pytest.mark.parametrize(
    ("product", "form", "precision", "length", "verdict"),
    [
        (A100, "4x whole GPU", None, 8192, SizeVerdict.FITS),
        (A100, "2x whole GPU", None, 4096, SizeVerdict.LOW_CONCURRENCY),
        (A100, "2x whole GPU", None, 8192, SizeVerdict.TOO_LARGE),
        (A100, "whole GPU", None, 4096, SizeVerdict.TOO_LARGE),
        (A100, "2x whole GPU", "int8", 8192, SizeVerdict.FITS),
        (A100, "whole GPU", "int8", 8192, SizeVerdict.TOO_LARGE),
        (A100, "whole GPU", "awq-int4", 8192, SizeVerdict.FITS),
        (A40G, "whole GPU", "awq-int4", 4096, SizeVerdict.TOO_LARGE),
        (A40G, "2x whole GPU", "awq-int4", 8192, SizeVerdict.FITS),
        (H100, "whole GPU", None, 4096, SizeVerdict.TOO_LARGE),
    ],
)
def test_a_70b_goes_where_its_weights_and_real_requests_go_in(
    product: str, form: str, precision: str | None, length: int, verdict: SizeVerdict
) -> None:
    assert row(B70, product, form, precision, length).verdict is verdict


def test_the_smallest_hardware_that_fits_comes_first_and_one_device_before_several() -> None:
    rows = smallest_serving_rows(demand(B70), [products()[A100]], [None, "int8", "awq-int4"], BOOK)
    assert [(size_row.label, size_row.hardware.name) for size_row in rows] == [
        ("bf16", "4x whole GPU"),
        ("int8", "2x whole GPU"),
        ("awq-int4", "whole GPU"),
    ]
    (small,) = smallest_serving_rows(demand(B8), [products()[A100]], [None], BOOK)
    assert small.hardware.name == "3g.40gb"


def test_all_hardware_is_listed_once_and_the_cheapest_tokens_first() -> None:
    gpu_products = [products()[A100], products()[H100]]
    rows = all_rows(demand(B8), gpu_products, [None, "fp8"], BOOK)
    assert len({(size_row.hardware, size_row.label) for size_row in rows}) == len(rows) == 2 * 2 * 9
    token_prices = [
        size_row.per_million.nanos
        for size_row in rows
        if size_row.can_serve and size_row.per_million
    ]
    fits = [size_row for size_row in rows if size_row.verdict is SizeVerdict.FITS]
    assert [size_row.per_million.nanos for size_row in fits if size_row.per_million] == sorted(
        token_prices
    )[: len(fits)]


def test_the_order_of_products_does_not_change_the_table() -> None:
    gpu_products = [products()[A100], products()[H100], products()[T4]]
    ahead = all_rows(demand(B8), gpu_products, [None, "fp8"], BOOK)
    assert all_rows(demand(B8), gpu_products[::-1], ["fp8", None], BOOK) == ahead


def test_a_price_of_tokens_is_the_hour_over_the_tokens_of_an_hour() -> None:
    size_row = row(B8, H100, "whole GPU", None)
    assert size_row.hourly is not None
    assert size_row.per_million is not None
    assert size_row.tokens_per_second is not None
    expected = 6.88 / (size_row.tokens_per_second * 3600) * 1e6
    assert float(size_row.per_million.rounded(6)) == pytest.approx(expected, rel=1e-3)


def test_a_product_without_a_price_is_sized_all_the_same() -> None:
    size_row = row(B8, "NVIDIA-A30", "whole GPU", "fp8")
    assert (size_row.verdict, size_row.hourly, size_row.per_million) == (
        SizeVerdict.FITS,
        None,
        None,
    )


def test_an_oversized_gpu_is_reported_with_the_slice_that_would_do() -> None:
    size_row = row(B1, H100, "whole GPU", None)
    assert size_row.memory_share is not None
    assert size_row.memory_share < 0.4
    assert (
        size_row.oversize_message
        == f"{size_row.memory_share:.0%} of its memory is used; a 1g.10gb slice is enough"
    )


@pytest.mark.parametrize(
    ("model", "form"), [(B70, "whole GPU"), (B1, "2x whole GPU"), (B1, "1g.10gb")]
)
def test_what_is_used_spread_or_partitioned_is_not_called_oversized(model: str, form: str) -> None:
    assert row(model, A100, form, "awq-int4").oversize_message is None


def test_two_replicas_are_compared_with_one_over_two_gpus() -> None:
    rows = all_rows(demand(B8), [products()[H100]], [None], BOOK)
    (advice,) = size_table.replicas_before_parallel(rows)
    assert advice.startswith(f"2 replicas on 1x {H100} in bf16: ")


@pytest.mark.parametrize(
    ("model", "precision", "product", "says"),
    [
        (B8, None, "Tesla-V100-SXM2-16GB", "need compute capability 7.5, the GPU has 7.0"),
        (B8, None, T4, "bfloat16 needs compute capability 8.0, the GPU has 7.5"),
        (B8, "fp8", T4, "fp8 needs compute capability 8.0"),
        ("openai/gpt-oss-20b", None, T4, "mxfp4 needs compute capability 8.0"),
        (B8, "int8", "NVIDIA-B200", "use fp8"),
        (B8, "awq-int4", T4, None),
        (B8, "fp8", A100, None),
    ],
)
def test_hardware_without_kernels_for_a_precision_is_refused_with_what_to_take(
    model: str, precision: str | None, product: str, says: str | None
) -> None:
    reason = unsupported_reason(models()[model], precision, products()[product])
    assert (reason is None) if says is None else (reason is not None and says in reason)


def test_fp8_is_native_on_hopper_and_weights_only_on_ampere() -> None:
    shape = models()[B8]
    assert caveat(shape, "fp8", products()[H100]) is None
    warning = caveat(shape, "fp8", products()[A100])
    assert warning == "fp8 weights only, computed in 16 bits"


@pytest.mark.parametrize(
    ("model", "precision", "says"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "fp8", "quantized to awq already"),
        ("openai/gpt-oss-20b", "awq-int4", "quantized to mxfp4 already"),
        (B8, "bitsandbytes", "take an FP8 or AWQ checkpoint"),
        (B8, "gguf", "take the safetensors files"),
        (B8, "fp8", None),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", None, None),
    ],
)
def test_a_precision_that_is_not_that_of_the_files_is_refused(
    model: str, precision: str | None, says: str | None
) -> None:
    reason = mismatch_reason(models()[model], precision)
    assert (reason is None) if says is None else (reason is not None and says in reason)


@pytest.mark.parametrize(
    ("model", "devices", "good"),
    [
        (B70, 8, True),
        (B70, 3, False),
        ("microsoft/phi-4", 4, False),
        ("microsoft/phi-4", 5, True),
        ("Qwen/Qwen2.5-7B-Instruct", 8, False),
        ("Qwen/Qwen2.5-0.5B-Instruct", 7, False),
        ("deepseek-ai/DeepSeek-V3", 8, True),
    ],
)
def test_tensor_parallelism_divides_the_heads(model: str, devices: int, good: bool) -> None:
    assert can_shard(models()[model], devices) is good
    assert (sharding_problem(models()[model], devices) is None) is good


def test_heads_that_cannot_be_divided_are_reported_with_the_numbers_that_can() -> None:
    problem = sharding_problem(models()["microsoft/phi-4"], 4)
    assert problem is not None
    assert problem.startswith("40 attention heads and 10 KV heads cannot be sharded over 4 GPUs")
    assert problem.endswith("use one of 1, 2, 5, 10")


def test_a_cache_at_eight_bits_holds_twice_the_tokens() -> None:
    place = whole_gpu_hardware(products()[H100], 1)
    plain, small = (
        plan_device_memory(models()[B8], None, place, terms, context=8192).kv_tokens
        for terms in (EngineTerms(), EngineTerms(kv_bits=8))
    )
    assert small == pytest.approx(2 * plain, abs=64)


def test_a_draft_model_takes_weights_and_cache_beside_the_model() -> None:
    place = whole_gpu_hardware(products()[H100], 1)
    alone = plan_device_memory(models()[B8], None, place, context=8192)
    drafting = EngineTerms(draft=models()[B1])
    both = plan_device_memory(models()[B8], None, place, drafting, context=8192)
    draft_mib = both.reserve_mib - alone.reserve_mib
    assert draft_mib == pytest.approx(1235814400 * 2 / 2**20, abs=1)
    assert both.kv_tokens == pytest.approx(both.cache_mib * 2**20 / (131_072 + 32_768), abs=32)


def test_the_cache_of_a_draft_counts_as_used_memory() -> None:
    place = whole_gpu_hardware(products()[H100], 1)
    wanted = replace(demand(B8), engine=EngineTerms(draft=models()[B1], draft_tokens=2))
    fitted = size(wanted, place)
    assert isinstance(fitted, ReplicaFit)
    without = memory_share(replace(wanted, engine=EngineTerms()), fitted)
    requests, tokens = fitted.limits.max_num_seqs, wanted.resident_tokens
    draft_share = requests * tokens * 32_768 / 2**20 / place.memory_mib
    assert memory_share(wanted, fitted) - without == pytest.approx(draft_share)


def test_drafted_tokens_leave_steps_fewer_tokens_of_prompts() -> None:
    # One step reads the prompt beside 100 requests of 1 token each, and not beside 6 of each.
    plain = EngineTerms(max_num_seqs=100, max_num_batched_tokens=1400)
    drafting = replace(plain, draft=models()[B1], draft_tokens=5, acceptance=0.6)
    for engine, steps in ((plain, 1), (drafting, 2)):
        needed = demand(B8, engine=engine)
        [sized] = [
            size_row
            for size_row in all_rows(needed, [products()[H100]], [None], BOOK)
            if size_row.hardware.name == "whole GPU"
        ]
        fit = size(needed, sized.hardware)
        assert isinstance(fit, ReplicaFit)
        prompts = 1400 - 100 * fit.limits.decode_tokens
        full = fit.step.seconds(
            decoding=100,
            kv_tokens=100 * needed.resident_tokens + prompts,
            prefill_tokens=prompts,
            prefill_pairs=prompts * needed.input_tokens,
        )
        assert sized.ttft_ms == pytest.approx(steps * full * 1e3)


def test_long_prompts_of_a_full_replica_are_read_within_the_objective_that_sizing_keeps() -> None:
    needed = demand(B8, 131_072, input_tokens=100_000)
    rows = [each for each in all_rows(needed, [products()[H100]], [None], BOOK) if each.can_serve]
    for each in rows:
        fit = size(needed, each.hardware)
        assert isinstance(fit, ReplicaFit)
        limits = fit.limits
        alone = fit.step.prefill_seconds(100_000, limits.prompt_tokens)
        assert each.ttft_ms is not None
        assert alone <= each.ttft_ms / 1e3 <= needed.ttft.total_seconds()
    assert rows


def test_tensor_parallelism_costs_each_device_its_buffers() -> None:
    single, pair = (
        plan_device_memory(models()[B8], None, whole_gpu_hardware(products()[H100], n))
        for n in (1, 2)
    )
    assert pair.reserve_mib - single.reserve_mib == pytest.approx(1.8 * 1024, abs=1)
    assert pair.weights_mib == pytest.approx(single.weights_mib / 2, abs=1)


def test_long_requests_of_a_model_with_windows_need_less_than_every_token() -> None:
    place = whole_gpu_hardware(products()[H100], 1)
    shape = models()[GEMMA]
    request = demand(GEMMA, 131_072)
    bounded = plan_device_memory(shape, None, place, context=131_072)
    assert bounded.kv_tokens > 2 * plan_device_memory(shape, None, place).kv_tokens
    fp8 = size(_with(request, {"precision": "fp8"}), place)
    assert isinstance(fp8, ReplicaFit)


def test_the_cache_counts_whole_blocks_and_keeps_one() -> None:
    kv_cache = DeviceKvCache(shape=models()[B8], devices=1)
    block = 16 * 131_072
    assert kv_cache.tokens(10 * block, None) == 9 * 16
    assert kv_cache.tokens(10 * block, 64) == 9 * 16
    assert kv_cache.tokens(block - 1, 64) == 0


def test_a_planned_cache_is_near_what_an_engine_logged() -> None:
    # Llama 3 8B on an H100 of 79.22 GiB at 0.90: 53.29 GiB of cache (vLLM pull request 10511).
    plan = plan_device_memory(
        models()[B8],
        None,
        whole_gpu_hardware(products()[H100], 1, 81_121),
        EngineTerms(gpu_memory_utilization=0.90),
    )
    assert plan.cache_mib / 1024 == pytest.approx(53.29, rel=0.05)
