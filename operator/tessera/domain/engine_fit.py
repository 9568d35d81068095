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
_SINGLES = 0.3
"""Weight of how far single requests are off; percentiles alone are ground with steps in it."""
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
    front_seconds: float
    """What a request takes on its way to the engine and its first token on the way back."""
    error: float
    """Of the percentiles: root of the mean square of the logarithms of predicted by seen, which is
    about a relative error."""


def latencies(load: Load, percents: Sequence[int] = PERCENTS) -> Latencies:
    """What a load came to."""
    firsts = [sorted(one.first_token_seconds for one in run) for run in load]
    steps = [
        sorted(one.token_seconds for one in run if one.token_seconds is not None) for run in load
    ]
    return Latencies(
        first_token=tuple(_medians(firsts, percents)), per_token=tuple(_medians(steps, percents))
    )


def replayed(run: Run, limits: Limits, speed: StepTime, front_seconds: float = 0.0) -> list[Seen]:
    """The same requests at the same moments, as an engine of this speed serves them.

    They come to it `front_seconds` later.
    """
    timeline, served = Timeline(Engine(limits, speed)), list[Served]()
    for number, one in enumerate(run):
        moment = one.arrival + front_seconds
        served += timeline.advance(moment)
        request = Request(
            id=number, prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens
        )
        timeline.submit(request, moment)
    served += timeline.advance(math.inf)
    return [
        Seen(
            arrival=one.arrived - front_seconds,
            prompt_tokens=one.request.prompt_tokens,
            output_tokens=one.output_tokens,
            first_token_seconds=(one.first_token_seconds or 0.0) + front_seconds,
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
        percentiles, singles = _errors(seen, loads, limits, point)
        return percentiles + _SINGLES * singles

    ends = [least(error, start) for start in _starts(loads)]
    _, best = min((error(end), end) for end in ends)
    for _ in range(_AGAIN):
        best = least(error, best)
    speed, front = _parts(best)
    return Fit(speed=speed, front_seconds=front, error=_errors(seen, loads, limits, best)[0])


def _errors(
    seen: Sequence[Latencies], loads: Sequence[Load], limits: Limits, point: Point
) -> tuple[float, float]:
    """Of the percentiles, and of single requests."""
    speed, front = _parts(point)
    squares, singles = list[float](), list[float]()
    for known, load in zip(seen, loads, strict=True):
        again = [replayed(run, limits, speed, front) for run in load]
        squares += [_off(*pair) ** 2 for pair in _pairs(latencies(again), known)]
        for got, run in zip(again, load, strict=True):
            singles += [_off(*pair) for pair in _singles(got, run)]
    return math.sqrt(sum(squares) / len(squares)), sum(singles) / len(singles)


def _off(got: float, wanted: float) -> float:
    return abs(math.log(got / wanted))


def _singles(got: Run, wanted: Run) -> Iterator[tuple[float, float]]:
    for one, other in zip(got, wanted, strict=True):
        yield one.first_token_seconds, other.first_token_seconds
        if one.token_seconds is not None and other.token_seconds is not None:
            yield one.token_seconds, other.token_seconds


def _pairs(got: Latencies, wanted: Latencies) -> Iterator[tuple[float, float]]:
    yield from zip(got.first_token, wanted.first_token, strict=True)
    yield from zip(got.per_token, wanted.per_token, strict=True)


def _starts(loads: Sequence[Load]) -> list[Point]:
    """A quick answer tells the fixed part, a quick first token those of the prompt's tokens."""
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
            ),
            step * share / 2,
        )
        for share in _SPREAD
    ]


def _parts(point: Point) -> tuple[StepTime, float]:
    weights, kv_token, token, sequence, fixed, front = (math.exp(value) for value in point)
    speed = StepTime(
        weights=weights,
        kv_token=kv_token,
        token=token,
        sequence=sequence,
        fixed=fixed,
        source="measured",
    )
    return speed, front


def _logarithms(speed: StepTime, front: float) -> Point:
    """A search over logarithms finds no negative time, and small parts as well as great ones."""
    parts = (speed.weights, speed.kv_token, speed.token, speed.sequence, speed.fixed, front)
    return tuple(math.log(part) for part in parts)


def _medians(runs: Sequence[Sequence[float]], percents: Sequence[int]) -> Iterator[float]:
    for percent in percents:
        yield median(nearest_rank(ordered, percent) for ordered in runs)
