"""What one replica stands on: a MIG slice, or whole GPUs of one node."""

from dataclasses import dataclass

from tessera.domain.catalog import COMPUTE_SLICES, MEMORY_SLICES, Product
from tessera.domain.mig.boards import board_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """`devices` equal devices; more than one only as whole GPUs of one node."""

    product: str
    profile: str | None
    """Of a MIG slice, by the name that the tables use."""
    spelling: str | None = None
    """The name that nodes give the profile, where it is another one."""
    devices: int
    memory_mib: int
    """Memory of one device as the engine sees it."""
    bandwidth: float
    """Bytes per second of one device."""
    bf16_flops: float
    """Dense peak operations per second of one device."""
    fp8_flops: float | None
    """The same at 8 bits, where the product has it."""
    compute_slices: int
    memory_slices: int
    compute_slices_of_gpu: int = COMPUTE_SLICES
    memory_slices_of_gpu: int = MEMORY_SLICES

    @property
    def resource(self) -> str:
        """The extended resource that the device plugin offers under `mig.strategy=mixed`."""
        if self.profile is None:
            return "nvidia.com/gpu"
        return f"nvidia.com/mig-{(self.spelling or self.profile).replace('+', '.')}"

    @property
    def alone(self) -> bool:
        """Nothing else fits beside it on its GPU."""
        return self.memory_slices >= self.memory_slices_of_gpu

    @property
    def name(self) -> str:
        """`3g.40gb` or `2x whole`, as people say it."""
        return self.profile or f"{self.devices}x whole"


def whole(product: Product, devices: int, memory_mib: int | None = None) -> Hardware:
    """`devices` uncut GPUs; of two known memory sizes the smaller is believed."""
    return Hardware(
        product=product.product,
        profile=None,
        devices=devices,
        memory_mib=min(product.memory_mib, memory_mib or product.memory_mib),
        bandwidth=product.bandwidth_gbs * 1e9,
        bf16_flops=product.bf16_tflops * 1e12,
        fp8_flops=None if product.fp8_tflops is None else product.fp8_tflops * 1e12,
        compute_slices=product.compute_slices,
        memory_slices=product.memory_slices,
        compute_slices_of_gpu=product.compute_slices,
        memory_slices_of_gpu=product.memory_slices,
    )


def part(product: Product, profile: str, memory_mib: int | None = None) -> Hardware | None:
    """One MIG slice by any of its names; None when the product is not known to have it.

    Bandwidth goes with the memory slices and compute with the real multiprocessors, which on Hopper
    are not proportional to the sevenths in the profile's name.
    """
    board = board_of(product.product)
    known = board.cut(profile) if board is not None else None
    usual = known.profile if known is not None else profile
    cut = product.slice(usual)
    if cut is None:
        return None
    compute = cut.multiprocessors / product.multiprocessors
    return Hardware(
        product=product.product,
        profile=usual,
        spelling=profile if profile != usual else None,
        devices=1,
        memory_mib=min(cut.memory_mib, memory_mib or cut.memory_mib),
        bandwidth=product.bandwidth_gbs * 1e9 * cut.memory_slices / product.memory_slices,
        bf16_flops=product.bf16_tflops * 1e12 * compute,
        fp8_flops=None if product.fp8_tflops is None else product.fp8_tflops * 1e12 * compute,
        compute_slices=cut.compute_slices,
        memory_slices=cut.memory_slices,
        compute_slices_of_gpu=product.compute_slices,
        memory_slices_of_gpu=product.memory_slices,
    )


def slices(product: Product) -> list[Hardware]:
    """All real slices of a product, the smallest first."""
    cut = (part(product, one.profile) for one in product.slices)
    found = [one for one in cut if one and one.compute_slices < product.compute_slices]
    return sorted(found, key=lambda one: (one.memory_slices, one.compute_slices, one.memory_mib))
