"""What goes into an engine and what comes out of it, as values."""

from dataclasses import dataclass
from enum import StrEnum


class SchedulingPolicy(StrEnum):
    """Who runs next: by arrival, or by priority (lower first) and then by arrival."""

    FCFS = "fcfs"
    PRIORITY = "priority"


class FinishReason(StrEnum):
    """Why a request ended, as the engine's API spells it."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class RejectionReason(StrEnum):
    """Why a request was not taken; the queue limits are spelt as in the engine's metrics."""

    TOO_LONG = "max_model_len"
    QUEUED_REQUESTS = "max_num_queued_reqs"
    QUEUED_TOKENS = "max_num_queued_tokens"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How much an engine holds and works on at a time."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    blocks: int
    """KV blocks as the engine counts them; one of them, the null block, holds no tokens."""
    block_size: int = 16
    policy: SchedulingPolicy = SchedulingPolicy.FCFS
    max_queued_requests: int | None = None
    """Waiting and running together."""
    max_queued_tokens: int | None = None
    """Prompt tokens of requests without a first token."""
    chunked_prefill: bool = True
    """Whether a prompt may be spread over several steps; else it waits for a step with room."""
    prefix_cache: bool = False
    shared_tokens: int | None = None
    """Tokens that one of `Request.shared` covers, in whole blocks; None: one block."""

    def __post_init__(self) -> None:
        if self.shared_tokens is not None and self.shared_tokens % self.block_size:
            raise ValueError("shared_tokens are not whole blocks")
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError("without chunks max_num_batched_tokens is below max_model_len")
        if (self.blocks - 1) * self.block_size < self.max_model_len:
            raise ValueError("the KV blocks hold no request of max_model_len")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens is below max_num_seqs")

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens of one request occupy."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A prompt and the answer that it will get; both lengths are at least 1."""

    id: int
    prompt_tokens: int
    output_tokens: int
    finish_reason: FinishReason = FinishReason.LENGTH
    """Why the last token is the last one."""
    priority: int = 0
    shared_prefixes: tuple[int, ...] = ()
    """Names of the prompt's beginnings, each of `Limits.shared_tokens` more: equal names mean equal
    tokens up to there. They may go on over the answer, for who asks on. None is negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """A request that left the engine."""

    request: EngineRequest
    reason: FinishReason
    output_tokens: int
    preemptions: int
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache when it was first admitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStep:
    """What one engine step did; requests go by their id."""

    seconds: float
    emitted: tuple[int, ...]
    """Every request that got a token: one each, or under speculation up to `gain`."""
    admitted: tuple[int, ...]
    """From waiting to running, for the first time or after a preemption."""
    first: tuple[int, ...]
    """Of `emitted`: for these it was the first token."""
    resumed: tuple[int, ...]
    """Of `emitted`: for these it was the first token after a preemption."""
    finished: tuple[FinishedRequest, ...]
    preempted: tuple[int, ...]
    prefill_tokens: int
    decoding: int
    """Requests that computed one token each."""
    kv_tokens: int
    """Tokens in the cache during the step."""
    tokens_per_request: int = 1
    """Tokens of each decoding request; only speculation makes it more than one."""
    queried_tokens: int = 0
    """Looked for in the prefix cache by requests that were admitted for the first time."""
    hit_tokens: int = 0
    """Of these, found there."""
    first_cached_tokens: int = 0
    """Prompt tokens of those in `first` that came from the prefix cache."""
