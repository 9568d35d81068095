"""The experts of a mixture: their part of a step."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsTime:
    """Coefficients of the seconds that a step spends in the experts of all layers."""

    read: float
    """Reading the weights of every expert."""
    unread_share: float
    """Share of the experts that a single token does not use; more tokens use more experts."""
    token: float
    """Computing one token."""
    unoverlapped: float = 0.0
    """Share of the shorter of reading and computing that the longer does not hide."""
    prompt_token: float = 0.0
    """Least time of one of the first `prompt_tokens` that a step reads of prompts."""
    prompt_tokens: float = 0.0
    """Tokens of prompts from which on more take no longer than by `token`."""

    def seconds(self, tokens: float, prefill_tokens: float) -> float:
        """Return the seconds of a step of so many tokens, of which some are of prompts."""
        # An expert stays unread only if every token of the step leaves it out.
        unread: float = self.unread_share**tokens
        reading = self.read * (1 - unread)
        computing = self.token * tokens
        if prefill_tokens:
            least = self.prompt_token * min(prefill_tokens, self.prompt_tokens)
            computing = max(computing, least)
        if reading < computing:
            reading, computing = computing, reading
        return reading + self.unoverlapped * computing

    def scaled(self, reading: float, computing: float) -> "ExpertsTime":
        """Return a copy whose reading and computing take so many times as long."""
        return replace(
            self,
            read=self.read * reading,
            token=self.token * computing,
            prompt_token=self.prompt_token * computing,
        )
