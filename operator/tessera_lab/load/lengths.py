"""Distributions of prompt and output lengths."""

import math
import random
from dataclasses import dataclass

# Standard deviations between the median and P95 of a normal distribution.
_P95_SIGMAS = 1.6448536


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthDistribution:
    """A distribution of lengths: `512`, `uniform:100:900` or `lognormal:P50:P95`."""

    kind: str
    low: float
    high: float

    def draw(self, rng: random.Random) -> int:
        if self.kind == "uniform":
            return rng.randint(int(self.low), int(self.high))
        if self.kind == "lognormal":
            sigma = math.log(self.high / self.low) / _P95_SIGMAS
            return max(1, round(rng.lognormvariate(math.log(self.low), sigma)))
        return int(self.low)


def log_normal(median: float, p95: float) -> LengthDistribution:
    """Return log-normal lengths with this median and 95th percentile."""
    return LengthDistribution(kind="lognormal", low=median, high=p95)


def fixed_length(tokens: int) -> LengthDistribution:
    """Return a distribution of a single length."""
    return LengthDistribution(kind="fixed", low=tokens, high=tokens)
