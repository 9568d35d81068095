"""Token usage and timing of a response, in vLLM's fields."""

from dataclasses import dataclass
from typing import Any

from tessera_lab.engine.requests import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of a request so far."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """Prompt tokens from the prefix cache, where the server reports them."""

    def totals(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def chat_chunk(self) -> dict[str, Any]:
        """Return the usage in the chunks of a chat."""
        return {**self.totals(), "completion_tokens_details": None}

    def final_chunk(self, created: dict[str, Any]) -> dict[str, Any]:
        """Return the usage of the last chunk; `created` has the fields on new cache entries."""
        if self.cached_tokens is None:
            return self.totals()
        return {
            **self.totals(),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, **created},
        }

    def full(self, created: int | None) -> dict[str, Any]:
        """Return the usage of a response that is no stream."""
        details = None
        if self.cached_tokens is not None:
            details = {
                "cached_tokens": self.cached_tokens,
                "created_cache_tokens": created,
                "multimodal_tokens": None,
            }
        return {
            **self.totals(),
            "prompt_tokens_details": details,
            "completion_tokens_details": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEnd:
    """How a sample ended."""

    reason: FinishReason
    stop: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timing of one request in seconds since its arrival (`--enable-per-request-metrics`)."""

    started: float
    first: float
    last: float
    tokens: int

    def to_milliseconds(self) -> dict[str, Any]:
        """Return the engine's fields, in milliseconds."""
        generation = self.last - self.first
        return {
            "time_to_first_token_ms": self.first * 1e3,
            "generation_time_ms": generation * 1e3,
            "queue_time_ms": self.started * 1e3,
            "mean_itl_ms": generation / (self.tokens - 1) * 1e3 if self.tokens > 1 else None,
            "tokens_per_second": self.tokens / self.last if self.last else None,
        }
