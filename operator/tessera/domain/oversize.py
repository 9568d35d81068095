"""Is a whole GPU more than a replica needs, and which slice of it would do?"""

from tessera.domain import footprint
from tessera.domain.catalog import products
from tessera.domain.hardware import Hardware, slices
from tessera.domain.limits import Demand
from tessera.domain.sizing import MIB, Fit, size

OVERSIZED_BELOW = 0.4
"""A device is oversized when weights and usual cache use less of its memory."""
REAL = 4
"""A replica that cannot hold so many requests of full length is a toy."""


def used(demand: Demand, fit: Fit) -> float:
    """Share of a device that weights, reserve and the cache of usual requests take."""
    devices = fit.hardware.devices
    request = footprint.cache_bytes(demand.shape, demand.resident, devices, demand.kv_bits)
    cache = fit.limits.max_num_seqs * request / MIB
    return (fit.memory.weights_mib + fit.memory.reserve_mib + cache) / fit.hardware.memory_mib


def oversized(demand: Demand, fit: Fit) -> str | None:
    """What to say of a single whole GPU of which little is used; None of all others."""
    hardware, share = fit.hardware, used(demand, fit)
    if hardware.profile is not None or hardware.devices > 1 or share >= OVERSIZED_BELOW:
        return None
    found = _slice(demand, hardware)
    told = f"a slice {found.profile} would do" if found else "a smaller GPU would do"
    return f"{share:.0%} of its memory is used, {told}"


def _slice(demand: Demand, hardware: Hardware) -> Hardware | None:
    """The smallest slice of the product that keeps the same promise for real requests."""
    product = products().get(hardware.product)
    for cut in slices(product) if product is not None else ():
        got = size(demand, cut)
        if isinstance(got, Fit) and got.memory.kv_tokens >= REAL * got.max_model_len:
            return cut
    return None
