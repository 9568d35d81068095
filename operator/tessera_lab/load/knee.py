"""The knee of a sweep: the load beyond which concurrency adds latency rather than throughput."""

from collections.abc import Mapping
from dataclasses import dataclass

KNEE_RULE = (
    "the load with the most output tokens/s per second of median latency "
    "(Kleinrock's power: throughput / latency); of equals the lower"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """The knee; it may lie beyond where `passed` is False, since no higher load was tried."""

    concurrency: int
    passed: bool


def find_knee(powers: Mapping[int, float]) -> Knee | None:
    """Return the knee by the power of each concurrency.

    None below three loads, or when the lowest load is the best one.
    """
    if len(powers) < 3:
        return None
    best = max(powers, key=lambda concurrency: (powers[concurrency], -concurrency))
    if best == min(powers) and best > 1:
        return None
    return Knee(concurrency=best, passed=best != max(powers))
