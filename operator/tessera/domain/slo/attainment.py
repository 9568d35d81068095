"""How many values of a histogram are within a target.

A histogram counts values up to the edges of its buckets. At an edge the count is exact. Between two
edges it has bounds: the counts of both. What is shown then is interpolated, and decides nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

from tessera.domain.observed.latency import LatencyHistogram

# The rates of two buckets are extrapolated apart, so a larger edge may have a count that is smaller
# by a little.
_MAX_DECREASE = 1.0
_MAX_DECREASE_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Attainment:
    """How many values there are, and how many of them are within the target."""

    total: float
    lower: float
    """At least so many are within the target."""
    upper: float
    """At most so many are; the same as `lower` where the target is an edge."""
    estimate: float
    """Interpolated between both."""

    @property
    def lower_share(self) -> float:
        return self.lower / self.total

    @property
    def upper_share(self) -> float:
        return self.upper / self.total

    @property
    def share(self) -> float:
        """Return the interpolated share."""
        return self.estimate / self.total

    @property
    def is_exact(self) -> bool:
        return self.lower == self.upper

    def __add__(self, other: "Attainment") -> "Attainment":
        return Attainment(
            total=self.total + other.total,
            lower=self.lower + other.lower,
            upper=self.upper + other.upper,
            estimate=self.estimate + other.estimate,
        )

    def with_missed(self, count: float) -> "Attainment":
        """Return the attainment with further values that are certainly beyond the target."""
        return replace(self, total=self.total + count)


NOTHING = Attainment(total=0.0, lower=0.0, upper=0.0, estimate=0.0)


def attainment(histogram: LatencyHistogram, target_seconds: float) -> Attainment | None:
    """Return how many values are within the target; None for a histogram that contradicts itself.

    No interpolation goes beyond the last edge: up there the estimate is the lower bound.
    """
    points = _ascending(histogram)
    if points is None:
        return None
    below_edge, below = max(point for point in points if point[0] <= target_seconds)
    above = [point for point in points if point[0] >= target_seconds]
    above_edge, upper = above[0] if above else (target_seconds, histogram.total)
    if above and above_edge > below_edge:
        fraction = (target_seconds - below_edge) / (above_edge - below_edge)
    else:
        fraction = 0.0
    return Attainment(
        total=histogram.total,
        lower=below,
        upper=upper,
        estimate=below + fraction * (upper - below),
    )


def combined(parts: Iterable[Attainment | None]) -> Attainment | None:
    """Return the attainment of all values together; None if that of any part is not known."""
    known = list(parts)
    if any(part is None for part in known):
        return None
    return reduce(lambda total, part: total + part, filter(None, known), NOTHING)


def overdue_requests(waiting: float, arrivals_per_second: float, target_seconds: float) -> float:
    """Return how many waiting requests came longer ago than the target, by Little's law.

    In a queue in order of arrival, as many requests came within the target as arrive in that time.
    """
    return max(0.0, waiting - arrivals_per_second * target_seconds)


def edges_around(target_seconds: float, edges: Sequence[float]) -> tuple[float, ...]:
    """Return the edges by which a target is judged: itself, or the nearest ones on both sides."""
    below = [edge for edge in edges if edge <= target_seconds]
    above = [edge for edge in edges if edge >= target_seconds]
    nearest = {*([max(below)] if below else []), *([min(above)] if above else [])}
    return tuple(sorted(nearest))


def _ascending(histogram: LatencyHistogram) -> list[tuple[float, float]] | None:
    """Return edges with counts that never decrease, from 0 on; None where they really do."""
    points = [(0.0, 0.0), *histogram.at_most]
    tolerance = max(_MAX_DECREASE, _MAX_DECREASE_SHARE * histogram.total)
    counts = [*(count for _, count in points), histogram.total]
    if any(before - after > tolerance for before, after in pairwise(counts)):
        return None
    ascending, most = [], 0.0
    for edge, count in points:
        most = min(max(most, count), histogram.total)
        ascending.append((edge, most))
    return ascending
