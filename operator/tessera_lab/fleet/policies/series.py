"""Time series that policies remember: windows of samples and of counters, and forecasts."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from tessera_lab.fleet.observation import Observation, ReplicaModel, Totals


class TimeWindow:
    """The values of the last seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()

    def add(self, at: float, value: float) -> None:
        """Add a value; those that are as old as the window leave."""
        self._values.append((at, value))
        while self._values[0][0] <= at - self._seconds and len(self._values) > 1:
            self._values.popleft()

    def mean(self) -> float:
        """Return the mean of the values; at least one was added."""
        return sum(value for _, value in self._values) / len(self._values)

    def max(self) -> float:
        """Return the largest value."""
        return max(value for _, value in self._values)

    def min(self) -> float:
        """Return the smallest value."""
        return min(value for _, value in self._values)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMeans:
    """The load over a window of counters."""

    rate: float
    """Requests per second that came to the gateway."""
    input_tokens: float
    output_tokens: float
    ttft: float | None
    """Seconds; None if no request got its first token."""
    itl: float | None


class LoadWindow:
    """The counters of the last seconds, as `rate()` of Prometheus reads them."""

    def __init__(self, seconds: float, model: ReplicaModel) -> None:
        self._seconds = seconds
        self._model = model
        self._counters = deque([(0.0, 0, Totals())])

    def add(self, observation: Observation) -> LoadMeans:
        """Add the counters and return the means; lengths are typical until any request ended."""
        at, arrived, totals = observation.at, observation.arrived, observation.totals
        self._counters.append((at, arrived, totals))
        while len(self._counters) > 1 and self._counters[1][0] <= at - self._seconds:
            self._counters.popleft()
        since, arrived_before, before = self._counters[0]
        finished = totals.finished - before.finished
        first_tokens = totals.first_tokens - before.first_tokens
        gaps = totals.output_gaps - before.output_gaps
        prompts = _mean(totals.prompt_tokens - before.prompt_tokens, finished)
        outputs = _mean(totals.output_tokens - before.output_tokens, finished)
        return LoadMeans(
            rate=(arrived - arrived_before) / (at - since) if at > since else 0.0,
            input_tokens=float(self._model.input_tokens) if prompts is None else prompts,
            output_tokens=float(self._model.output_tokens) if outputs is None else outputs,
            ttft=_mean(totals.ttft_seconds - before.ttft_seconds, first_tokens),
            itl=_mean(totals.gap_seconds - before.gap_seconds, gaps),
        )


def _mean(total: float, count: int) -> float | None:
    return total / count if count > 0 else None


class Forecaster(Protocol):
    """Says what comes after the values so far."""

    def add(self, value: float) -> None:
        """Add the value of the interval that ended."""
        ...

    def next(self, steps: int = 1) -> list[float]:
        """Return the values of the next intervals, none below 0; at least one was added."""
        ...


class ConstantForecast:
    """The last value stays."""

    def __init__(self) -> None:
        self._last = 0.0

    def add(self, value: float) -> None:
        """Add a value."""
        self._last = value

    def next(self, steps: int = 1) -> list[float]:
        """Return the last value."""
        return [self._last] * steps


class AutoregressiveForecast:
    """ARIMA(1, 1, 0): each change is a share of the change before, fitted by least squares."""

    # Changes to fit on; fewer than the first say nothing of the share.
    _FEWEST, _MOST = 4, 60

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=self._MOST + 1)

    def add(self, value: float) -> None:
        """Add a value."""
        self._values.append(value)

    def next(self, steps: int = 1) -> list[float]:
        """Return the path of the expected changes."""
        values = list(self._values)
        changes = [after - before for before, after in pairwise(values)]
        share = 0.0
        if len(changes) > self._FEWEST:
            squares = sum(change * change for change in changes[:-1])
            products = sum(a * b for a, b in pairwise(changes))
            share = max(-0.9, min(0.9, products / squares)) if squares else 0.0
        value, change = values[-1], changes[-1] if changes else 0.0
        path = []
        for _ in range(steps):
            change *= share
            value += change
            path.append(max(0.0, value))
        return path


class TrendForecast:
    """A level and its trend by a Kalman filter, with the noises of Dynamo's planner."""

    _LEVEL_NOISE, _TREND_NOISE, _SAMPLE_NOISE = 1.0, 0.1, 10.0

    def __init__(self) -> None:
        self._level: float | None = None
        self._trend = 0.0
        self._variance = (self._SAMPLE_NOISE, 0.0, self._SAMPLE_NOISE)

    def add(self, value: float) -> None:
        """Correct level and trend by a value."""
        if self._level is None:
            self._level = value
            return
        level = self._level + self._trend
        # Of the level, of both together and of the trend, after one step.
        of_level, of_both, of_trend = self._variance
        of_level += 2 * of_both + of_trend + self._LEVEL_NOISE
        of_both += of_trend
        of_trend += self._TREND_NOISE
        total = of_level + self._SAMPLE_NOISE
        error = value - level
        self._level = level + of_level / total * error
        self._trend += of_both / total * error
        self._variance = (
            of_level * self._SAMPLE_NOISE / total,
            of_both * self._SAMPLE_NOISE / total,
            of_trend - of_both * of_both / total,
        )

    def next(self, steps: int = 1) -> list[float]:
        """Return the line of level and trend."""
        level = self._level or 0.0
        return [max(0.0, level + step * self._trend) for step in range(1, steps + 1)]
