"""The knee of a sweep: the load beyond which concurrency adds latency rather than throughput."""

from collections.abc import Sequence
from dataclasses import dataclass

KNEE_RULE = (
    "the load with the most output tokens/s per second of median latency "
    "(Kleinrock's power: throughput / latency); of equals the lower"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """One load of a sweep."""

    concurrency: int
    tokens_per_second: float
    response_seconds: float
    """Median end-to-end latency."""

    @property
    def power(self) -> float:
        return self.tokens_per_second / self.response_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """The knee; it may lie beyond where `passed` is False, since no higher load was tried."""

    concurrency: int
    passed: bool


def find_knee(points: Sequence[LoadPoint]) -> Knee | None:
    """Return the knee; None below three loads, or when the lowest load is the best one."""
    ordered = sorted(points, key=lambda point: point.concurrency)
    if len(ordered) < 3:
        return None
    best = max(ordered, key=lambda point: (point.power, -point.concurrency))
    if best is ordered[0] and best.concurrency > 1:
        return None
    return Knee(concurrency=best.concurrency, passed=best is not ordered[-1])
