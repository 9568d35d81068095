"""Percentiles by nearest rank."""

from collections.abc import Sequence
from dataclasses import dataclass


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` of all do not exceed.

    Its rank is ceil(percent n / 100), so the result is always a measured value: of 100 values P95
    is the 95th.
    """
    # In integers, since 0.07 * 100 is a little more than 7 as a float.
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Mean, percentiles and maximum of some values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float


def distribution(values: Sequence[float]) -> Distribution | None:
    """Return the distribution; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=nearest_rank(ordered, 50),
        p90=nearest_rank(ordered, 90),
        p95=nearest_rank(ordered, 95),
        p99=nearest_rank(ordered, 99),
        maximum=ordered[-1],
    )
