"""Speculative decoding: tokens per step with a draft model."""

from collections.abc import Iterator
from dataclasses import dataclass

from tessera_lab.engine.requests import EngineLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A draft model beside the target model."""

    acceptance: float
    """Probability that a drafted token is accepted, given that those before it were; below 1."""
    draft_tokens: int
    """Tokens drafted in every step."""
    draft_cost: float
    """Time of a draft step as a share of the target's."""

    @property
    def expected_tokens(self) -> float:
        """Return the mean tokens per step: (1 - a^(k+1)) / (1 - a)."""
        return (1 - self.acceptance ** (self.draft_tokens + 1)) / (1 - self.acceptance)

    def check_limits(self, limits: EngineLimits) -> None:
        """Raise ValueError where drafted tokens beyond the end of an output do not fit."""
        drafted = self.draft_tokens
        if (limits.blocks - 1) * limits.block_size < limits.max_model_len + drafted:
            raise ValueError(
                "the KV blocks hold no request of max_model_len with its drafted tokens"
            )
        if limits.max_num_batched_tokens < limits.max_num_seqs * (1 + drafted):
            raise ValueError("max_num_batched_tokens is below max_num_seqs with drafted tokens")

    def steady_tokens(self) -> Iterator[int]:
        """Yield the tokens of each step without chance: integers whose mean is the expected one."""
        remainder = 0.0
        while True:
            remainder += self.expected_tokens
            tokens = int(remainder)
            remainder -= tokens
            yield tokens
