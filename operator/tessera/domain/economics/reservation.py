"""How many replicas are worth reserving for a load."""

import math
from dataclasses import dataclass

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class LoadCurve:
    """A load over time, in replicas that it needs."""

    spans: tuple[tuple[float, int], ...]
    """Seconds with the replicas for them; in total above 0 s."""

    @property
    def seconds(self) -> float:
        return sum(seconds for seconds, _ in self.spans)

    @property
    def mean(self) -> float:
        return sum(seconds * replicas for seconds, replicas in self.spans) / self.seconds

    @property
    def peak(self) -> int:
        return max(replicas for _, replicas in self.spans)

    def quantile(self, share: float) -> int:
        """Return the fewest replicas that suffice for this share of the time."""
        wanted, total = share * self.seconds * (1 - _ROUNDING), 0.0
        for seconds, replicas in sorted(self.spans, key=lambda span: span[1]):
            total += seconds
            if total >= wanted:
                return replicas
        return self.peak

    def share_above(self, replicas: int) -> float:
        """Return the share of the time in which more replicas are needed."""
        return sum(seconds for seconds, each in self.spans if each > replicas) / self.seconds

    def burst(self, reserved: int) -> float:
        """Return the mean of what is needed beyond so many replicas."""
        beyond = sum(seconds * max(0, each - reserved) for seconds, each in self.spans)
        return beyond / self.seconds


def break_even_use(reserved: float, alternative: float) -> float:
    """Return the share of the time from which on a reserved replica costs less."""
    return reserved / alternative if alternative else math.inf


def critical_reservation(curve: LoadCurve, reserved: float, alternative: float) -> int:
    """Return how many replicas are each needed for longer than reserving one pays from."""
    threshold = break_even_use(reserved, alternative) + _ROUNDING
    count = 0
    while curve.share_above(count) > threshold:
        count += 1
    return count
