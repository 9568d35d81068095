"""The order of levers by saving x confidence / (risk x effort), and how sure it is."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tessera_lab.levers.lever import Lever, LeverId, levers

DRAWS = 1000
# Confidence, risk and effort are each a guess within this factor.
SPREAD = 2.0
# A rank that changes in more draws than it stays says nothing.
STABLE_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedLever:
    """A lever at its place."""

    lever: LeverId
    saving: float
    """USD per month, above 0."""
    score: float
    stays: float
    """Share of the draws in which it has this place."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Levers that save, the best first."""

    rows: tuple[RankedLever, ...]

    @property
    def stable(self) -> int:
        """Return how many levers have their place in at least half of the draws."""
        return sum(row.stays >= STABLE_SHARE for row in self.rows)

    @property
    def is_noise(self) -> bool:
        """Return whether fewer than half of the places mean anything."""
        return 2 * self.stable < len(self.rows)


def rank(savings: Mapping[LeverId, float], seed: int = 1) -> Ranking:
    """Return the order of the levers that save anything."""
    scores = {
        lever: saving * _weight(levers()[lever]) for lever, saving in savings.items() if saving > 0
    }
    order = _order(scores)
    rng = random.Random(seed)  # noqa: S311 - not a secret
    counts = dict.fromkeys(order, 0)
    for _ in range(DRAWS):
        drawn = _order({lever: scores[lever] * _drawn_factor(rng) for lever in order})
        for lever, other in zip(order, drawn, strict=True):
            counts[lever] += lever is other
    return Ranking(
        tuple(
            RankedLever(
                lever=lever,
                saving=savings[lever],
                score=scores[lever],
                stays=counts[lever] / DRAWS,
            )
            for lever in order
        )
    )


def _weight(lever: Lever) -> float:
    return lever.confidence / (lever.risk.weight * lever.effort.weight)


def _order(scores: Mapping[LeverId, float]) -> list[LeverId]:
    return sorted(scores, key=lambda lever: (-scores[lever], lever))


def _drawn_factor(rng: random.Random) -> float:
    """Return three factors in one, each within `SPREAD` of 1 and even on a logarithmic scale."""
    return SPREAD ** sum(rng.uniform(-1, 1) for _ in range(3))
