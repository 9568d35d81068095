"""Is a whole GPU more than a replica needs, and which slice of it would do?"""

from tessera.domain.hardware.device import Hardware, product_slices
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.perf import footprint
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import MIB, ReplicaFit, size

# A device is oversized when weights and usual cache use less of its memory.
OVERSIZED_BELOW = 0.4
# A replica that cannot hold so many requests of full length is a toy.
MIN_CONCURRENCY = 4


def memory_share(demand: Demand, fit: ReplicaFit) -> float:
    """Share of a device that weights, reserve and the cache of usual requests take."""
    devices = fit.hardware.devices
    request = footprint.cache_bytes(demand.shape, demand.resident_tokens, devices, demand.kv_bits)
    cache = fit.limits.max_num_seqs * request / MIB
    return (fit.memory.weights_mib + fit.memory.reserve_mib + cache) / fit.hardware.memory_mib


def oversize_message(demand: Demand, fit: ReplicaFit) -> str | None:
    """What to say of a single whole GPU of which little is used; None of all others."""
    hardware, share = fit.hardware, memory_share(demand, fit)
    if hardware.profile is not None or hardware.devices > 1 or share >= OVERSIZED_BELOW:
        return None
    smaller_slice = _sufficient_slice(demand, hardware)
    advice = (
        f"a slice {smaller_slice.profile} would do" if smaller_slice else "a smaller GPU would do"
    )
    return f"{share:.0%} of its memory is used, {advice}"


def _sufficient_slice(demand: Demand, hardware: Hardware) -> Hardware | None:
    """The smallest slice of the product that keeps the same promise for real requests."""
    product = products().get(hardware.product)
    for candidate in product_slices(product) if product is not None else ():
        sizing = size(demand, candidate)
        if (
            isinstance(sizing, ReplicaFit)
            and sizing.memory.kv_tokens >= MIN_CONCURRENCY * sizing.max_model_len
        ):
            return candidate
    return None
