"""Detection of whole GPUs that are larger than a replica needs."""

from tessera.domain.hardware.device import Hardware, product_slices
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.perf import footprint
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import MIB, ReplicaFit, size

# A device is oversized when weights and typical cache use a smaller share of its memory.
OVERSIZED_BELOW = 0.4
# A replica should hold so many requests of the full context length at once.
MIN_CONCURRENCY = 4


def max_concurrency(demand: Demand, fit: ReplicaFit) -> float:
    """Return the requests of the longest context that a replica has at once."""
    if demand.shape.encoder_only:
        # Texts leave nothing behind, so those of the next steps may wait in the engine.
        return fit.limits.max_num_seqs
    return fit.memory.kv_tokens / fit.max_model_len


def memory_share(demand: Demand, fit: ReplicaFit) -> float:
    """Return the share of a device's memory for weights, reserve and the typical cache."""
    devices, engine = fit.hardware.devices, demand.engine
    kv_bits = footprint.cache_bits(demand.shape, engine.kv_bits)
    request = sum(
        footprint.cache_bytes(model, demand.resident_tokens, devices, kv_bits)
        for model in (demand.shape, engine.draft)
        if model is not None
    )
    cache = fit.limits.max_num_seqs * request / MIB
    return (fit.memory.weights_mib + fit.memory.reserve_mib + cache) / fit.hardware.memory_mib


def oversize_message(demand: Demand, fit: ReplicaFit) -> str | None:
    """Return a hint for a single whole GPU of which less than 40% is used, else None."""
    hardware, share = fit.hardware, memory_share(demand, fit)
    if hardware.profile is not None or hardware.devices > 1 or share >= OVERSIZED_BELOW:
        return None
    smaller_slice = _sufficient_slice(demand, hardware)
    sufficient = f"a {smaller_slice.profile} slice" if smaller_slice else "a smaller GPU"
    return f"{share:.0%} of its memory is used; {sufficient} is enough"


def _sufficient_slice(demand: Demand, hardware: Hardware) -> Hardware | None:
    """Return the smallest slice of the product that meets the same SLO; None without one."""
    product = products().get(hardware.product)
    for candidate in product_slices(product) if product is not None else ():
        sizing = size(demand, candidate)
        if isinstance(sizing, ReplicaFit) and max_concurrency(demand, sizing) >= MIN_CONCURRENCY:
            return candidate
    return None
