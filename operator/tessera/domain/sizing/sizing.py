"""Sizing of one replica: memory plan, scheduler limits and throughput of a model on hardware."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf import footprint, sources
from tessera.domain.perf.engine_terms import DEFAULT_TERMS, EngineTerms
from tessera.domain.perf.step import PredictionError, StepTime
from tessera.domain.perf.step_range import fastest_step
from tessera.domain.sizing import pooling, scheduler_limits
from tessera.domain.sizing.scheduler_limits import (
    MAX_CHUNK_TOKENS,
    MAX_SEQUENCES,
    Demand,
    SchedulerLimits,
    best_limits,
)

MIB = 2**20
DEFAULT_MAX_MODEL_LEN = 8192
# Share of what remains after weights and reserve that is planned for the cache.
_KV_SHARE = 0.95
# Of a sampled token and each word: 16 bits as computed, 32 as sampled, and 32 of its probability.
_LOGIT_BYTES = 10
# A graph of one batch size, of the smallest and of the largest models in the logs of
# vllm-project/vllm#11349 (35 in 0.21 GiB) and #22897: few MiB are given back, many are reserved.
_LEAST_GRAPH_MIB, _MOST_GRAPH_MIB = 6, 28
# The longest objectives of a spec.
_MAX_TTFT, _MAX_ITL = timedelta(hours=1), timedelta(minutes=1)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemoryPlan:
    """The memory of one device of a replica by use, in MiB."""

    weights_mib: int
    reserve_mib: int
    """Activations, workspaces, CUDA graphs, adapter slots, draft weights and, with several devices,
    communication buffers."""
    usable_mib: int
    """Memory that the engine may use."""
    cache_mib: int
    """Memory planned for the KV cache, of an encoder 0; negative when the weights alone do not
    fit."""
    kv_tokens: int
    """Tokens that the cache of the whole replica holds in requests of the longest context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFit:
    """A model that fits on hardware, with the memory, limits and speed of one replica."""

    hardware: Hardware
    precision: str | None
    memory: DeviceMemoryPlan
    max_model_len: int
    limits: SchedulerLimits
    step: StepTime
    most_rate: float = 1.0
    """Throughput at the fast end of the error of its step times, as a share of the predicted one.
    """
    prompt_share: float = 0.0
    """Share of its time at full load that computing prompts takes."""
    at_best: bool = False
    """It keeps the SLO only at the fast end of the error of its step times."""

    @property
    def rate_error(self) -> float | None:
        """Return the error of the predicted throughput as a share; None where it is not known."""
        return self.error_by(self.step.error)

    def error_by(self, error: PredictionError | None) -> float | None:
        """Return the error of the throughput by that of step times, as a share.

        Decoding and prompts count by the time that a full replica spends on each.
        """
        if error is None:
            return None
        return error.decode + self.prompt_share * (error.prompts - error.decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMisfit:
    """A model that does not fit on hardware, with the numbers that would have to change."""

    hardware: Hardware
    precision: str | None
    kv_tokens: int
    """The longest context that would fit."""
    needed_mib: int
    """Memory of a device on which the requested context would fit; 0 when memory suffices and the
    hardware is too slow."""
    inter_token_ms: float
    """ITL of a single stream; 0 of a pooling model."""
    prefill_ms: float
    """Time to read a typical prompt when nothing else runs; of a pooling model, to answer beside
    other texts."""
    step: StepTime
    limits: SchedulerLimits | None = None
    """The limits of which the memory or the SLO allow less than `spec.engine` asks for."""


def plan_device_memory(  # noqa: PLR0913 - what is in memory beside the model are options
    shape: ModelShape,
    precision: str | None,
    hardware: Hardware,
    engine: EngineTerms = DEFAULT_TERMS,
    *,
    adapters_mib: int = 0,
    context: int | None = None,
    step_tokens: int = MAX_CHUNK_TOKENS,
) -> DeviceMemoryPlan:
    """Return the memory plan of one device of a replica, for steps of so many tokens at most.

    Without a `context` every layer counts as storing every token.
    """
    devices = hardware.devices
    weights_mib = _ceil(footprint.resident_bytes(shape, precision), devices * MIB)
    draft_bytes = 0 if engine.draft is None else footprint.resident_bytes(engine.draft, None)
    reserve_mib = (
        _reserve_mib(shape, devices)
        + _more_graphs_mib(engine)
        + _more_activations_mib(shape, devices, step_tokens, engine)
        + adapters_mib
        + _ceil(draft_bytes, devices * MIB)
    )
    usable_mib = int(hardware.memory_mib * engine.gpu_memory_utilization)
    cache_mib = int((usable_mib - weights_mib - reserve_mib) * _KV_SHARE)
    if shape.encoder_only:
        cache_mib = min(0, cache_mib)
    kv_cache = DeviceKvCache(shape=shape, devices=devices, engine=engine)
    return DeviceMemoryPlan(
        weights_mib=weights_mib,
        reserve_mib=reserve_mib,
        usable_mib=usable_mib,
        cache_mib=cache_mib,
        kv_tokens=kv_cache.tokens(cache_mib * MIB, context, step_tokens),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKvCache:
    """The KV cache of one device, for the tokens of the model and of its draft model."""

    shape: ModelShape
    devices: int
    engine: EngineTerms = DEFAULT_TERMS

    def tokens(self, available_bytes: int, context: int | None, step_tokens: int = 0) -> int:
        """Return the tokens that fit into so many bytes when all requests have `context` tokens.

        With sliding windows a token of a long request takes less than one of a short request.
        """
        if self.shape.encoder_only:
            return 0
        # The engine keeps one block for itself. Where no layer caches anything a block takes a
        # byte, so that the bounds of requests alone hold.
        block = self.engine.block_tokens
        if context is None:
            block_bytes = max(1, self._token_bytes(block, full_attention=True))
            return max(0, available_bytes // block_bytes - 1) * block
        blocks = _ceil(context, block)
        request_bytes = max(1, self._token_bytes(blocks * block, step_tokens=step_tokens))
        return max(0, available_bytes * blocks // request_bytes - 1) * block

    def bytes_per_request(self, context: int, step_tokens: int = 0) -> int:
        """Return the KV bytes of a request of `context` tokens, with the engine's own block."""
        block = self.engine.block_tokens
        blocks = _ceil(context, block)
        request_bytes = self._token_bytes(blocks * block, step_tokens=step_tokens)
        return request_bytes + _ceil(request_bytes, blocks)

    def _token_bytes(
        self, tokens: int, step_tokens: int = 0, *, full_attention: bool = False
    ) -> int:
        # The draft model keeps its cache in the same bits.
        bits = footprint.cache_bits(self.shape, self.engine.kv_bits)
        models = [model for model in (self.shape, self.engine.draft) if model is not None]
        if full_attention:
            return sum(
                tokens * footprint.cache_bytes_per_token(model, self.devices, bits)
                for model in models
            )
        return sum(
            footprint.cache_bytes(model, tokens, self.devices, bits, step_tokens)
            for model in models
        )


def size(
    demand: Demand, hardware: Hardware, *, at_best: bool = False
) -> ReplicaFit | ReplicaMisfit:
    """Return how `demand` fits on one replica of `hardware`, or why it does not.

    With `at_best` the limits are those at the fast end of the error of the step times.
    """
    # A pooling model has no logits.
    sampled = None if demand.is_pooling else demand.engine.max_num_seqs
    memory_plan = plan_device_memory(
        demand.shape,
        demand.precision,
        hardware,
        replace(demand.engine, max_num_seqs=sampled),
        adapters_mib=demand.adapters_mib,
        context=demand.max_model_len,
        step_tokens=demand.most_step_tokens,
    )
    step = sources.step_time(demand.shape, demand.precision, hardware, demand.engine)
    fastest = fastest_step(step, demand.shape, demand.precision, hardware)
    limits = None
    if _has_memory(demand, memory_plan):
        usual_kv_tokens = _device_kv_cache(demand, hardware).tokens(
            memory_plan.cache_mib * MIB, demand.resident_tokens
        )
        find_limits = pooling.best_limits if demand.is_pooling else best_limits
        limits = find_limits(demand, fastest if at_best else step, usual_kv_tokens)
    if limits is None or limits.max_num_seqs < (demand.engine.max_num_seqs or 0):
        if demand.is_pooling:
            single_stream, prefill = 0.0, pooling.least_answer_seconds(demand, step)
        else:
            single_stream = step.seconds(decoding=1, kv_tokens=demand.resident_tokens)
            prefill = step.prefill_seconds(demand.input_tokens, MAX_CHUNK_TOKENS)
        return ReplicaMisfit(
            hardware=hardware,
            precision=demand.precision,
            kv_tokens=memory_plan.kv_tokens,
            needed_mib=_needed_mib(demand, hardware, memory_plan),
            inter_token_ms=single_stream * 1e3,
            prefill_ms=prefill * 1e3,
            step=step,
            limits=limits,
        )
    rate_within = pooling.rate_within if demand.is_pooling else scheduler_limits.rate_within
    rate = rate_within(demand, step, limits)
    # Prompts that take twice as long show which part of the time they take.
    slow_prompts = rate_within(demand, step.stretched(decoding=1, prompts=2), limits)
    return ReplicaFit(
        hardware=hardware,
        precision=demand.precision,
        memory=memory_plan,
        max_model_len=demand.max_model_len,
        limits=replace(limits, tokens_per_second=rate) if at_best else limits,
        step=step,
        most_rate=rate_within(demand, fastest, limits) / rate,
        prompt_share=rate / slow_prompts - 1,
        at_best=at_best,
    )


def _has_memory(demand: Demand, memory_plan: DeviceMemoryPlan) -> bool:
    if demand.shape.encoder_only:
        return memory_plan.cache_mib >= 0
    return memory_plan.kv_tokens >= demand.max_model_len


class Objectives(NamedTuple):
    """Latency objectives that one replica keeps."""

    ttft: timedelta
    inter_token: timedelta


def attainable_objectives(demand: Demand, hardware: Hardware) -> tuple[Objectives, ...]:
    """Return the tightest objectives in whole milliseconds that a too slow replica keeps.

    Each pair has one objective of the demand; where neither can be kept, there is one pair with the
    tightest ITL.
    """
    inter_token = _least_itl(demand, hardware)
    ttft = _least_ttft(demand, hardware)
    pairs = []
    if inter_token is not None:
        pairs.append(Objectives(demand.ttft, inter_token))
    if ttft is not None:
        pairs.append(Objectives(ttft, demand.inter_token))
    if not pairs:
        patient = replace(demand, ttft=_MAX_TTFT)
        inter_token = _least_itl(patient, hardware)
        if inter_token is not None:
            ttft = _least_ttft(replace(patient, inter_token=inter_token), hardware)
            pairs.append(Objectives(ttft or _MAX_TTFT, inter_token))
    return tuple(pairs)


def _least_itl(demand: Demand, hardware: Hardware) -> timedelta | None:
    return _least(_MAX_ITL, lambda span: _fits(replace(demand, inter_token=span), hardware))


def _least_ttft(demand: Demand, hardware: Hardware) -> timedelta | None:
    return _least(_MAX_TTFT, lambda span: _fits(replace(demand, ttft=span), hardware))


def _fits(demand: Demand, hardware: Hardware) -> bool:
    return isinstance(size(demand, hardware), ReplicaFit)


def _least(longest: timedelta, keeps: Callable[[timedelta], bool]) -> timedelta | None:
    """Return the shortest objective that is kept; what keeps one keeps all longer ones."""
    spans = range(1, longest // _MILLISECOND + 1)
    index = bisect_left(spans, True, key=lambda span: keeps(span * _MILLISECOND))
    return spans[index] * _MILLISECOND if index < len(spans) else None


def _device_kv_cache(demand: Demand, hardware: Hardware) -> DeviceKvCache:
    return DeviceKvCache(shape=demand.shape, devices=hardware.devices, engine=demand.engine)


def _needed_mib(demand: Demand, hardware: Hardware, memory_plan: DeviceMemoryPlan) -> int:
    if _has_memory(demand, memory_plan):
        return 0
    request_bytes = _device_kv_cache(demand, hardware).bytes_per_request(
        demand.max_model_len, demand.most_step_tokens
    )
    used = (
        memory_plan.weights_mib
        + memory_plan.reserve_mib
        + (_ceil(request_bytes, MIB) + 1) / _KV_SHARE
    )
    return math.ceil((used + 1) / demand.engine.gpu_memory_utilization)


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)


def _reserve_mib(shape: ModelShape, devices: int) -> int:
    """Return the MiB of one device for activations, workspaces and CUDA graphs."""
    # Observed: 2 GiB up to 8B parameters rising to 4 GiB at 70B, and 1.8 GiB more on each device of
    # a tensor-parallel group.
    billions = shape.parameters / 1e9
    gib = 2 + 2 * min(max((billions - 8) / 62, 0), 1)
    return int((gib + (1.8 if devices > 1 else 0)) * 1024)


def _more_graphs_mib(engine: EngineTerms) -> int:
    """Return the MiB of one device for graphs beyond those that vLLM captures by default."""
    more = engine.graphs.count - DEFAULT_TERMS.graphs.count
    return more * (_MOST_GRAPH_MIB if more > 0 else _LEAST_GRAPH_MIB)


def _more_activations_mib(
    shape: ModelShape, devices: int, step_tokens: int, engine: EngineTerms
) -> int:
    """Return the MiB of one device for activations beyond those of limits that Tessera sets."""
    # At the widest point of a layer: input and residual, gate, up and their product, of 16 bits.
    active = shape.active_parameters or shape.parameters
    width = 3 * _ceil(footprint.feed_forward(shape, active), devices)
    width += 2 * footprint.hidden_size(shape)
    in_layers = max(0, step_tokens - MAX_CHUNK_TOKENS) * 2 * width
    # Every device has the logits of all sequences and their drafts, and their probabilities.
    rows = (engine.max_num_seqs or 0) * (1 + engine.draft_tokens)
    sampled = max(0, rows - MAX_SEQUENCES) * _LOGIT_BYTES * footprint.vocabulary(shape)
    return _ceil(in_layers + sampled, MIB)
