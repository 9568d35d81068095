"""The knee of a sweep: the load beyond which more of it buys waiting rather than tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

KNEE_RULE = (
    "the load with the most output tokens/s for each second that the median answer takes "
    "(Kleinrock's power: throughput / latency); of equals the smaller"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """One load of a sweep."""

    concurrency: int
    tokens_per_second: float
    response_seconds: float
    """Of the median answer."""

    @property
    def power(self) -> float:
        return self.tokens_per_second / self.response_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where it is; not `passed` when no greater load was tried, so that it may lie beyond."""

    concurrency: int
    passed: bool


def find_knee(points: Sequence[LoadPoint]) -> Knee | None:
    """None of fewer than three loads, or when the smallest is the best: it may lie before."""
    ordered = sorted(points, key=lambda point: point.concurrency)
    if len(ordered) < 3:
        return None
    best = max(ordered, key=lambda point: (point.power, -point.concurrency))
    if best is ordered[0] and best.concurrency > 1:
        return None
    return Knee(concurrency=best.concurrency, passed=best is not ordered[-1])
