"""Speculative decoding: tokens per step with a draft model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tessera.domain.perf.speculation import assumed_acceptance, decode_gain, expected_tokens
from tessera.domain.perf.step import Drafting, StepTime
from tessera_lab.engine.requests import EngineLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A draft model beside the target model."""

    acceptance: float
    """Probability that a drafted token is accepted, given that those before it were; below 1."""
    draft_tokens: int
    """Tokens drafted in every step."""
    draft_cost: float
    """Time of a draft step as a share of the target's; 0 for drafts without a model."""

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance < 1:
            raise ValueError(f"acceptance {self.acceptance:g}: write a number from 0 to below 1")
        if self.draft_tokens < 0 or not 0 <= self.draft_cost < math.inf:
            raise ValueError(
                f"{self.draft_tokens} drafted tokens at a cost of {self.draft_cost:g}: write "
                "numbers from 0"
            )

    @classmethod
    def at_temperature(
        cls, temperature: float, *, draft_tokens: int, draft_cost: float
    ) -> "Speculation":
        """Return speculation with the acceptance of draft models at a sampling temperature.

        It is interpolated between measurements at 0 and at 1. Raises ValueError outside.
        """
        if not 0 <= temperature <= 1:
            raise ValueError(
                f"temperature {temperature:g}: acceptance is known from 0 to 1; write it instead"
            )
        return cls(
            acceptance=assumed_acceptance(temperature),
            draft_tokens=draft_tokens,
            draft_cost=draft_cost,
        )

    @property
    def expected_tokens(self) -> float:
        """Return the mean tokens per step: (1 - a^(k+1)) / (1 - a)."""
        return expected_tokens(self.acceptance, self.draft_tokens)

    @property
    def speedup(self) -> float:
        """Return the gain of a single request where reading the weights is all that takes time."""
        return decode_gain(self.acceptance, self.draft_tokens, self.draft_cost)

    def step_time(self, model: StepTime) -> StepTime:
        """Return the time of a step of a model that drafts tokens and verifies them."""
        if not self.draft_tokens:
            return model
        drafting = Drafting(
            tokens=self.draft_tokens,
            accepted=self.expected_tokens - 1,
            step=model,
            cost=self.draft_cost,
        )
        return replace(model, drafting=drafting)

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
