"""Limits that are nearly spent, and spread what is left over the time that is left."""

from dataclasses import dataclass

# So much of what is left may be charged at once.
BURST_SECONDS = 60.0
_HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class ThrottleTerms:
    """From when on a limit is spread, and how fast it may be spent in any case."""

    percent: int
    """Of the limit."""
    floor: int = 0
    """Nano-units an hour."""

    def rate(self, settled: int, limit: int, seconds_left: float) -> float | None:
        """Return the nano-units a second that may be charged; None below the threshold."""
        if 100 * settled < self.percent * limit:
            return None
        return max((limit - settled) / max(1.0, seconds_left), self.floor / _HOUR_SECONDS)


@dataclass(slots=True)
class ThrottleBucket:
    """A bucket of money of all gateways, as one of them sees it by the answers of an account."""

    level: float
    taken: int
    """Settled and lent, when it was looked at last."""
    at: float

    def wait_seconds(self, taken: int, rate: float, now: float) -> float:
        """Return how long new requests wait, after so much was settled and lent in all.

        What is returned fills the bucket again. It may be overdrawn by what runs.
        """
        filled = self.level + rate * max(0.0, now - self.at)
        self.level = min(rate * BURST_SECONDS, filled - (taken - self.taken))
        self.taken, self.at = taken, now
        return max(0.0, -self.level / rate) if rate else float("inf")
