"""Time series that policies remember: windows of samples and of counters."""

from collections import deque
from dataclasses import dataclass

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
        self._counters: deque[tuple[float, int, Totals]] = deque()

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
        return LoadMeans(
            rate=(arrived - arrived_before) / (at - since) if at > since else 0.0,
            input_tokens=(totals.prompt_tokens - before.prompt_tokens) / finished
            if finished > 0
            else float(self._model.input_tokens),
            output_tokens=(totals.output_tokens - before.output_tokens) / finished
            if finished > 0
            else float(self._model.output_tokens),
            ttft=(totals.ttft_seconds - before.ttft_seconds) / first_tokens
            if first_tokens > 0
            else None,
            itl=(totals.gap_seconds - before.gap_seconds) / gaps if gaps > 0 else None,
        )
