"""Loads on engines with the options of a user, and the highest rates that they keep."""

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.mixes import CHAT, RAG
from tessera_lab.engine.play import PlayedLoad, TimedRequest, highest_rate, play
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.engine.setup import EngineSetup, EngineSetupError, KvCache
from tessera_lab.engine.static_batch import StaticBatchEngine
from tessera_lab.load.lengths import fixed_length

SHAPE = models()["meta-llama/Llama-3.1-8B-Instruct"]
A100 = whole_gpu_hardware(products()["NVIDIA-A100-SXM4-80GB"], 1)


def a_setup(**options: Any) -> EngineSetup:
    defaults: dict[str, Any] = {"shape": SHAPE, "hardware": A100}
    return EngineSetup(**(defaults | options))


def a_load(*shapes: tuple[float, int, int]) -> list[TimedRequest]:
    """Return requests by arrival, prompt and output."""
    return [
        TimedRequest(at, EngineRequest(id=number, prompt_tokens=prompt, output_tokens=output))
        for number, (at, prompt, output) in enumerate(sorted(shapes))
    ]


shapes = st.tuples(st.floats(0, 20), st.integers(1, 900), st.integers(1, 100))
loads = st.lists(shapes, min_size=1, max_size=20).map(lambda drawn: a_load(*drawn))


@given(loads, st.booleans())
def test_a_played_load_is_what_a_timeline_serves(
    load: list[TimedRequest], prefix_cache: bool
) -> None:
    setup = a_setup(prefix_cache=prefix_cache)
    timeline = Timeline(EngineCore(setup.limits, setup.step_time))
    served = []
    for at, request in load:
        served += timeline.advance(at)
        timeline.submit(request, at)
    served += timeline.advance(math.inf)
    played = play(setup, load)
    assert list(played.served) == served
    assert played.busy_seconds == timeline.busy_seconds


OPTIONS: dict[str, dict[str, Any]] = {
    "serial": {"static_batch": 1},
    "static": {"static_batch": 8},
    "static, contiguous": {"static_batch": 8, "kv_cache": KvCache.CONTIGUOUS},
    "static, no KV cache": {"static_batch": 8, "kv_cache": KvCache.NONE},
    "continuous": {},
    "continuous, contiguous": {"kv_cache": KvCache.CONTIGUOUS},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@given(load=loads)
def test_every_request_gets_all_its_tokens_and_no_more(
    options: dict[str, Any], load: list[TimedRequest]
) -> None:
    played = play(a_setup(**options), load)
    assert {each.request.id: each.output_tokens for each in played.served} == {
        request.id: request.output_tokens for _, request in load
    }
    for each in played.served:
        assert each.arrived_at <= (each.admitted_at or 0) < (each.first_token_at or 0)
        assert (each.first_token_at or 0) <= (each.last_token_at or each.ended_at) <= each.ended_at
    assert 0 < played.slot_occupancy <= 1
    assert played.kv_waste is None or 0 <= played.kv_waste < 1
    assert 0 < played.busy_seconds <= played.seconds * (1 + 1e-9)


@given(loads, st.integers(1, 6))
def test_no_static_batch_serves_a_load_faster_than_continuous_batching_of_as_many(
    load: list[TimedRequest], size: int
) -> None:
    at_once = [TimedRequest(0.0, request) for _, request in load]
    # A step takes all prompts that a batch begins with.
    tokens = 20 * 900
    continuous = a_setup(max_num_seqs=size, max_num_batched_tokens=tokens)
    static = play(a_setup(static_batch=size), at_once)
    assert play(continuous, at_once).seconds <= static.seconds * (1 + 1e-9)


@given(loads)
def test_one_at_a_time_is_the_same_with_static_and_continuous_batching(
    load: list[TimedRequest],
) -> None:
    serial = play(a_setup(static_batch=1), load)
    continuous = play(a_setup(max_num_seqs=1), load)
    assert serial.seconds == pytest.approx(continuous.seconds)
    assert serial.mean_latency == pytest.approx(continuous.mean_latency)
    assert serial.slot_steps == continuous.slot_steps == serial.steps


@given(loads, st.integers(1, 8))
def test_computing_the_history_again_never_saves_time(load: list[TimedRequest], size: int) -> None:
    cached = play(a_setup(static_batch=size), load)
    recomputed = play(a_setup(static_batch=size, kv_cache=KvCache.NONE), load)
    assert recomputed.busy_seconds >= cached.busy_seconds
    assert recomputed.kv_waste is None


def test_without_a_kv_cache_the_time_of_a_long_output_grows_with_its_square() -> None:
    def seconds(tokens: int, kv_cache: KvCache) -> float:
        setup = a_setup(static_batch=1, kv_cache=kv_cache)
        return play(setup, a_load((0.0, 1, tokens))).seconds

    assert seconds(8000, KvCache.PAGED) / seconds(4000, KvCache.PAGED) < 2.2
    assert seconds(8000, KvCache.NONE) / seconds(4000, KvCache.NONE) > 3.8


@given(loads, st.integers(1100, 4000))
def test_a_static_batch_takes_no_more_requests_than_its_kv_cache_holds(
    load: list[TimedRequest], kv_tokens: int
) -> None:
    engine = StaticBatchEngine(8, a_setup().step_time, kv_tokens=kv_tokens)
    for _, request in load:
        engine.submit(request)
    batches = defaultdict[float, list[EngineRequest]](list)
    for served in engine.advance(math.inf):
        batches[served.ended_at].append(served.request)
    assert sum(map(len, batches.values())) == len(load)
    for batch in batches.values():
        prompt = max(request.prompt_tokens for request in batch)
        output = max(request.output_tokens for request in batch)
        assert len(batch) * (prompt + output) <= kv_tokens


def test_in_a_static_batch_a_request_has_its_last_token_before_the_batch_ends() -> None:
    played = play(a_setup(static_batch=2), a_load((0.0, 100, 10), (0.0, 100, 500)))
    short, long = played.served
    assert short.ended_at == long.ended_at
    assert short.tpot_seconds == pytest.approx(long.tpot_seconds, rel=0.01)
    assert (played.idle_slot_steps, played.slot_steps, played.steps) == (490, 510, 500)
    assert played.slot_occupancy == 510 / 1000


def test_requests_that_are_too_long_are_rejected_and_counted() -> None:
    load = a_load((0.0, 100, 10), (0.0, 100, 1000))
    for options in ({"static_batch": 2}, {}):
        played = play(a_setup(max_model_len=1000, **options), load)
        assert (len(played.served), played.rejected) == (1, 1)
        with pytest.raises(EngineSetupError, match="none of 2 requests fits max_model_len 64"):
            play(a_setup(max_model_len=64, **options), load)


def test_reserved_slots_waste_what_their_requests_do_not_use() -> None:
    load = a_load(*[(0.0, 199, 2)] * 8)
    contiguous = play(a_setup(kv_cache=KvCache.CONTIGUOUS, max_model_len=2000), load)
    assert contiguous.kv_waste == pytest.approx(1 - 199.5 / 2000)
    assert play(a_setup(), load).kv_waste == pytest.approx(1 - 199.5 / 208)
    assert play(a_setup(static_batch=8), load).kv_waste == 0.0


def test_the_energy_of_tokens_is_that_of_steps_and_of_idle_time() -> None:
    for devices in (1, 2):
        hardware = whole_gpu_hardware(products()["NVIDIA-A100-SXM4-80GB"], devices)
        # The engine works on the first request, and waits for the second one.
        played = play(a_setup(hardware=hardware), a_load((0.0, 100, 50), (30.0, 100, 50)))
        assert played.busy_seconds < 0.1 * played.seconds
        joules = devices * (62 * played.seconds + 338 * played.busy_seconds)
        assert played.joules_per_token == pytest.approx(joules / 100)


def test_batches_share_the_energy_of_a_step() -> None:
    shapes = [(0.0, 199, 100)] * 8
    serial, batched = (
        play(a_setup(max_num_seqs=slots), a_load(*shapes)).joules_per_token for slots in (1, 8)
    )
    assert serial is not None
    assert batched is not None
    assert 4 < serial / batched < 8


def test_without_known_watts_a_token_has_no_energy() -> None:
    unmeasured = whole_gpu_hardware(products()["NVIDIA-GH200-144G-HBM3e"], 1)
    assert play(a_setup(hardware=unmeasured), a_load((0.0, 9, 9))).joules_per_token is None


def test_the_price_of_tokens_follows_from_their_rate() -> None:
    played = _chat()
    rate = played.output_tokens_per_second
    assert played.usd_per_million(3.5 * rate / 1000) == pytest.approx(0.972222, abs=1e-6)


def test_mfu_counts_each_useful_token_once() -> None:
    played = play(a_setup(static_batch=4), a_load(*[(0.0, 1000, 1)] * 4))
    # 8.03e9 weights, of which the input embedding computes nothing, and the attention's pairs.
    flops = 4 * (2 * (8.03e9 - 0.525e9) * 1000 + 2 * 32 * 4096 * 1000**2)
    assert played.mfu == pytest.approx(flops / played.busy_seconds / 312e12, rel=0.001)
    assert played.mfu < 0.8478


def test_decoding_alone_uses_little_of_the_compute_and_more_with_every_slot() -> None:
    load = a_load(*[(0.0, 1, 300)] * 64)
    shares = [play(a_setup(max_num_seqs=slots), load).mfu for slots in (1, 8, 64)]
    assert shares == sorted(shares)
    assert shares[0] < 0.01
    assert shares[-1] < 0.5


def test_a_shared_system_prompt_is_computed_once() -> None:
    load = replace(RAG, prompts=fixed_length(800), system_tokens=1200).draw(100)
    cached = play(a_setup(prefix_cache=True), load)
    assert cached.cached_share == pytest.approx(0.99 * 1200 / 2000)
    assert cached.seconds < play(a_setup(), load).seconds
    assert play(a_setup(), load).cached_share == 0.0


def _chat(**options: Any) -> PlayedLoad:
    return play(a_setup(**options), CHAT.draw(300))


def test_equal_input_gives_equal_output() -> None:
    assert _chat() == _chat()
    assert CHAT.draw(20, 2.0, seed=1) != CHAT.draw(20, 2.0, seed=2)


def evenly(count: int, rate: float) -> list[TimedRequest]:
    return a_load(*[(number / rate, 1000, 200) for number in range(count)])


def test_a_little_less_than_the_highest_rate_keeps_the_objectives_and_more_does_not() -> None:
    setup = a_setup(max_num_seqs=16)
    capacity = highest_rate(setup, partial(evenly, 100), ttft=1.0, itl=0.05)
    less = play(setup, evenly(1000, capacity.rate * 0.96))
    assert less.ttft(95) <= 1.0
    assert (less.tpot(95) or 0) <= 0.05
    assert capacity.limited_by == "TTFT"
    assert play(setup, evenly(1000, capacity.rate * 1.04)).ttft(95) > 1.0


def test_a_few_requests_find_the_rate_that_many_find() -> None:
    """A load that ends before the engine is full would keep objectives at any rate."""
    few, many = (
        highest_rate(a_setup(), partial(evenly, count), ttft=1.0, itl=0.04) for count in (5, 400)
    )
    assert few.limited_by == many.limited_by == "TPOT"
    assert few.rate == pytest.approx(many.rate, rel=0.04)
    assert len(few.played.served) > 100


def test_a_rate_of_zero_says_that_even_rare_requests_miss_the_objective() -> None:
    capacity = highest_rate(a_setup(), partial(evenly, 5), ttft=1.0, itl=0.001)
    assert (capacity.rate, capacity.limited_by) == (0.0, "TPOT")


@pytest.mark.parametrize("ttft", [math.inf, math.nan, 61.0])
def test_an_objective_that_no_load_is_long_enough_for_is_refused(ttft: float) -> None:
    with pytest.raises(ValueError, match="up to 60 s"):
        highest_rate(a_setup(), partial(evenly, 5), ttft=ttft, itl=0.05)


def test_a_static_batch_is_searched_down_to_the_rate_of_single_requests() -> None:
    capacity = highest_rate(a_setup(static_batch=8), partial(evenly, 50), ttft=1.0, itl=0.05)
    lone = play(a_setup(static_batch=1), evenly(1, 1.0))
    # Evenly spread requests wait as soon as one comes before the one before has ended.
    assert capacity.rate * lone.seconds == pytest.approx(1.0, abs=0.02)
