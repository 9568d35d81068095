"""One engine on one replica, by the options that a user can run."""

from dataclasses import dataclass
from enum import StrEnum

from tessera.api.model_files import ModelShape
from tessera.api.text import counted
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.perf import sources
from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.perf.footprint import KvBits
from tessera.domain.perf.step import StepTime
from tessera.domain.sizing.precision import ALTERNATIVES, mismatch_reason, unsupported_reason
from tessera.domain.sizing.sizing import (
    DEFAULT_MAX_MODEL_LEN,
    DeviceMemoryPlan,
    plan_device_memory,
)
from tessera.domain.sizing.tensor_parallel import sharding_problem
from tessera_lab.engine.requests import Allocator, EngineLimits
from tessera_lab.engine.speculation import Speculation

BLOCK_TOKENS = 16
DEFAULT_MAX_NUM_SEQS, DEFAULT_MAX_NUM_BATCHED_TOKENS = 256, 8192
_GIB_MIB = 1024


class KvCache(StrEnum):
    """Where the keys and values of earlier tokens are."""

    PAGED = "paged"
    """In blocks, which a request takes as it grows."""
    CONTIGUOUS = "contiguous"
    """In `max_model_len` tokens for every request, as in engines before paging."""
    NONE = "none"
    """Nowhere: every step computes the whole history again."""


class EngineSetupError(ValueError):
    """A setup that cannot run; the sentence says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """A model on the hardware of one replica, and how the engine serves it.

    Raises EngineSetupError where the options contradict each other or the model does not fit.
    """

    shape: ModelShape
    hardware: Hardware
    precision: str | None = None
    """None: as in the model's files."""
    kv_bits: KvBits = 16
    static_batch: int | None = None
    """Requests of a batch that runs until its longest output ends; None: continuous batching."""
    kv_cache: KvCache = KvCache.PAGED
    prefix_cache: bool = False
    shared_tokens: int | None = None
    """Tokens of each name in `EngineRequest.shared_prefixes`; None: one block of 16."""
    chunked_prefill: bool = True
    """A static batch computes its prompts in one step in any case."""
    speculation: Speculation | None = None
    draft: ModelShape | None = None
    """Draft model in the memory of the same devices; None: speculation needs no memory."""
    max_model_len: int = DEFAULT_MAX_MODEL_LEN
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    """Not used by static batches, like `max_num_batched_tokens`."""
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS

    def __post_init__(self) -> None:
        problem = (
            self._model_problem()
            or self._batching_problem()
            or self._cache_problem()
            or self._step_problem()
            or self._memory_problem()
        )
        if problem is not None:
            raise EngineSetupError(problem)

    @property
    def slots(self) -> int:
        """Return the requests that run at a time at most."""
        return self.static_batch or self.max_num_seqs

    @property
    def memory(self) -> DeviceMemoryPlan:
        return plan_device_memory(
            self.shape,
            self.precision,
            self.hardware,
            self._terms,
            context=self.max_model_len,
        )

    @property
    def step_time(self) -> StepTime:
        return sources.step_time(self.shape, self.precision, self.hardware, self._terms)

    @property
    def limits(self) -> EngineLimits:
        """Return the limits of the engine with continuous batching."""
        contiguous = self.kv_cache is KvCache.CONTIGUOUS
        return EngineLimits(
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            # One more, the null block, holds no tokens.
            blocks=self.memory.kv_tokens // BLOCK_TOKENS + 1,
            block_size=BLOCK_TOKENS,
            allocator=Allocator.CONTIGUOUS if contiguous else Allocator.PAGED,
            chunked_prefill=self.chunked_prefill,
            prefix_cache=self.prefix_cache,
            shared_tokens=self.shared_tokens,
        )

    def _model_problem(self) -> str | None:
        shape, hardware = self.shape, self.hardware
        product = products().get(hardware.product)
        longest = shape.max_position_embeddings
        if not 2 <= self.max_model_len <= longest:
            return f"max_model_len {self.max_model_len}: write a number from 2 to {longest}"
        if self.precision not in (None, *ALTERNATIVES):
            return f"precision {self.precision}: write {', '.join(ALTERNATIVES)}, or leave it out"
        return (
            mismatch_reason(shape, self.precision)
            or (product and unsupported_reason(shape, self.precision, product))
            or sharding_problem(shape, hardware.devices)
        )

    def _batching_problem(self) -> str | None:
        if self.static_batch is None:
            if self.kv_cache is KvCache.NONE:
                return "without a KV cache only static batches run: set the size of a batch"
        elif self.static_batch < 1:
            return f"a static batch of {self.static_batch}: write a number from 1"
        elif self.prefix_cache or self.speculation is not None:
            lever = "a prefix cache" if self.prefix_cache else "speculation"
            return f"{lever} needs continuous batching: leave out the static batch"
        return None

    def _cache_problem(self) -> str | None:
        if self.prefix_cache and self.kv_cache is not KvCache.PAGED:
            return f"a prefix cache needs a paged KV cache, this is {self.kv_cache}"
        if self.draft is not None and self.speculation is None:
            return "a draft model without speculation: leave it out, or set the drafted tokens"
        if self.shared_tokens is not None and (
            self.shared_tokens < 1 or self.shared_tokens % BLOCK_TOKENS
        ):
            return f"shared_tokens {self.shared_tokens}: write a multiple of {BLOCK_TOKENS}"
        return None

    def _step_problem(self) -> str | None:
        if self.static_batch is not None:
            return None
        if self.max_num_seqs < 1:
            return f"max_num_seqs {self.max_num_seqs}: write a number from 1"
        tokens, drafted = self.max_num_batched_tokens, self._draft_tokens
        if tokens < self.max_num_seqs * (1 + drafted):
            return (
                f"max_num_batched_tokens {tokens} is below the {1 + drafted} of a step for each "
                f"of max_num_seqs {self.max_num_seqs}: raise the first or lower the second"
            )
        if not self.chunked_prefill and tokens < self.max_model_len:
            return (
                f"without chunked prefill max_num_batched_tokens {tokens} has to be at least "
                f"max_model_len {self.max_model_len}"
            )
        return None

    def _memory_problem(self) -> str | None:
        memory, hardware = self.memory, self.hardware
        on_device = f"on {hardware.product} ({hardware.name})"
        advice = "take more or larger GPUs, or a smaller precision"
        if memory.cache_mib <= 0:
            return (
                f"the weights take {memory.weights_mib / _GIB_MIB:.1f} GiB and the engine "
                f"{memory.reserve_mib / _GIB_MIB:.1f} GiB of the "
                f"{memory.usable_mib / _GIB_MIB:.1f} GiB of each device {on_device}: {advice}"
            )
        if self.kv_cache is KvCache.NONE:
            return None
        room = memory.kv_tokens - self._draft_tokens
        if room < self.max_model_len:
            return (
                f"the KV cache {on_device} holds {counted(max(0, room), 'token')}, max_model_len "
                f"is {self.max_model_len}: lower it, or {advice}"
            )
        if self.kv_cache is KvCache.CONTIGUOUS and self.static_batch is not None:
            most = memory.kv_tokens // self.max_model_len
            if self.static_batch > most:
                return (
                    f"the KV cache {on_device} holds {counted(most, 'request')} of max_model_len "
                    f"{self.max_model_len}, the static batch has {self.static_batch}: lower either"
                )
        return None

    @property
    def _terms(self) -> EngineTerms:
        return EngineTerms(kv_bits=self.kv_bits, draft=self.draft)

    @property
    def _draft_tokens(self) -> int:
        return 0 if self.speculation is None else self.speculation.draft_tokens


def draft_cost(
    draft: ModelShape, target: ModelShape, precision: str | None, hardware: Hardware
) -> float:
    """Return the predicted time of a draft model's step as a share of the target's."""
    steps = (
        sources.step_time(draft, None, hardware),
        sources.step_time(target, precision, hardware),
    )
    draft_seconds, target_seconds = (step.seconds(decoding=1, kv_tokens=1) for step in steps)
    return draft_seconds / target_seconds
