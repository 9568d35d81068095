"""The requests of a load test."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """One request before it is sent."""

    number: int
    arrival: float = 0.0
    """Seconds from the start of the load, in an open loop."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None = None
    """Ids of the prompt's blocks, `TRACE_BLOCK_TOKENS` tokens each: equal ids are equal text."""
    shared_tokens: int = 0
    """Tokens at the beginning that all prompts have in common."""


def shared_prompt_share(requests: Iterable[BenchRequest]) -> float:
    """Return the share of the prompts' tokens that began an earlier prompt as well."""
    seen: set[int] = set()
    repeated = total = unblocked = 0
    for request in requests:
        total += request.input_tokens
        if request.blocks is None:
            repeated += request.shared_tokens if unblocked else 0
            unblocked += 1
            continue
        known = 0
        for block in request.blocks:
            if block not in seen:
                break
            known += 1
        seen.update(request.blocks)
        repeated += min(known * TRACE_BLOCK_TOKENS, request.input_tokens)
    return repeated / total if total else 0.0


def requests_within(requests: Sequence[BenchRequest], max_tokens: int | None) -> list[BenchRequest]:
    """Return the requests whose prompt and output fit into `max_tokens` together."""
    if max_tokens is None:
        return list(requests)
    return [
        request
        for request in requests
        if request.input_tokens + request.output_tokens <= max_tokens
    ]
