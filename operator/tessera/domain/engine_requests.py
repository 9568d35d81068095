"""What goes into an engine and what comes out of it, as values."""

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    """Who runs next: by arrival, or by priority (lower first) and then by arrival."""

    FCFS = "fcfs"
    PRIORITY = "priority"


class Reason(StrEnum):
    """Why a request ended, as the engine's API spells it."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class Refusal(StrEnum):
    """Why a request was not taken; the queue limits are spelt as in the engine's metrics."""

    TOO_LONG = "max_model_len"
    QUEUED_REQUESTS = "max_num_queued_reqs"
    QUEUED_TOKENS = "max_num_queued_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an engine holds and works on at a time."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    blocks: int
    """KV blocks as the engine counts them; one of them, the null block, holds no tokens."""
    block_size: int = 16
    policy: Policy = Policy.FCFS
    max_queued_requests: int | None = None
    """Waiting and running together."""
    max_queued_tokens: int | None = None
    """Prompt tokens of requests without a first token."""

    def __post_init__(self) -> None:
        if (self.blocks - 1) * self.block_size < self.max_model_len:
            raise ValueError("the KV blocks hold no request of max_model_len")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens is below max_num_seqs")

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens of one request occupy."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and the answer that it will get; both lengths are at least 1."""

    id: int
    prompt_tokens: int
    output_tokens: int
    ends: Reason = Reason.LENGTH
    """Why the last token is the last one."""
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request that left the engine."""

    request: Request
    reason: Reason
    output_tokens: int
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one engine step did; requests go by their id."""

    seconds: float
    emitted: tuple[int, ...]
    """Every request that got a token, exactly one each."""
    admitted: tuple[int, ...]
    """From waiting to running, for the first time or after a preemption."""
    first: tuple[int, ...]
    """Of `emitted`: for these it was the first token."""
    resumed: tuple[int, ...]
    """Of `emitted`: for these it was the first token after a preemption."""
    finished: tuple[Finished, ...]
    preempted: tuple[int, ...]
    prefill_tokens: int
    decoding: int
    """Requests that computed one token each."""
    kv_tokens: int
    """Tokens in the cache during the step."""
