"""Tokens as an engine reports them, in the forms of all paths."""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from tessera.domain.observed.drafts import DraftCounts

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
_TotalTokens = Annotated[int, msgspec.Meta(ge=0, le=2 * 10**9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of one request; cached ones are part of the input, reasoning of the output."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def at_most(self, most_input: int, most_output: int) -> "TokenCounts":
        """Return what of these counts is possible: the same object, if all of it is."""
        if self.cached <= self.input <= most_input and self.reasoning <= self.output <= most_output:
            return self
        input_tokens, output = min(self.input, most_input), min(self.output, most_output)
        return TokenCounts(
            input=input_tokens,
            cached=min(self.cached, input_tokens),
            output=output,
            reasoning=min(self.reasoning, output),
        )


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None
    thinking_tokens: _Tokens | None = None
    """Of `/v1/messages`."""


class Usage(msgspec.Struct, gc=False):
    """The object `usage` of any path."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    total_tokens: _TotalTokens | None = None
    """Rankings may have nothing else."""
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_read_input_tokens: _Tokens | None = None
    """Of `/v1/messages`, whose `input_tokens` are without these and without the created ones."""
    cache_creation_input_tokens: _Tokens | None = None

    def counts(self) -> TokenCounts:
        """Return the tokens under their common names."""
        of_input = self.prompt_tokens_details or self.input_tokens_details or _Details()
        of_output = self.completion_tokens_details or self.output_tokens_details or _Details()
        cache_read = self.cache_read_input_tokens or 0
        named = self.prompt_tokens
        if named is None and self.input_tokens is not None:
            named = self.input_tokens + cache_read + (self.cache_creation_input_tokens or 0)
        has_output = self.completion_tokens is not None or self.output_tokens is not None
        if named is None and not has_output:
            named = self.total_tokens
        return TokenCounts(
            input=named or 0,
            cached=of_input.cached_tokens or cache_read,
            output=self.completion_tokens or self.output_tokens or 0,
            reasoning=of_output.reasoning_tokens or of_output.thinking_tokens or 0,
        )


class _Speculation(msgspec.Struct, gc=False):
    num_spec_steps: _Tokens
    num_draft_tokens: _Tokens
    num_accepted_draft_tokens: _Tokens


class _Metrics(msgspec.Struct, gc=False):
    speculative_decoding: _Speculation | None = None


_metrics_decoder = msgspec.json.Decoder(_Metrics | None)


def draft_counts(metrics: msgspec.Raw) -> DraftCounts | None:
    """Return what the object `metrics` of an answer has of drafts; None of any other shape.

    Engines call its shape experimental, and an answer is none the worse for another one.
    """
    try:
        parsed = _metrics_decoder.decode(metrics)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    counts = parsed.speculative_decoding if parsed is not None else None
    if counts is None:
        return None
    return DraftCounts(
        drafts=counts.num_spec_steps,
        drafted_tokens=counts.num_draft_tokens,
        accepted_tokens=counts.num_accepted_draft_tokens,
    )


def merged(before: TokenCounts | None, counts: TokenCounts) -> TokenCounts:
    """Return the larger counts: `/v1/messages` reports input at the start, output at the end."""
    if before is None:
        return counts
    return TokenCounts(
        input=max(before.input, counts.input),
        cached=max(before.cached, counts.cached),
        output=max(before.output, counts.output),
        reasoning=max(before.reasoning, counts.reasoning),
    )
