"""Tokens and moments of an answer, as the engine tells them."""

from dataclasses import dataclass
from typing import Any

from tessera_lab.engine.requests import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of a request so far."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """What came from the prefix cache, where it is to be told."""

    def totals(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def chat_chunk(self) -> dict[str, Any]:
        """In the chunks of a chat."""
        return {**self.totals(), "completion_tokens_details": None}

    def final_chunk(self, created: dict[str, Any]) -> dict[str, Any]:
        """In the last chunk; `created` is what the dialect says of new cache entries."""
        if self.cached_tokens is None:
            return self.totals()
        return {
            **self.totals(),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, **created},
        }

    def full(self, created: int | None) -> dict[str, Any]:
        """In an answer that is no stream."""
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
    """How an answer ended."""

    reason: FinishReason
    stop: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Moments of one request, in seconds since it arrived; `--enable-per-request-metrics`."""

    started: float
    first: float
    last: float
    tokens: int

    def to_milliseconds(self) -> dict[str, Any]:
        """As the engine tells them, in milliseconds."""
        generation = self.last - self.first
        return {
            "time_to_first_token_ms": self.first * 1e3,
            "generation_time_ms": generation * 1e3,
            "queue_time_ms": self.started * 1e3,
            "mean_itl_ms": generation / (self.tokens - 1) * 1e3 if self.tokens > 1 else None,
            "tokens_per_second": self.tokens / self.last if self.last else None,
        }
