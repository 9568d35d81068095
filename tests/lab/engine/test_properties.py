from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import (
    Allocator,
    EngineLimits,
    EngineRequest,
    FinishReason,
    SchedulingPolicy,
)
from tests.properties import applies

LENGTH = 100
BLOCK = 4
SLOW = StepTime(weights=5e-3, kv_token=1e-6, token=1e-5)
FAST = StepTime(weights=2e-3, kv_token=1e-6, token=4e-6)

# Prompt tokens, output tokens, priority.
shapes = st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(-1, 1))
limits = st.builds(
    EngineLimits,
    max_model_len=st.just(LENGTH),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 64),
    blocks=st.integers(LENGTH // BLOCK + 1, 3 * LENGTH // BLOCK),
    block_size=st.just(BLOCK),
    policy=st.sampled_from(SchedulingPolicy),
    allocator=st.sampled_from(Allocator),
)
# Arrivals, aborts of some request, and steps in any order.
events = st.lists(
    st.one_of(shapes, st.tuples(st.just("abort"), st.integers(0, 20)), st.just("step")),
    max_size=40,
)


@dataclass
class RequestHistory:
    """What a request went through."""

    request: EngineRequest
    admitted: int = 0
    preempted: int = 0
    tokens: int = 0
    ends: list[FinishReason] = field(default_factory=list)


def _run_events(engine: EngineCore, event_list: list[Any]) -> dict[int, RequestHistory]:
    """Play the events and then drain; check every step on the way."""
    histories: dict[int, RequestHistory] = {}
    for event in [*event_list, *["step"] * 2000]:
        if event == "step":
            _step(engine, histories)
        elif event[0] == "abort":
            finished = engine.abort(event[1])
            if finished is not None:
                histories[event[1]].ends.append(finished.reason)
                assert finished.output_tokens == histories[event[1]].tokens
        else:
            prompt, output, priority = event
            request = EngineRequest(
                id=len(histories), prompt_tokens=prompt, output_tokens=output, priority=priority
            )
            assert engine.submit(request) is None
            histories[request.id] = RequestHistory(request)
    return histories


def _step(engine: EngineCore, histories: dict[int, RequestHistory]) -> None:
    free = engine.free_blocks
    done = engine.step()
    if done is None:
        assert engine.idle
        return
    for number in done.emitted:
        histories[number].tokens += 1
    for number in done.preempted:
        histories[number].preempted += 1
    for number in done.admitted:
        histories[number].admitted += 1
    for finished in done.finished:
        histories[finished.request.id].ends.append(finished.reason)
        assert finished.preemptions == histories[finished.request.id].preempted
    assert max(Counter(done.emitted).values(), default=0) <= 1
    assert len(done.emitted) <= engine.limits.max_num_seqs
    assert done.decoding + done.prefill_tokens <= engine.limits.max_num_batched_tokens
    assert 0 <= engine.free_blocks < engine.limits.blocks
    if done.admitted:
        needed = sum(
            _input_blocks(engine, histories[number], done.emitted) for number in done.admitted
        )
        assert needed <= free + _freed(engine, histories, done.preempted)


def _input_blocks(engine: EngineCore, history: RequestHistory, emitted: tuple[int, ...]) -> int:
    before = history.tokens - (history.request.id in emitted)
    return engine.limits.blocks_for(history.request.prompt_tokens + before)


def _freed(
    engine: EngineCore, histories: dict[int, RequestHistory], preempted: tuple[int, ...]
) -> int:
    return sum(_input_blocks(engine, histories[number], ()) for number in preempted)


@given(limits, events)
def test_no_admitted_request_exceeds_the_free_blocks_and_every_limit_is_kept(
    bounds: EngineLimits, event_list: list[Any]
) -> None:
    engine = EngineCore(bounds, SLOW)
    _run_events(engine, event_list)
    assert engine.idle
    assert (engine.free_blocks, engine.kv_tokens) == (bounds.blocks - 1, 0)
    assert engine.queued_tokens == 0


@given(limits, events)
def test_every_request_ends_exactly_once_with_exactly_its_tokens(
    bounds: EngineLimits, event_list: list[Any]
) -> None:
    for history in _run_events(EngineCore(bounds, SLOW), event_list).values():
        assert len(history.ends) == 1
        if history.ends == [FinishReason.LENGTH]:
            assert history.tokens == history.request.output_tokens
            assert history.admitted == history.preempted + 1


def _last_steps(
    bounds: EngineLimits, wanted: list[tuple[int, int, int]], speed: StepTime = SLOW
) -> tuple[dict[int, tuple[int, float]], bool]:
    """For requests that all arrive at once: number and moment of their last step, and whether
    anybody was preempted."""
    engine = EngineCore(bounds, speed)
    for number, (prompt, output, priority) in enumerate(wanted):
        engine.submit(
            EngineRequest(id=number, prompt_tokens=prompt, output_tokens=output, priority=priority)
        )
    ends: dict[int, tuple[int, float]] = {}
    now, preempted = 0.0, False
    for number, done in enumerate(iter(engine.step, None)):
        now += done.seconds
        preempted |= bool(done.preempted)
        ends |= {finished.request.id: (number, now) for finished in done.finished}
    return ends, preempted


@given(limits, st.lists(shapes, min_size=1, max_size=8))
def test_faster_hardware_finishes_no_request_later(
    bounds: EngineLimits, wanted: list[tuple[int, int, int]]
) -> None:
    slow, _ = _last_steps(bounds, wanted, SLOW)
    fast, _ = _last_steps(bounds, wanted, FAST)
    assert all(fast[number][1] <= slow[number][1] for number in slow)


@given(limits, st.lists(shapes, min_size=1, max_size=8))
def test_memory_for_everybody_finishes_no_request_in_a_later_step(
    bounds: EngineLimits, wanted: list[tuple[int, int, int]]
) -> None:
    some, _ = _last_steps(bounds, wanted)
    plenty, _ = _last_steps(replace(bounds, blocks=10_000), wanted)
    assert all(plenty[number][0] <= some[number][0] for number in some)


@applies(80)
@given(limits, st.integers(1, 200), st.lists(shapes, min_size=1, max_size=8))
def test_more_memory_finishes_no_request_in_a_later_step_while_none_is_preempted(
    bounds: EngineLimits, more: int, wanted: list[tuple[int, int, int]]
) -> None:
    """With preemptions it can: one more admission may cost another request its cache."""
    some, preempted = _last_steps(bounds, wanted)
    larger, preempted_too = _last_steps(replace(bounds, blocks=bounds.blocks + more), wanted)
    assume(not (preempted or preempted_too))
    assert all(larger[number][0] <= some[number][0] for number in some)
