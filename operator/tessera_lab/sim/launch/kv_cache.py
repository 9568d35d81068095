"""The simulated device, the memory for the KV cache, and the scheduler's limits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tessera.api.model_files import ModelShape
from tessera.domain.hardware import device as hardware
from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf import footprint
from tessera.domain.sizing import sizing
from tessera.domain.sizing.lora import slots_mib
from tessera.domain.vllm.flag_values import AUTO
from tessera_lab.engine.requests import EngineLimits, SchedulingPolicy
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.arguments import Arguments
from tessera_lab.sim.launch.environment import DEFAULT_DEVICE, DEVICE, DEVICES, read_number

_GIB_MIB = 1024
_ENCODER_BLOCKS = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCacheLayout:
    """The layout of the KV cache."""

    blocks: int
    block_size: int
    bytes_per_token: int
    """Bytes on one device."""

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_size

    @property
    def max_tokens(self) -> int:
        """Return the tokens of the longest request; one block is the null block."""
        return (self.blocks - 1) * self.block_size


def simulated_hardware(env: Mapping[str, str], tensor_parallel: int) -> Hardware:
    """Return the hardware that the environment names, as far as the engine uses it."""
    named = env.get(DEVICE) or DEFAULT_DEVICE
    product, _, profile = named.partition("/")
    target = _catalog_hardware(product, profile, tensor_parallel)
    if target is None:
        known = ", ".join(sorted(catalog.products()))
        raise EngineExit(1, f"{DEVICE}={named} is not known; known products: {known}")
    visible = int(read_number(env, DEVICES, tensor_parallel))
    if tensor_parallel > (1 if profile else visible):
        reason = "slices cannot work together" if profile else f"{DEVICES}={visible}"
        message = f"World size ({tensor_parallel}) is larger than the available devices ({reason})"
        raise EngineExit(1, f"ValueError: {message}")
    return target


def _catalog_hardware(product_name: str, profile: str, devices: int) -> Hardware | None:
    product = catalog.products().get(product_name)
    if product is None:
        return None
    return (
        hardware.slice_hardware(product, profile)
        if profile
        else hardware.whole_gpu_hardware(product, devices)
    )


def kv_cache_layout(
    shape: ModelShape,
    precision: str | None,
    target: Hardware,
    arguments: Arguments,
    draft: ModelShape | None = None,
) -> KvCacheLayout:
    """Return the KV cache; raise EngineExit when the weights leave no memory for it."""
    slots = arguments.max_loras if arguments.lora_modules else 0
    adapters_mib = slots_mib(shape, slots, arguments.max_lora_rank)
    terms = replace(arguments.terms, draft=draft)
    plan = sizing.plan_device_memory(shape, precision, target, terms, adapters_mib=adapters_mib)
    if plan.weights_mib + plan.reserve_mib > target.memory_mib:
        message = (
            "Failed to load model - not enough GPU memory. (original error: CUDA out of memory.) "
            f"torch.OutOfMemoryError: CUDA out of memory: the weights take {_gib(plan.weights_mib)}"
            f" and the rest {_gib(plan.reserve_mib)} of {_gib(target.memory_mib)}"
        )
        raise EngineExit(1, f"{message} on each {target.product} {target.profile or ''}".rstrip())
    block_size = terms.block_tokens
    if shape.encoder_only:
        # It keeps nothing of a text, so the cache bounds nothing.
        return KvCacheLayout(blocks=_ENCODER_BLOCKS, block_size=block_size, bytes_per_token=0)
    kv_bits = footprint.cache_bits(shape, terms.kv_bits)
    bytes_per_token = footprint.cache_bytes_per_token(shape, target.devices, kv_bits)
    cache_bytes = arguments.kv_cache_memory_bytes
    if cache_bytes is None:
        cache_bytes = max(0, plan.cache_mib) * sizing.MIB
    blocks = arguments.num_gpu_blocks_override or cache_bytes // (bytes_per_token * block_size)
    if blocks < 2:
        message = "No available memory for the cache blocks: raise --gpu-memory-utilization"
        raise EngineExit(1, f"ValueError: {message}, or take a larger device or a smaller model")
    return KvCacheLayout(blocks=blocks, block_size=block_size, bytes_per_token=bytes_per_token)


def engine_limits(
    shape: ModelShape,
    target: Hardware,
    kv_cache: KvCacheLayout,
    arguments: Arguments,
    *,
    allows_long: bool = False,
) -> EngineLimits:
    """Return the scheduler's limits; raise EngineExit when they contradict each other."""
    default_tokens, default_seqs = _batch_defaults(target)
    tokens = arguments.max_num_batched_tokens or default_tokens
    sequences = arguments.max_num_seqs or min(default_seqs, tokens)
    if tokens < sequences:
        message = f"max_num_batched_tokens ({tokens}) is below max_num_seqs ({sequences})"
        raise EngineExit(1, f"ValueError: {message}; raise the one or lower the other")
    length = _max_model_len(shape, kv_cache, arguments.max_model_len, allows_long=allows_long)
    if arguments.enable_chunked_prefill is False and tokens < length:
        message = f"max_num_batched_tokens ({tokens}) is smaller than max_model_len ({length})"
        raise EngineExit(1, f"ValueError: {message}, and prompts are not read in chunks")
    return EngineLimits(
        max_model_len=length,
        chunked_prefill=arguments.enable_chunked_prefill is not False,
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
        blocks=kv_cache.blocks,
        block_size=kv_cache.block_size,
        policy=SchedulingPolicy(arguments.scheduling_policy),
        max_queued_requests=arguments.max_num_queued_reqs,
        max_queued_tokens=arguments.max_num_queued_tokens,
        prefix_cache=arguments.enable_prefix_caching is not False,
    )


def _max_model_len(
    shape: ModelShape, kv_cache: KvCacheLayout, requested: int | None, *, allows_long: bool
) -> int:
    model_limit = shape.derived_positions or shape.max_position_embeddings
    if requested == AUTO:
        return min(model_limit, kv_cache.max_tokens)
    length = requested or model_limit
    if length > model_limit and not allows_long:
        message = f"max_model_len ({length}) is beyond what the model was made for ({model_limit})"
        raise EngineExit(1, f"ValueError: {message}; lower --max-model-len")
    if length > kv_cache.max_tokens:
        needed, available = (
            f"{tokens * kv_cache.bytes_per_token / 2**30:.2f} GiB"
            for tokens in (length, kv_cache.max_tokens)
        )
        message = (
            f"To serve at least one request with the models's max seq len ({length}), ({needed} KV "
            "cache is needed, which is larger than the available KV cache memory "
            f"({available}). Based on the available memory, the estimated maximum model length is "
            f"{kv_cache.max_tokens}."
        )
        raise EngineExit(1, f"ValueError: {message}")
    return length


def _batch_defaults(target: Hardware) -> tuple[int, int]:
    """Return the default tokens and sequences of a step.

    They depend on the memory of a whole device; inside a MIG slice the engine cannot read it.
    """
    profile = target.profile
    if profile is None and target.memory_mib >= 160 * _GIB_MIB:
        return 16384, 1024
    if profile is None and target.memory_mib >= 70 * _GIB_MIB and "A100" not in target.product:
        return 8192, 1024
    return 2048, 256


def _gib(mib: int) -> str:
    return f"{mib / _GIB_MIB:.1f} GiB"
