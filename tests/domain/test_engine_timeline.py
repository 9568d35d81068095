import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.engine import Engine, Served, Timeline
from tessera.domain.engine_requests import Allocator, Limits, Policy, Reason, Refusal, Request
from tessera.domain.perf import StepTime

SPEED = StepTime(weights=5.0123e-3, kv_token=1.0471e-6, token=1.0933e-5)
KINKED = StepTime(weights=1.0123e-5, kv_token=1.0471e-6, token=1.0933e-4)
"""With many tokens in the cache memory binds, with few computing does."""
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
    Limits,
    max_model_len=st.just(LENGTH),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 300),
    blocks=st.integers(LENGTH // BLOCK + 1, 2 * LENGTH // BLOCK),
    block_size=st.just(BLOCK),
    policy=st.sampled_from(Policy),
    prefix_cache=st.booleans(),
    shared_tokens=st.sampled_from([None, 2 * BLOCK]),
)


def _requests(found: Sequence[Arrival], unit: int) -> list[tuple[float, Request]]:
    now, made = 0.0, []
    for number, one in enumerate(found):
        now += one.after
        most = min(one.beginnings, (one.prompt + one.output) // unit)
        request = Request(
            id=number,
            prompt_tokens=one.prompt,
            output_tokens=one.output,
            priority=one.priority,
            shared=tuple(one.family * 1000 + name for name in range(most)),
        )
        made.append((now, request))
    return made


@dataclass
class Stepped:
    """The same as a timeline, a step at a time and by the public values of steps."""

    engine: Engine
    now: float = 0.0
    moments: dict[int, dict[str, float | None]] = field(default_factory=dict)
    served: list[Served] = field(default_factory=list)

    def advance(self, until: float) -> None:
        while self.now < until and (step := self.engine.step()) is not None:
            for number in step.admitted:
                self.moments[number].setdefault("admitted", self.now)
            self.now += step.seconds
            for number in step.first:
                self.moments[number]["first"] = self.now
            for gone in step.finished:
                self.served.append(
                    Served(
                        request=gone.request,
                        reason=gone.reason,
                        output_tokens=gone.output_tokens,
                        preemptions=gone.preemptions,
                        cached_tokens=gone.cached_tokens,
                        ended=self.now,
                        arrived=self.moments[gone.request.id]["arrived"] or 0.0,
                        admitted=self.moments[gone.request.id]["admitted"],
                        first=self.moments[gone.request.id]["first"],
                    )
                )
        if until < math.inf:
            self.now = max(self.now, until)

    def submit(self, request: Request, at: float) -> None:
        self.moments[request.id] = {"arrived": at}
        assert self.engine.submit(request) is None


@settings(max_examples=300, deadline=None)
@given(limits, st.sampled_from([SPEED, KINKED]), arrivals)
def test_skipping_equal_steps_gives_what_doing_them_one_by_one_gives(
    bounds: Limits, speed: StepTime, found: list[Arrival]
) -> None:
    skipped, stepped = Timeline(Engine(bounds, speed)), Stepped(Engine(bounds, speed))
    served = []
    for at, request in _requests(found, bounds.shared_tokens or BLOCK):
        served += skipped.advance(at)
        stepped.advance(at)
        assert skipped.submit(request, at) is None
        stepped.submit(request, at)
    served += skipped.advance(math.inf)
    stepped.advance(math.inf)
    assert [_exact(one) for one in served] == [_exact(one) for one in stepped.served]
    for got, wanted in zip(served, stepped.served, strict=True):
        assert _moments(got) == pytest.approx(_moments(wanted), rel=1e-9)
    assert asdict(skipped.engine.counts) == asdict(stepped.engine.counts)
    assert skipped.now == pytest.approx(stepped.now)
    assert len(served) == len(found)
    assert skipped.engine.free_blocks == bounds.blocks - 1
    assert skipped.engine.kv_tokens == skipped.engine.logical_blocks == 0


def _exact(served: Served) -> Served:
    return replace(served, arrived=0.0, admitted=None, first=None, ended=0.0)


def _moments(served: Served) -> list[float | None]:
    return [served.arrived, served.admitted, served.first, served.ended]
