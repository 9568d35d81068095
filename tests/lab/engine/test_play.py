"""Loads on engines with the options of a user, and the highest rates that they keep."""

import math
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
from tessera_lab.engine.setup import EngineSetup, KvCache

SHAPE = models()["meta-llama/Llama-3.1-8B-Instruct"]
A100 = whole_gpu_hardware(products()["NVIDIA-A100-SXM4-80GB"], 1)


def a_setup(**options: Any) -> EngineSetup:
    return EngineSetup(**({"shape": SHAPE, "hardware": A100} | options))


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


def _chat(**options: Any) -> PlayedLoad:
    return play(a_setup(**options), CHAT.draw(300))


def test_equal_input_gives_equal_output() -> None:
    assert _chat() == _chat()
    assert CHAT.draw(20, 2.0, seed=1) != CHAT.draw(20, 2.0, seed=2)


def test_the_highest_rate_keeps_the_objectives_and_a_little_more_does_not() -> None:
    setup = a_setup(max_num_seqs=32)

    def draw(rate: float) -> tuple[TimedRequest, ...]:
        return RAG.draw(400, rate)

    capacity = highest_rate(setup, draw, ttft=1.0, itl=0.05)
    assert capacity.played == play(setup, draw(capacity.rate))
    assert capacity.played.ttft(95) <= 1.0
    assert (capacity.played.tpot(95) or 0) <= 0.05
    more = play(setup, draw(capacity.rate * 1.03))
    assert more.ttft(95) > 1.0 or (more.tpot(95) or 0) > 0.05


def test_a_rate_of_zero_says_that_even_rare_requests_miss_the_objective() -> None:
    capacity = highest_rate(a_setup(), lambda rate: RAG.draw(50, rate), ttft=1.0, itl=0.001)
    assert (capacity.rate, capacity.limited_by) == (0.0, "TPOT")


def test_a_load_that_misses_no_objective_has_no_limit() -> None:
    capacity = highest_rate(a_setup(), lambda rate: RAG.draw(5, rate), ttft=60.0, itl=1.0)
    assert capacity.limited_by is None
    assert capacity.rate > 0
