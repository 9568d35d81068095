import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from tessera.domain.perf.experts import ExpertsTime
from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, ServedRequest, Timeline
from tessera_lab.engine.requests import (
    EngineLimits,
    EngineRequest,
    FinishReason,
    RejectionReason,
    SchedulingPolicy,
)
from tests.properties import examples

SPEED = StepTime(weights=5.0123e-3, kv_token=1.0471e-6, token=1.0933e-5)
# With every term, on both sides of the corner.
FULL = StepTime(
    weights=4.0123e-4,
    kv_token=1.0471e-6,
    token=1.0933e-4,
    unoverlapped=0.31,
    experts=ExpertsTime(
        read=2.4e-3,
        unread_share=0.75,
        token=6.7e-5,
        unoverlapped=0.43,
        prompt_token=2.1e-4,
        prompt_tokens=37,
    ),
    pair=3.1e-8,
    exchange=2.7e-6,
)
# With a bend where requests have this many tokens on average.
WINDOWED = replace(SPEED, windowed_token=2.1e-6, windowed_pair=1.3e-8, window=40.0)
BLOCK = 4
LENGTH = 200


@dataclass(frozen=True)
class Arrival:
    after: float
    """Seconds since the one before."""
    prompt: int
    output: int
    priority: int
    beginnings: int
    """How many shared names it carries, of the family's chain."""
    family: int


arrivals = st.lists(
    st.builds(
        Arrival,
        after=st.floats(0.0001, 0.4),
        prompt=st.integers(1, 80),
        output=st.integers(1, 120),
        priority=st.integers(-1, 1),
        beginnings=st.integers(0, 60),
        family=st.integers(0, 2),
    ),
    min_size=1,
    max_size=14,
)
limits = st.builds(
    EngineLimits,
    max_model_len=st.just(LENGTH),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 300),
    blocks=st.integers(LENGTH // BLOCK + 1, 2 * LENGTH // BLOCK),
    block_size=st.just(BLOCK),
    policy=st.sampled_from(SchedulingPolicy),
    prefix_cache=st.booleans(),
    shared_tokens=st.sampled_from([None, 2 * BLOCK]),
)


def _requests(arrival_list: Sequence[Arrival], unit: int) -> list[tuple[float, EngineRequest]]:
    now, timed_requests = 0.0, []
    for number, arrival in enumerate(arrival_list):
        now += arrival.after
        most = min(arrival.beginnings, (arrival.prompt + arrival.output) // unit)
        request = EngineRequest(
            id=number,
            prompt_tokens=arrival.prompt,
            output_tokens=arrival.output,
            priority=arrival.priority,
            shared_prefixes=tuple(arrival.family * 1000 + name for name in range(most)),
        )
        timed_requests.append((now, request))
    return timed_requests


@dataclass
class SteppedTimeline:
    """The same as a timeline, a step at a time and by the public values of steps."""

    engine: EngineCore
    now: float = 0.0
    moments: dict[int, dict[str, float | None]] = field(default_factory=dict)
    served: list[ServedRequest] = field(default_factory=list)

    def advance(self, until: float) -> None:
        while self.now < until and (step := self.engine.step()) is not None:
            for number in step.admitted:
                self.moments[number].setdefault("admitted", self.now)
            self.now += step.seconds
            for number in step.first:
                self.moments[number]["first"] = self.now
            for finished in step.finished:
                self.served.append(
                    ServedRequest(
                        request=finished.request,
                        reason=finished.reason,
                        output_tokens=finished.output_tokens,
                        preemptions=finished.preemptions,
                        cached_tokens=finished.cached_tokens,
                        ended_at=self.now,
                        arrived_at=self.moments[finished.request.id]["arrived"] or 0.0,
                        admitted_at=self.moments[finished.request.id]["admitted"],
                        first_token_at=self.moments[finished.request.id]["first"],
                    )
                )
        if until < math.inf:
            self.now = max(self.now, until)

    def submit(self, request: EngineRequest, at: float) -> None:
        self.moments[request.id] = {"arrived": at}
        assert self.engine.submit(request) is None


@settings(max_examples=examples(150))
@given(limits, st.sampled_from([SPEED, FULL, WINDOWED]), arrivals)
def test_skipping_equal_steps_gives_what_doing_them_one_by_one_gives(
    bounds: EngineLimits, speed: StepTime, arrival_list: list[Arrival]
) -> None:
    skipped, stepped = (
        Timeline(EngineCore(bounds, speed)),
        SteppedTimeline(EngineCore(bounds, speed)),
    )
    served = []
    for at, request in _requests(arrival_list, bounds.shared_tokens or BLOCK):
        served += skipped.advance(at)
        stepped.advance(at)
        assert skipped.submit(request, at) is None
        stepped.submit(request, at)
    served += skipped.advance(math.inf)
    stepped.advance(math.inf)
    assert [_exact(served_request) for served_request in served] == [
        _exact(served_request) for served_request in stepped.served
    ]
    for got, wanted in zip(served, stepped.served, strict=True):
        assert _moments(got) == pytest.approx(_moments(wanted), rel=1e-9)
    assert asdict(skipped.engine.counts) == asdict(stepped.engine.counts)
    assert skipped.now == pytest.approx(stepped.now)
    assert len(served) == len(arrival_list)
    assert skipped.engine.free_blocks == bounds.blocks - 1
    assert skipped.engine.kv_tokens == skipped.engine.logical_blocks == 0


def _exact(served: ServedRequest) -> ServedRequest:
    return replace(served, arrived_at=0.0, admitted_at=None, first_token_at=None, ended_at=0.0)


def _moments(served: ServedRequest) -> list[float | None]:
    return [served.arrived_at, served.admitted_at, served.first_token_at, served.ended_at]


def a_timeline(**changes: Any) -> Timeline:
    bounds = EngineLimits(
        max_model_len=2048, max_num_seqs=8, max_num_batched_tokens=2048, blocks=2000
    )
    return Timeline(EngineCore(replace(bounds, **changes), SPEED))


def a_request(number: int, prompt: int = 100, output: int = 50) -> EngineRequest:
    return EngineRequest(id=number, prompt_tokens=prompt, output_tokens=output)


def test_a_request_that_arrives_during_a_step_waits_for_its_end() -> None:
    timeline = a_timeline()
    timeline.submit(a_request(0))
    timeline.advance(0.001)
    step_end = timeline.now
    assert step_end > 0.001
    timeline.submit(a_request(1), at=0.001)
    served = timeline.advance(math.inf)
    assert [
        (served_request.arrived_at, served_request.admitted_at) for served_request in served
    ] == [(0.0, 0.0), (0.001, step_end)]


def test_no_request_arrives_in_the_future() -> None:
    with pytest.raises(ValueError, match="still to come"):
        a_timeline().submit(a_request(0), at=1.0)


def test_an_idle_engine_waits_for_the_moment_and_is_not_busy_meanwhile() -> None:
    timeline = a_timeline()
    assert timeline.advance(10.0) == []
    timeline.submit(a_request(0))
    [served] = timeline.advance(math.inf)
    assert served.admitted_at == 10.0
    assert timeline.busy_seconds == pytest.approx(served.ended_at - 10.0)
    assert timeline.now == served.ended_at


def test_latencies_follow_from_the_moments() -> None:
    timeline = a_timeline()
    timeline.submit(a_request(0, prompt=100, output=3))
    [served] = timeline.advance(math.inf)
    first = SPEED.seconds(decoding=0, kv_tokens=100, prefill_tokens=100)
    later = [SPEED.seconds(decoding=1, kv_tokens=100 + token) for token in (1, 2)]
    assert served.ttft_seconds == pytest.approx(first)
    assert served.tpot_seconds == pytest.approx(sum(later) / 2)
    assert served.ended_at == pytest.approx(first + sum(later))


def test_a_drained_engine_takes_nothing_more_and_finishes_what_runs_and_waits() -> None:
    timeline = a_timeline(max_num_seqs=2)
    for number in range(5):
        timeline.submit(a_request(number))
    timeline.advance(0.05)
    timeline.drain()
    assert timeline.submit(a_request(9)) is RejectionReason.DRAINING
    served = timeline.advance(math.inf)
    assert [served_request.reason for served_request in served] == [FinishReason.LENGTH] * 5
    assert timeline.engine.idle


def test_at_the_deadline_of_a_drain_what_is_left_is_aborted_with_what_it_got() -> None:
    timeline = a_timeline(max_num_seqs=2)
    for number, output in enumerate((10, 500, 500)):
        timeline.submit(a_request(number, output=output))
    timeline.drain(deadline=0.5)
    served = timeline.advance(math.inf)
    assert [(served_request.request.id, served_request.reason) for served_request in served] == [
        (0, FinishReason.LENGTH),
        (1, FinishReason.ABORT),
        (2, FinishReason.ABORT),
    ]
    assert 0 < served[1].output_tokens < 500
    assert served[1].ended_at == pytest.approx(0.5, abs=0.01)
    assert timeline.engine.idle
    assert timeline.engine.free_blocks == 1999


@pytest.mark.parametrize(("batched", "longest_gap"), [(512, 0.016), (8192, 0.1)])
def test_chunks_of_512_keep_a_long_prompt_from_stalling_others(
    batched: int, longest_gap: float
) -> None:
    """At 11 ms of prefill for 1,000 tokens a prompt of 8,000 stalls everybody for 90 ms."""
    bounds = EngineLimits(
        max_model_len=8192, max_num_seqs=8, max_num_batched_tokens=batched, blocks=2000
    )
    engine = EngineCore(bounds, SPEED)
    engine.submit(a_request(0, prompt=10, output=60))
    engine.step()
    engine.submit(a_request(1, prompt=8000, output=2))
    gaps = [step.seconds for step in iter(engine.step, None) if 0 in step.emitted]
    assert longest_gap * 0.8 <= max(gaps) <= longest_gap


def test_without_chunks_a_prompt_waits_for_a_step_that_has_room_for_all_of_it() -> None:
    bounds = EngineLimits(
        max_model_len=1000,
        max_num_seqs=8,
        max_num_batched_tokens=1000,
        blocks=2000,
        chunked_prefill=False,
    )
    engine = EngineCore(bounds, SPEED)
    for number, prompt in enumerate((600, 500, 400)):
        engine.submit(a_request(number, prompt=prompt, output=3))
    steps = list(iter(engine.step, None))
    assert [step.admitted for step in steps if step.admitted] == [(0,), (1, 2)]
    assert all(step.first == step.admitted for step in steps)


def test_a_day_of_decoding_alone_costs_few_questions_about_the_time_of_a_step() -> None:
    calls = 0

    class CountingStepTime(StepTime):
        @override
        def seconds(
            self,
            *,
            decoding: float,
            kv_tokens: float,
            prefill_tokens: float = 0,
            prefill_pairs: float = 0,
        ) -> float:
            nonlocal calls
            calls += 1
            return SPEED.seconds(
                decoding=decoding,
                kv_tokens=kv_tokens,
                prefill_tokens=prefill_tokens,
                prefill_pairs=prefill_pairs,
            )

    bounds = EngineLimits(
        max_model_len=1_000_000, max_num_seqs=8, max_num_batched_tokens=64, blocks=100_000
    )
    timeline = Timeline(EngineCore(bounds, CountingStepTime(weights=1, kv_token=1, token=1)))
    timeline.submit(a_request(0, prompt=10, output=900_000))
    [served] = timeline.advance(math.inf)
    assert served.output_tokens == 900_000
    assert calls < 10


def test_past_a_request_that_does_not_fit_a_better_one_that_does_is_admitted_at_once() -> None:
    timeline = a_timeline(policy=SchedulingPolicy.PRIORITY, blocks=129)  # 128 usable blocks
    timeline.submit(a_request(0, prompt=1600, output=400))
    timeline.advance(0.1)
    timeline.submit(a_request(1, prompt=1600, output=2))
    timeline.advance(0.2)
    now = timeline.now
    timeline.submit(EngineRequest(id=2, prompt_tokens=16, output_tokens=2, priority=-1))
    served = timeline.advance(math.inf)
    assert [served_request.request.id for served_request in served] == [2, 0, 1]
    assert served[0].admitted_at == now
