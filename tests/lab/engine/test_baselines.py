"""What batching and paging save, by the figures that are often quoted and by running them."""

import itertools
import math
from statistics import mean

import pytest

from tessera.domain.perf.footprint import kv_bytes_per_token
from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.requests import Allocator, EngineLimits, EngineRequest
from tessera_lab.engine.static_batch import StaticBatchEngine

# About a 7B model with full attention heads on an A100.
SPEED = StepTime(weights=9e-3, kv_token=3.4e-7, token=6e-5)
LENGTHS = range(50, 2049)
# Lengths from 50 to 2,048, evenly spread in every part of the list.
MIXED = [LENGTHS[int(number * 0.6180339887 % 1 * len(LENGTHS))] for number in range(400)]
KV_BYTES = 66e9
TOKEN_BYTES = kv_bytes_per_token(layers=32, kv_heads=32, head_dim=128)
BLOCKS = int(KV_BYTES // (16 * TOKEN_BYTES))


@pytest.mark.parametrize(
    ("short", "long", "idle"), [(10, 2000, 1990), (50, 500, 450)], ids=["1990", "450"]
)
def test_in_a_static_batch_a_short_output_idles_until_the_longest_is_complete(
    short: int, long: int, idle: int
) -> None:
    engine = StaticBatchEngine(2, SPEED)
    for number, output in enumerate((short, long)):
        engine.submit(EngineRequest(id=number, prompt_tokens=100, output_tokens=output))
    served = engine.advance(math.inf)
    assert engine.idle_slot_steps == idle
    assert engine.slot_steps == 2 * long
    assert served[0].ended_at == served[1].ended_at == engine.now


def test_a_static_batch_pads_its_prompts_to_the_longest() -> None:
    engine = StaticBatchEngine(4, SPEED)
    for number, prompt in enumerate((50, 150, 200, 500)):
        engine.submit(EngineRequest(id=number, prompt_tokens=prompt, output_tokens=1))
    engine.advance(math.inf)
    assert engine.padded_tokens / (4 * 500) == pytest.approx(0.55)


def test_a_static_batch_takes_exactly_the_seconds_of_its_steps() -> None:
    engine = StaticBatchEngine(3, SPEED)
    for number in range(3):
        engine.submit(EngineRequest(id=number, prompt_tokens=200, output_tokens=40))
    engine.advance(math.inf)
    expected = SPEED.seconds(decoding=0, kv_tokens=600, prefill_tokens=600)
    expected += sum(SPEED.seconds(decoding=3, kv_tokens=600 + 3 * token) for token in range(1, 40))
    assert engine.busy_seconds == pytest.approx(expected)


def test_a_request_that_arrives_during_a_static_batch_waits_for_its_end() -> None:
    engine = StaticBatchEngine(8, SPEED)
    engine.submit(EngineRequest(id=0, prompt_tokens=10, output_tokens=100))
    engine.advance(0.01)
    first_end = engine.now
    engine.submit(EngineRequest(id=1, prompt_tokens=10, output_tokens=1), at=0.01)
    [late_request] = engine.advance(math.inf)
    assert late_request.admitted_at == first_end
    with pytest.raises(ValueError, match="still to come"):
        engine.submit(EngineRequest(id=2, prompt_tokens=10, output_tokens=1), at=engine.now + 1)


def kv_cache_limits(max_model_len: int, allocator: Allocator, block_size: int = 16) -> EngineLimits:
    return EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=512,
        max_num_batched_tokens=2_000_000,
        blocks=BLOCKS * 16 // block_size + 1,
        block_size=block_size,
        allocator=allocator,
    )


def full_engine(limits: EngineLimits, lengths: list[int]) -> EngineCore:
    """Return an engine that has admitted as many of the requests as it can, near their ends."""
    engine = EngineCore(limits, SPEED)
    for number, length in enumerate(lengths):
        engine.submit(EngineRequest(id=number, prompt_tokens=length - 1, output_tokens=2))
    engine.begin_step()
    return engine


@pytest.mark.parametrize(("max_model_len", "running"), [(8192, 15), (2048, 61)])
def test_contiguous_slots_admit_as_many_as_the_longest_length_allows(
    max_model_len: int, running: int
) -> None:
    engine = full_engine(kv_cache_limits(max_model_len, Allocator.CONTIGUOUS), MIXED)
    assert engine.running == running


@pytest.mark.parametrize("block_size", [16, 32])
def test_paging_admits_about_120_of_the_mean_length(block_size: int) -> None:
    """It admits one less than without rounding: the last block of each request is not full."""
    limits = kv_cache_limits(2048, Allocator.PAGED, block_size)
    assert full_engine(limits, [1049] * 400).running == 119
    assert full_engine(limits, MIXED).running == pytest.approx(119, abs=2)


def test_with_8k_slots_paging_brings_15_to_50_at_a_mean_of_2500() -> None:
    lengths = [1000 + number * 797 % 3000 for number in range(400)]
    assert full_engine(kv_cache_limits(8192, Allocator.CONTIGUOUS), lengths).running == 15
    assert 40 <= full_engine(kv_cache_limits(8192, Allocator.PAGED), lengths).running <= 60


def kv_waste(engine: EngineCore) -> float:
    """Return the share of the allocated token slots that hold no token."""
    return 1 - engine.kv_tokens / (engine.logical_blocks * engine.limits.block_size)


def test_the_engine_measures_its_own_waste_of_kv_memory() -> None:
    contiguous = full_engine(kv_cache_limits(2048, Allocator.CONTIGUOUS), MIXED)
    paged = full_engine(kv_cache_limits(2048, Allocator.PAGED), MIXED)
    assert kv_waste(contiguous) == pytest.approx(0.488, abs=0.02)
    assert kv_waste(paged) < 0.01


def test_a_contiguous_slot_never_needs_a_preemption() -> None:
    timeline = Timeline(EngineCore(kv_cache_limits(2048, Allocator.CONTIGUOUS), SPEED))
    for number, length in enumerate(MIXED):
        timeline.submit(EngineRequest(id=number, prompt_tokens=20, output_tokens=length - 20))
    served = timeline.advance(math.inf)
    assert len(served) == len(MIXED)
    assert timeline.engine.counts.preemptions == 0
    assert timeline.engine.free_blocks == BLOCKS


def test_continuous_batching_beats_static_batches_and_they_beat_single_requests() -> None:
    requests = [
        EngineRequest(id=number, prompt_tokens=200, output_tokens=length // 4)
        for number, length in enumerate(MIXED)
    ]
    seconds = []
    for engine in (StaticBatchEngine(1, SPEED), StaticBatchEngine(16, SPEED), _continuous(16)):
        for request in requests:
            engine.submit(request)
        assert len(engine.advance(math.inf)) == len(requests)
        seconds.append(engine.busy_seconds)
    serial, static, continuous = seconds
    assert 10 <= serial / continuous <= 25
    assert 1.5 <= static / continuous <= 5


def _continuous(max_num_seqs: int) -> Timeline:
    limits = EngineLimits(
        max_model_len=2048,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=2048,
        blocks=10_000,
    )
    return Timeline(EngineCore(limits, SPEED))


def test_continuous_batching_costs_the_first_token_less_than_a_tenth_of_a_second() -> None:
    """The load is 60 % of its requests per second, compared with an engine that is else idle."""
    idle = _continuous(16)
    idle.submit(EngineRequest(id=0, prompt_tokens=200, output_tokens=250))
    [single] = idle.advance(math.inf)
    busy, served = _continuous(16), []
    for number, moment in enumerate(itertools.islice(itertools.count(0.0, 0.33), 200)):
        served += busy.advance(moment)
        busy.submit(EngineRequest(id=number, prompt_tokens=200, output_tokens=250), moment)
    served += busy.advance(math.inf)
    delays = [request.ttft_seconds or math.inf for request in served]
    assert mean(delays) - (single.ttft_seconds or 0) < 0.1
