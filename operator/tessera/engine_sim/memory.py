"""What the engine finds when it starts: its device, room for the KV cache, its limits."""

from collections.abc import Mapping
from dataclasses import dataclass

from tessera.api.inference_service import ModelShape
from tessera.domain import catalog, footprint, hardware, sizing
from tessera.domain.adapters import slots_mib
from tessera.domain.engine_requests import Limits, Policy
from tessera.domain.engine_values import AUTO
from tessera.domain.hardware import Hardware
from tessera.engine_sim.arguments import Arguments
from tessera.engine_sim.environment import DEFAULT_DEVICE, DEVICE, DEVICES, number
from tessera.engine_sim.errors import EngineExit

_GIB_MIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The KV cache as the engine laid it out."""

    blocks: int
    block_size: int
    bytes_per_token: int
    """On one device."""

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_size

    @property
    def longest(self) -> int:
        """Tokens of the longest request; one block is the null block."""
        return (self.blocks - 1) * self.block_size


def device(env: Mapping[str, str], tensor_parallel: int) -> Hardware:
    """The hardware that the environment names, as far as the engine uses it."""
    named = env.get(DEVICE) or DEFAULT_DEVICE
    product, _, profile = named.partition("/")
    found = _hardware(product, profile, tensor_parallel)
    if found is None:
        known = ", ".join(sorted(catalog.products()))
        raise EngineExit(1, f"{DEVICE}={named} is not known; known products: {known}")
    seen = int(number(env, DEVICES, tensor_parallel))
    if tensor_parallel > (1 if profile else seen):
        told = "slices cannot work together" if profile else f"{DEVICES}={seen}"
        message = f"World size ({tensor_parallel}) is larger than the available devices ({told})"
        raise EngineExit(1, f"ValueError: {message}")
    return found


def _hardware(product_name: str, profile: str, devices: int) -> Hardware | None:
    product = catalog.products().get(product_name)
    if product is None:
        return None
    return (
        hardware.slice_hardware(product, profile)
        if profile
        else hardware.whole_gpu_hardware(product, devices)
    )


def cache(shape: ModelShape, precision: str | None, place: Hardware, given: Arguments) -> Cache:
    """Room for the KV cache; the engine exits when the weights leave none."""
    slots = given.max_loras if given.lora_modules else 0
    adapters_mib = slots_mib(shape, slots, given.max_lora_rank)
    plan = sizing.plan_device_memory(
        shape, precision, place, given.gpu_memory_utilization, adapters_mib
    )
    if plan.weights_mib + plan.reserve_mib > place.memory_mib:
        message = (
            f"torch.OutOfMemoryError: CUDA out of memory: the weights take {_gib(plan.weights_mib)}"
            f" and the rest {_gib(plan.reserve_mib)} of {_gib(place.memory_mib)}"
        )
        raise EngineExit(1, f"{message} on each {place.product} {place.profile or ''}".rstrip())
    bytes_per_token = footprint.cache_bytes_per_token(shape, place.devices)
    block_size = given.block_size or 16
    room = given.kv_cache_memory_bytes
    if room is None:
        room = max(0, plan.cache_mib) * sizing.MIB
    blocks = given.num_gpu_blocks_override or room // (bytes_per_token * block_size)
    if blocks < 2:
        message = "No available memory for the cache blocks: raise --gpu-memory-utilization"
        raise EngineExit(1, f"ValueError: {message}, or take a larger device or a smaller model")
    return Cache(blocks=blocks, block_size=block_size, bytes_per_token=bytes_per_token)


def limits(shape: ModelShape, place: Hardware, room: Cache, given: Arguments) -> Limits:
    """The scheduler's limits; the engine exits when they cannot hold together."""
    default_tokens, default_seqs = _batch_defaults(place)
    tokens = given.max_num_batched_tokens or default_tokens
    sequences = given.max_num_seqs or min(default_seqs, tokens)
    if tokens < sequences:
        message = f"max_num_batched_tokens ({tokens}) is below max_num_seqs ({sequences})"
        raise EngineExit(1, f"ValueError: {message}; raise the one or lower the other")
    return Limits(
        max_model_len=_max_model_len(shape, room, given.max_model_len),
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
        blocks=room.blocks,
        block_size=room.block_size,
        policy=Policy(given.scheduling_policy),
        max_queued_requests=given.max_num_queued_reqs,
        max_queued_tokens=given.max_num_queued_tokens,
        prefix_cache=given.enable_prefix_caching is not False,
    )


def _max_model_len(shape: ModelShape, room: Cache, asked: int | None) -> int:
    longest = shape.max_position_embeddings
    if asked == AUTO:
        return min(longest, room.longest)
    wanted = asked or longest
    if wanted > longest:
        message = f"max_model_len ({wanted}) is beyond what the model was made for ({longest})"
        raise EngineExit(1, f"ValueError: {message}; lower --max-model-len")
    if wanted > room.longest:
        message = f"one request of max_model_len ({wanted}) does not fit into the KV cache"
        raise EngineExit(1, f"ValueError: {message}; {room.longest} tokens would fit")
    return wanted


def _batch_defaults(place: Hardware) -> tuple[int, int]:
    """Tokens and sequences of a step when the arguments do not say them.

    They go by the memory of a whole device; inside a MIG slice the engine cannot read it.
    """
    if place.profile is None and place.memory_mib >= 160 * _GIB_MIB:
        return 16384, 1024
    if place.profile is None and place.memory_mib >= 70 * _GIB_MIB and "A100" not in place.product:
        return 8192, 1024
    return 2048, 256


def _gib(mib: int) -> str:
    return f"{mib / _GIB_MIB:.1f} GiB"
