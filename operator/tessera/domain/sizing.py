"""Does a model fit on a replica's hardware, with which engine limits, and what does it give?"""

import math
from dataclasses import dataclass

from tessera.api.inference_service import ModelShape
from tessera.domain import footprint, perf
from tessera.domain.hardware import Hardware
from tessera.domain.limits import LONGEST_CHUNK, Demand, Limits, best_limits

MIB = 2**20
GPU_MEMORY_UTILIZATION = 0.92
"""Share of the device that the engine takes; the default of vLLM 0.32."""
DEFAULT_MAX_MODEL_LEN = 8192
_KV_SHARE = 0.95
"""Of what stays after weights and reserve, so much is counted on for the cache."""
_BLOCK = 16
"""Tokens of one block of the cache; the engine keeps one block for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Where the memory of one device goes, in MiB."""

    weights_mib: int
    reserve_mib: int
    """Activations, workspaces, graphs, slots of adapters and, between devices, communication
    buffers."""
    budget_mib: int
    """What the engine may use at all."""
    cache_mib: int
    """What is counted on for the KV cache; negative when even the weights do not go in."""
    kv_tokens: int
    """Tokens of requests that the cache of the whole replica holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A model on hardware: what one replica takes and gives."""

    hardware: Hardware
    precision: str | None
    memory: Memory
    max_model_len: int
    limits: Limits
    step: perf.StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Why a model does not go onto hardware, with the numbers that would have to change."""

    hardware: Hardware
    precision: str | None
    kv_tokens: int
    """The longest context that would go in."""
    needed_mib: int
    """Memory of a device on which the asked context would go in; 0 when memory suffices and it is
    too slow."""
    inter_token_ms: float
    """Step time of a single stream."""
    prefill_ms: float
    """Time in which a usual prompt is read when nothing else runs."""


def kv_pool_gb(device_gb: float, devices: int, utilization: float, weights_gb: float) -> float:
    """Memory left for the KV cache in the simplest form (F06, second part): overhead is nothing."""
    return device_gb * devices * utilization - weights_gb


def memory(
    shape: ModelShape,
    precision: str | None,
    hardware: Hardware,
    utilization: float = GPU_MEMORY_UTILIZATION,
    adapters_mib: int = 0,
) -> Memory:
    """The memory plan of one device of a replica; adapters are part of the reserve."""
    weights = footprint.resident_bytes(shape, precision)
    weights_mib = _ceil(weights, hardware.devices * MIB)
    reserve_mib = _reserve_mib(shape, hardware.devices) + adapters_mib
    budget_mib = int(hardware.memory_mib * utilization)
    cache_mib = int((budget_mib - weights_mib - reserve_mib) * _KV_SHARE)
    blocks = cache_mib * MIB // (footprint.cache_bytes_per_token(shape, hardware.devices) * _BLOCK)
    return Memory(
        weights_mib=weights_mib,
        reserve_mib=reserve_mib,
        budget_mib=budget_mib,
        cache_mib=cache_mib,
        kv_tokens=max(0, blocks - 1) * _BLOCK,
    )


def size(demand: Demand, hardware: Hardware) -> Fit | Misfit:
    """Fit `demand` onto one replica of `hardware`."""
    plan = memory(demand.shape, demand.precision, hardware, adapters_mib=demand.adapters_mib)
    step = perf.step_time(demand.shape, demand.precision, hardware)
    limits = best_limits(demand, step, plan.kv_tokens)
    if plan.kv_tokens < demand.max_model_len or limits is None:
        alone = step.seconds(decoding=1, kv_tokens=demand.resident)
        reading = step.prefill_seconds(demand.input_tokens, LONGEST_CHUNK)
        return Misfit(
            hardware=hardware,
            precision=demand.precision,
            kv_tokens=plan.kv_tokens,
            needed_mib=_needed_mib(demand, hardware, plan),
            inter_token_ms=alone * 1e3,
            prefill_ms=reading * 1e3,
        )
    return Fit(
        hardware=hardware,
        precision=demand.precision,
        memory=plan,
        max_model_len=demand.max_model_len,
        limits=limits,
        step=step,
    )


def _needed_mib(demand: Demand, hardware: Hardware, plan: Memory) -> int:
    if plan.kv_tokens >= demand.max_model_len:
        return 0
    tokens = (_ceil(demand.max_model_len, _BLOCK) + 1) * _BLOCK
    cache = _ceil(tokens * footprint.cache_bytes_per_token(demand.shape, hardware.devices), MIB)
    used = plan.weights_mib + plan.reserve_mib + (cache + 1) / _KV_SHARE
    return math.ceil((used + 1) / GPU_MEMORY_UTILIZATION)


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)


def _reserve_mib(shape: ModelShape, devices: int) -> int:
    """Activations, workspaces and graphs: 2 GiB up to 8B parameters rising to 4 GiB at 70B, and
    1.8 GiB more on each device of a tensor-parallel group.
    """
    billions = shape.parameters / 1e9
    gib = 2 + 2 * min(max((billions - 8) / 62, 0), 1)
    return int((gib + (1.8 if devices > 1 else 0)) * 1024)
