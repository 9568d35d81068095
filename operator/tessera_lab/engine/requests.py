"""Input and output of an engine as values."""

from dataclasses import dataclass
from enum import StrEnum


class SchedulingPolicy(StrEnum):
    """The order of waiting requests: by arrival, or by priority (lower first) and then arrival."""

    FCFS = "fcfs"
    PRIORITY = "priority"


class Allocator(StrEnum):
    """How a request gets KV blocks: as it grows, or all that it could ever need at admission."""

    PAGED = "paged"
    CONTIGUOUS = "contiguous"
    """`max_model_len` tokens for every request, as in engines before paging; for comparison."""


# `blocks_for` is called in every step, and looking up an enum's member is slow.
_CONTIGUOUS = Allocator.CONTIGUOUS


class FinishReason(StrEnum):
    """Why a request ended, as the engine's API spells it."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class RejectionReason(StrEnum):
    """Why a request was rejected; queue limits are spelled as in the engine's metrics."""

    TOO_LONG = "max_model_len"
    QUEUED_REQUESTS = "max_num_queued_reqs"
    QUEUED_TOKENS = "max_num_queued_tokens"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Limits on what an engine holds and computes at a time."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    blocks: int
    """KV blocks as the engine counts them; one of them, the null block, holds no tokens."""
    block_size: int = 16
    policy: SchedulingPolicy = SchedulingPolicy.FCFS
    max_queued_requests: int | None = None
    """Limit on waiting and running requests together."""
    max_queued_tokens: int | None = None
    """Limit on prompt tokens of requests without a first token."""
    allocator: Allocator = Allocator.PAGED
    chunked_prefill: bool = True
    """Whether a prompt may be spread over several steps; else it waits for a step with enough
    tokens."""
    prefix_cache: bool = False
    shared_tokens: int | None = None
    """Tokens that each name in `EngineRequest.shared_prefixes` covers, in whole blocks; None: one
    block."""

    def __post_init__(self) -> None:
        if self.shared_tokens is not None and self.shared_tokens % self.block_size:
            raise ValueError("shared_tokens are not whole blocks")
        if self.prefix_cache and self.allocator is Allocator.CONTIGUOUS:
            raise ValueError("a prefix cache needs paged blocks")
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError("without chunks max_num_batched_tokens is below max_model_len")
        if (self.blocks - 1) * self.block_size < self.max_model_len:
            raise ValueError("the KV blocks hold no request of max_model_len")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens is below max_num_seqs")

    def blocks_for(self, tokens: int) -> int:
        """Return the blocks that so many tokens of one request occupy."""
        if self.allocator is _CONTIGUOUS and tokens:
            tokens = self.max_model_len
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A prompt and the output that it will get; both lengths are at least 1."""

    id: int
    prompt_tokens: int
    output_tokens: int
    finish_reason: FinishReason = FinishReason.LENGTH
    """Why the output ends after `output_tokens`."""
    priority: int = 0
    shared_prefixes: tuple[int, ...] = ()
    """Names of the prompt's prefixes, each `EngineLimits.shared_tokens` longer than the one before:
    equal names mean equal tokens up to there. They may extend over the output, for a follow-up
    request. No name is negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """A request that left the engine."""

    request: EngineRequest
    reason: FinishReason
    output_tokens: int
    preemptions: int
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when it was first admitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStep:
    """What one engine step did; requests are given by their id."""

    seconds: float
    emitted: tuple[int, ...]
    """Requests that got tokens: one each, or `tokens_per_request` under speculation."""
    admitted: tuple[int, ...]
    """Requests that moved from waiting to running, for the first time or after a preemption."""
    first: tuple[int, ...]
    """Those of `emitted` that got their first token."""
    resumed: tuple[int, ...]
    """Those of `emitted` that got their first token after a preemption."""
    finished: tuple[FinishedRequest, ...]
    preempted: tuple[int, ...]
    prefill_tokens: int
    decoding: int
    """Requests that computed one token each."""
    kv_tokens: int
    """Tokens in the cache during the step."""
    tokens_per_request: int = 1
    """Tokens of each decoding request; more than one only under speculation."""
    drafted: bool = False
    """Whether the engine speculates."""
    queried_tokens: int = 0
    """Prompt tokens looked up in the prefix cache at first admissions."""
    hit_tokens: int = 0
    """Tokens of these that the cache held."""
    first_cached_tokens: int = 0
    """Prompt tokens of the requests in `first` that came from the prefix cache."""
