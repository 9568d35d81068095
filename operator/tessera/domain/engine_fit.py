"""The speed of a measured engine: found so that the machine, fed the same requests, is as fast.

An engine shows its steps to nobody. What is seen is when requests came, how long they were, and
when their tokens came. The machine does the same for given seconds of a step's parts, so the parts
are those with which it tells the same latencies.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tessera.domain.bench.spread import nearest_rank
from tessera.domain.engine import Engine, Served, Timeline
from tessera.domain.engine_requests import Limits, Request
from tessera.domain.minimum import Point, least
from tessera.domain.perf import StepTime

PERCENTS = (5, 15, 25, 35, 50, 65, 75, 85, 95)
"""Percentiles that are held against each other."""
_LEAST_SECONDS = 1e-12
"""Stands for nothing, which has no logarithm."""
_AGAIN = 2
"""A simplex that became flat stands still before the bottom; a new one walks on."""
_SPREAD = (1.0, 0.25)
"""Shares of the first guess of the fixed part, from which the search begins once each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as a client saw it."""

    arrival: float
    """Seconds from the begin of its run."""
    prompt_tokens: int
    output_tokens: int
    first_token_seconds: float
    token_seconds: float | None
    """Mean time from one token to the next; None of a single one."""


Run = Sequence[Seen]
"""In the order of arrival."""
Load = Sequence[Run]
"""The same load, drawn several times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Percentiles in seconds, each the median of the runs of a load."""

    first_token: tuple[float, ...]
    per_token: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The speed that explains what was seen best."""

    speed: StepTime
    error: float
    """Root of the mean square of the logarithms of predicted by seen: about a relative error."""


def latencies(load: Load, percents: Sequence[int] = PERCENTS) -> Latencies:
    """What a load came to."""
    firsts = [sorted(one.first_token_seconds for one in run) for run in load]
    steps = [
        sorted(one.token_seconds for one in run if one.token_seconds is not None) for run in load
    ]
    return Latencies(
        first_token=tuple(_medians(firsts, percents)), per_token=tuple(_medians(steps, percents))
    )


def replayed(run: Run, limits: Limits, speed: StepTime) -> list[Seen]:
    """The same requests at the same moments, as an engine of this speed serves them."""
    timeline, served = Timeline(Engine(limits, speed)), list[Served]()
    for number, one in enumerate(run):
        served += timeline.advance(one.arrival)
        request = Request(
            id=number, prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens
        )
        timeline.submit(request, one.arrival)
    served += timeline.advance(math.inf)
    return [
        Seen(
            arrival=one.arrived,
            prompt_tokens=one.request.prompt_tokens,
            output_tokens=one.output_tokens,
            first_token_seconds=one.first_token_seconds or 0.0,
            token_seconds=one.token_seconds,
        )
        for one in sorted(served, key=lambda one: one.request.id)
    ]


def fit(loads: Sequence[Load], limits: Limits) -> Fit:
    """The speed with which the machine is as fast as what was seen.

    Parts that no load tells apart share the time between them in some way; what the machine says of
    other loads does not depend on it as long as these are of the same kind.
    """
    seen = [latencies(load) for load in loads]

    def error(point: Point, /) -> float:
        return _error(seen, loads, limits, _speed(point))

    ends = [least(error, start) for start in _starts(loads)]
    _, best = min((error(end), end) for end in ends)
    for _ in range(_AGAIN):
        best = least(error, best)
    return Fit(speed=_speed(best), error=error(best))


def _error(
    seen: Sequence[Latencies], loads: Sequence[Load], limits: Limits, speed: StepTime
) -> float:
    squares = [
        math.log(got / wanted) ** 2
        for known, load in zip(seen, loads, strict=True)
        for got, wanted in _pairs(latencies([replayed(run, limits, speed) for run in load]), known)
    ]
    return math.sqrt(sum(squares) / len(squares))


def _pairs(got: Latencies, wanted: Latencies) -> Iterator[tuple[float, float]]:
    yield from zip(got.first_token, wanted.first_token, strict=True)
    yield from zip(got.per_token, wanted.per_token, strict=True)


def _starts(loads: Sequence[Load]) -> list[Point]:
    """A quick request tells the fixed part and the prompt's tokens, a busy moment the rest."""
    everybody = [one for load in loads for run in load for one in run]
    steps = sorted(one.token_seconds for one in everybody if one.token_seconds is not None)
    step = nearest_rank(steps, 5)
    tokens = sorted(one.first_token_seconds / one.prompt_tokens for one in everybody)
    token = nearest_rank(tokens, 25)
    return [
        _logarithms(
            StepTime(
                weights=step * (1 - share / 2),
                kv_token=step * 3e-5,
                token=token / 2,
                sequence=step * 0.1 * share,
                fixed=step * share / 2,
            )
        )
        for share in _SPREAD
    ]


def _speed(point: Point) -> StepTime:
    weights, kv_token, token, sequence, fixed = (math.exp(value) for value in point)
    return StepTime(weights=weights, kv_token=kv_token, token=token, sequence=sequence, fixed=fixed)


def _logarithms(speed: StepTime) -> Point:
    """A search over logarithms finds no negative time, and small parts as well as great ones."""
    parts = (speed.weights, speed.kv_token, speed.token, speed.sequence, speed.fixed)
    return tuple(math.log(max(part, _LEAST_SECONDS)) for part in parts)


def _medians(runs: Sequence[Sequence[float]], percents: Sequence[int]) -> Iterator[float]:
    for percent in percents:
        yield median(nearest_rank(ordered, percent) for ordered in runs)
