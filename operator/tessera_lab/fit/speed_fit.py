"""The speed of a measured engine, found by replaying its requests on the engine model.

An engine does not report its steps. A client sees when requests arrived, how long they were, and
when their tokens came. The fit finds the parts of a step's time with which the model gives the same
latencies.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, ServedRequest, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tessera_lab.fit.nelder_mead import Point, minimize
from tessera_lab.load.distribution import nearest_rank

# Percentiles of measurement and simulation that are compared.
PERCENTILES = (5, 15, 25, 35, 50, 65, 75, 85, 95)
# Weight of how far single requests are off; percentiles alone are ground with steps in it.
_REQUEST_WEIGHT = 0.3
# A simplex that became flat stands still before the bottom; a new one walks on.
_RESTARTS = 2
# Shares of the first guess of the fixed part, from which the search begins once each.
_START_SHARES = (1.0, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRequest:
    """One request as a client saw it."""

    arrival: float
    """Seconds from the start of its run."""
    prompt_tokens: int
    output_tokens: int
    ttft_seconds: float
    tpot_seconds: float | None
    """Mean time from one token to the next; None for a single token."""


# In the order of arrival.
ObservedRun = Sequence[ObservedRequest]
# The same load, drawn several times.
RepeatedLoad = Sequence[ObservedRun]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPercentiles:
    """Percentiles in seconds, each the median over the runs of a load."""

    ttft: tuple[float, ...]
    tpot: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeedFit:
    """The speed that explains the observations best."""

    speed: StepTime
    frontend_seconds: float
    """Time of a request on its way to the engine and of its first token on the way back."""
    error: float
    """Root mean square of log(predicted / observed) over the percentiles, about a relative error.
    """


def latency_percentiles(
    load: RepeatedLoad, percentiles: Sequence[int] = PERCENTILES
) -> LatencyPercentiles:
    """Return the percentiles of a load."""
    ttfts = [sorted(request.ttft_seconds for request in run) for run in load]
    tpots = [
        sorted(request.tpot_seconds for request in run if request.tpot_seconds is not None)
        for run in load
    ]
    ttft = tuple(_medians(ttfts, percentiles))
    return LatencyPercentiles(ttft=ttft, tpot=tuple(_medians(tpots, percentiles)))


def replay(
    run: ObservedRun, limits: EngineLimits, speed: StepTime, frontend_seconds: float = 0.0
) -> list[ObservedRequest]:
    """Return the same requests at the same moments, served by an engine of this speed.

    They reach it `frontend_seconds` later.
    """
    timeline, served = Timeline(EngineCore(limits, speed)), list[ServedRequest]()
    for number, observed in enumerate(run):
        moment = observed.arrival + frontend_seconds
        served += timeline.advance(moment)
        request = EngineRequest(
            id=number, prompt_tokens=observed.prompt_tokens, output_tokens=observed.output_tokens
        )
        timeline.submit(request, moment)
    served += timeline.advance(math.inf)
    return [
        ObservedRequest(
            arrival=finished.arrived_at - frontend_seconds,
            prompt_tokens=finished.request.prompt_tokens,
            output_tokens=finished.output_tokens,
            ttft_seconds=(finished.ttft_seconds or 0.0) + frontend_seconds,
            tpot_seconds=finished.tpot_seconds,
        )
        for finished in sorted(served, key=lambda entry: entry.request.id)
    ]


def fit_engine_speed(loads: Sequence[RepeatedLoad], limits: EngineLimits) -> EngineSpeedFit:
    """Return the speed with which the model is as fast as the observed engine.

    Parts that no load tells apart share the time between them arbitrarily. Predictions for other
    loads do not depend on it as long as these are of the same kind.
    """
    observed = [latency_percentiles(load) for load in loads]

    def error(point: Point, /) -> float:
        percentile_error, request_error = _errors(observed, loads, limits, point)
        return percentile_error + _REQUEST_WEIGHT * request_error

    optima = [minimize(error, start) for start in _start_points(loads)]
    _, best = min((error(optimum), optimum) for optimum in optima)
    for _ in range(_RESTARTS):
        best = minimize(error, best)
    speed, frontend = _decode_point(best)
    return EngineSpeedFit(
        speed=speed, frontend_seconds=frontend, error=_errors(observed, loads, limits, best)[0]
    )


def _errors(
    targets: Sequence[LatencyPercentiles],
    loads: Sequence[RepeatedLoad],
    limits: EngineLimits,
    point: Point,
) -> tuple[float, float]:
    """Return the errors of the percentiles and of single requests."""
    speed, frontend = _decode_point(point)
    squares, request_errors = list[float](), list[float]()
    for target, load in zip(targets, loads, strict=True):
        replayed_runs = [replay(run, limits, speed, frontend) for run in load]
        squares += [
            _log_error(*pair) ** 2
            for pair in _percentile_pairs(latency_percentiles(replayed_runs), target)
        ]
        for replayed_run, run in zip(replayed_runs, load, strict=True):
            request_errors += [
                _log_error(*pair) for pair in _request_latency_pairs(replayed_run, run)
            ]
    return math.sqrt(sum(squares) / len(squares)), sum(request_errors) / len(request_errors)


def _log_error(predicted: float, observed: float) -> float:
    return abs(math.log(predicted / observed))


def _request_latency_pairs(
    replayed_run: ObservedRun, observed_run: ObservedRun
) -> Iterator[tuple[float, float]]:
    for replayed_request, observed_request in zip(replayed_run, observed_run, strict=True):
        yield replayed_request.ttft_seconds, observed_request.ttft_seconds
        if replayed_request.tpot_seconds is not None and observed_request.tpot_seconds is not None:
            yield replayed_request.tpot_seconds, observed_request.tpot_seconds


def _percentile_pairs(
    predicted: LatencyPercentiles, observed: LatencyPercentiles
) -> Iterator[tuple[float, float]]:
    yield from zip(predicted.ttft, observed.ttft, strict=True)
    yield from zip(predicted.tpot, observed.tpot, strict=True)


def _start_points(loads: Sequence[RepeatedLoad]) -> list[Point]:
    """Return start points: short outputs bound the fixed part, fast first tokens the prompt's."""
    requests = [request for load in loads for run in load for request in run]
    tpots = sorted(request.tpot_seconds for request in requests if request.tpot_seconds is not None)
    step = nearest_rank(tpots, 5)
    tokens = sorted(request.ttft_seconds / request.prompt_tokens for request in requests)
    token = nearest_rank(tokens, 25)
    return [
        _encode_point(
            StepTime(
                weights=step * (1 - share / 2),
                kv_token=step * 3e-5,
                token=token / 2,
                sequence=step * 0.1 * share,
                fixed=step * share / 2,
            ),
            step * share / 2,
        )
        for share in _START_SHARES
    ]


def _decode_point(point: Point) -> tuple[StepTime, float]:
    weights, kv_token, token, sequence, fixed, frontend = (math.exp(value) for value in point)
    speed = StepTime(
        weights=weights,
        kv_token=kv_token,
        token=token,
        sequence=sequence,
        fixed=fixed,
        source="Measured",
    )
    return speed, frontend


def _encode_point(speed: StepTime, frontend: float) -> Point:
    """Return logarithms: no time is negative, and small parts are searched as finely as large."""
    parts = (speed.weights, speed.kv_token, speed.token, speed.sequence, speed.fixed, frontend)
    return tuple(math.log(part) for part in parts)


def _medians(runs: Sequence[Sequence[float]], percentiles: Sequence[int]) -> Iterator[float]:
    for percentile in percentiles:
        yield median(nearest_rank(values, percentile) for values in runs)
