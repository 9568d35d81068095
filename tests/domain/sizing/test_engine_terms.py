"""What the options of an engine change of memory, limits, speed and capacity."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.engine_options import EngineOptions
from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf import sources
from tessera.domain.perf.engine_terms import DEFAULT_TERMS, EngineTerms, engine_terms
from tessera.domain.sizing.scheduler_limits import Demand, SustainedLoad, sustained_load
from tessera.domain.sizing.sizing import DeviceKvCache, ReplicaFit, size
from tests.builders import H100
from tests.domain.sizing.test_sizing import B8, demand

GPU = whole_gpu_hardware(products()[H100], 1)


def terms(**options: Any) -> EngineTerms:
    return engine_terms(EngineOptions.model_validate(options))


WANTED = demand(B8)


def fit(wanted: Demand = WANTED, **options: Any) -> ReplicaFit:
    fitted = size(replace(wanted, engine=terms(**options)), GPU)
    assert isinstance(fitted, ReplicaFit)
    return fitted


def sustained(**options: Any) -> SustainedLoad:
    wanted, fitted = replace(demand(B8), engine=terms(**options)), fit(**options)
    return sustained_load(wanted, fitted.step, fitted.memory.kv_tokens, fitted.limits)


def test_an_engine_without_options_is_the_one_that_tessera_sets() -> None:
    assert terms() == DEFAULT_TERMS
    assert terms(kvCacheDtype="Auto", chunkedPrefill=True) == DEFAULT_TERMS


@pytest.mark.parametrize(
    "options",
    [
        {"reasoningParser": "qwen3"},
        {"toolCallParser": "hermes"},
        {"structuredOutputsBackend": "xgrammar"},
        {"prefixCaching": False},
        {"expertParallel": True},
        {"kvOffload": {"size": "32Gi"}},
        {"chatTemplate": {"configMapKeyRef": {"name": "a", "key": "b"}}},
    ],
)
def test_options_without_effect_on_sizing_change_no_term(options: dict[str, Any]) -> None:
    assert terms(**options) == DEFAULT_TERMS


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_a_cache_of_8_bits_holds_twice_the_tokens_that_are_read_in_half_the_time(
    dtype: str,
) -> None:
    plain, narrow = fit(), fit(kvCacheDtype=dtype)
    assert narrow.memory.kv_tokens == pytest.approx(2 * plain.memory.kv_tokens, abs=64)
    assert narrow.step.kv_token == plain.step.kv_token / 2
    assert narrow.limits.tokens_per_second > plain.limits.tokens_per_second
    assert sustained(kvCacheDtype=dtype).tokens_per_second > sustained().tokens_per_second


def test_a_share_of_memory_is_what_the_engine_may_use() -> None:
    assert fit(gpuMemoryUtilization="0.5").memory.usable_mib == GPU.memory_mib // 2
    assert fit(gpuMemoryUtilization="0.5").memory.cache_mib < fit().memory.cache_mib


@given(context=st.integers(1, 4096), block=st.sampled_from([16, 32, 64, 128]))
def test_requests_take_whole_blocks_of_the_chosen_size(context: int, block: int) -> None:
    kv_cache = DeviceKvCache(shape=models()[B8], devices=1, engine=EngineTerms(block_tokens=block))
    blocks = -(-context // block)
    assert kv_cache.bytes_per_request(context) == (blocks + 1) * block * 131_072
    assert kv_cache.tokens((blocks + 1) * block * 131_072, context) == blocks * block
    assert kv_cache.tokens(10 * block * 131_072, None) == 9 * block


def test_a_number_of_requests_that_fits_is_set_and_fewer_give_fewer_tokens() -> None:
    assert fit(maxNumSeqs=8).limits.max_num_seqs == 8
    assert fit(maxNumSeqs=8).limits.tokens_per_second < fit().limits.tokens_per_second
    assert sustained(maxNumSeqs=8).sequences <= 8


@pytest.mark.parametrize("tokens", [256, 1024])
def test_the_tokens_of_a_step_are_those_that_are_set(tokens: int) -> None:
    assert fit(maxNumBatchedTokens=tokens).limits.max_num_batched_tokens == tokens


def test_steps_beyond_those_that_tessera_sets_take_memory_for_their_activations() -> None:
    patient = replace(demand(B8, ms=60_000), ttft=timedelta(hours=1))

    def reserve(tokens: int) -> int:
        return fit(patient, maxNumBatchedTokens=tokens).memory.reserve_mib

    assert reserve(8192) == reserve(512) == fit().memory.reserve_mib
    # Of 2 bytes: 2 x 4096 values between layers, and 3 x 17,008 in one (14,336 and a part of the
    # embeddings).
    more = 57_344 * 2 * (2 * 4096 + 3 * 17_008)
    assert reserve(65_536) - reserve(8192) == pytest.approx(more / 2**20, abs=1)


def test_requests_beyond_those_that_tessera_sets_take_memory_for_their_logits() -> None:
    short = replace(demand(B8, ms=60_000), ttft=timedelta(hours=1), input_tokens=64)
    plain = fit(short, maxNumSeqs=256).memory.reserve_mib
    assert plain == fit().memory.reserve_mib
    more = fit(short, maxNumSeqs=300).memory.reserve_mib - plain
    assert more == pytest.approx(44 * 128_256 * 10 / 2**20, abs=1)


def test_every_drafted_token_has_logits_as_well() -> None:
    short = replace(demand(B8, ms=60_000), ttft=timedelta(hours=1), input_tokens=64)
    drafted = fit(short, maxNumSeqs=100, speculation={"method": "NGram", "tokens": 3})
    more = drafted.memory.reserve_mib - fit(short, maxNumSeqs=100).memory.reserve_mib
    assert more == pytest.approx((400 - 256) * 128_256 * 10 / 2**20, abs=1)


@pytest.mark.parametrize(("words", "counted"), [(32_000, 32_000), (None, 262_144)])
def test_logits_have_the_words_of_the_shape_or_the_most_of_known_models(
    words: int | None, counted: int
) -> None:
    shape = models()[B8].model_copy(update={"vocab_size": words})
    short = replace(demand(B8, ms=60_000), shape=shape, ttft=timedelta(hours=1), input_tokens=64)
    more = fit(short, maxNumSeqs=300).memory.reserve_mib - fit(short).memory.reserve_mib
    assert more == pytest.approx(44 * counted * 10 / 2**20, abs=1)


def test_without_chunks_a_step_holds_the_longest_prompt() -> None:
    wanted = replace(demand(B8, length=16_384, ms=60_000), engine=terms(chunkedPrefill=False))
    assert wanted.step_tokens == (16_384,)
    assert replace(wanted, max_model_len=3000).step_tokens == (8192, 4096, 3000)


def test_a_step_is_predicted_by_the_same_terms_for_sizing_and_for_gateways() -> None:
    engine = terms(kvCacheDtype="fp8")
    assert fit(kvCacheDtype="fp8").step == sources.step_time(models()[B8], None, GPU, engine)


def flagged(*arguments: str) -> ReplicaFit:
    return fit(extraArgs=arguments)


@pytest.mark.parametrize(
    "arguments", [["--enforce-eager"], ["-O0"], ["-cc.cudagraph_mode=NONE"], ["-cc.mode", "0"]]
)
def test_an_eager_engine_has_no_graphs_in_memory_and_longer_steps(arguments: list[str]) -> None:
    eager, usual = flagged(*arguments), fit()
    assert usual.memory.reserve_mib - eager.memory.reserve_mib == 51 * 6
    added = eager.step.seconds(decoding=8, kv_tokens=8000)
    added -= usual.step.seconds(decoding=8, kv_tokens=8000)
    assert added == pytest.approx(32 * 0.34e-3)
    assert eager.limits.tokens_per_second < usual.limits.tokens_per_second


@pytest.mark.parametrize(
    ("arguments", "graphs", "launches"),
    [
        ([], (51, 512), False),
        (["--no-enforce-eager"], (51, 512), False),
        (["-O3"], (51, 512), False),
        (["-O1"], (51, 0), True),
        (["--max-cudagraph-capture-size=64"], (11, 64), True),
        (["--cudagraph-capture-sizes", "1", "2", "256"], (3, 256), False),
        (["-cc", '{"cudagraph_capture_sizes": [1, 2, 4]}'], (3, 4), True),
        (["-cc.max_cudagraph_capture_size=1024"], (83, 1024), False),
    ],
)
def test_graphs_are_counted_as_the_engine_captures_them(
    arguments: list[str], graphs: tuple[int, int], launches: bool
) -> None:
    planned = terms(extraArgs=arguments)
    assert (planned.graphs.count, planned.graphs.largest) == graphs
    assert planned.launches_layers is launches


def test_graphs_need_be_no_larger_than_a_full_step() -> None:
    small = {"extraArgs": ["--max-cudagraph-capture-size=16"]}
    assert terms(**small).launches_layers
    assert not terms(**small, maxNumSeqs=16).launches_layers
    assert terms(
        **small, maxNumSeqs=16, speculation={"method": "NGram", "tokens": 2}
    ).launches_layers


def test_further_graphs_take_memory() -> None:
    more = flagged("--max-cudagraph-capture-size=1024").memory.reserve_mib
    assert more - fit().memory.reserve_mib == 32 * 28


@pytest.mark.parametrize("compressed_values", [None, 640])
@pytest.mark.parametrize("context", [None, 4096])
def test_a_shape_without_cached_layers_has_room_for_what_it_stores(
    context: int | None, compressed_values: int | None
) -> None:
    changes = {"cached_layers": 0, "compressed_values": compressed_values}
    shape = models()[B8].model_copy(update=changes)
    tokens = DeviceKvCache(shape=shape, devices=1).tokens(2**30, context)
    token_bytes = 0 if compressed_values is None else 2 * compressed_values
    assert tokens * token_bytes <= 2**30
    assert tokens >= 2**30 // max(1, token_bytes) - 4096
