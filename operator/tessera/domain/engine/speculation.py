"""Draft and verify: how many tokens a step gives when a small model guesses ahead."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A draft model beside the target."""

    acceptance: float
    """Probability that a drafted token is kept, given that those before it were; below 1."""
    draft_tokens: int
    """Guessed in every step."""
    draft_cost: float
    """Time of a draft's step as a share of the target's."""

    @property
    def expected(self) -> float:
        """Mean tokens of a step: (1 - a^(k+1)) / (1 - a) (F08)."""
        return (1 - self.acceptance ** (self.draft_tokens + 1)) / (1 - self.acceptance)

    @property
    def speedup(self) -> float:
        """Against plain decoding while memory binds: E / (1 + k c) (F08)."""
        return self.expected / (1 + self.draft_tokens * self.draft_cost)

    def steady(self) -> Iterator[int]:
        """Tokens of each step without chance: whole numbers whose mean is the expected one."""
        carried = 0.0
        while True:
            carried += self.expected
            gain = int(carried)
            carried -= gain
            yield gain

    def drawn(self, uniform: Iterable[float]) -> Iterator[int]:
        """Tokens of each step from numbers in [0, 1) that the caller draws."""
        numbers = iter(uniform)
        while True:
            kept = 0
            while kept < self.draft_tokens and next(numbers) < self.acceptance:
                kept += 1
            yield kept + 1
