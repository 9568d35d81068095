"""The hardware of one replica: a MIG slice, or whole GPUs of one node."""

from dataclasses import dataclass, field

from tessera.domain.hardware.gpu_catalog import COMPUTE_SLICES, MEMORY_SLICES, Product
from tessera.domain.hardware.gpu_models import GpuInstanceProfile, find_gpu_model

GPU = "nvidia.com/gpu"
MIG_PREFIX = "nvidia.com/mig-"


def is_gpu_resource(name: str) -> bool:
    """Return whether an extended resource is a GPU or a MIG slice.

    Other devices of the vendor, such as network functions, are not.
    """
    return name == GPU or name.startswith((f"{GPU}.", MIG_PREFIX))


def resource_of(profile: str | None) -> str:
    """Return the extended resource of slices of a profile, or of whole GPUs without one."""
    return f"{MIG_PREFIX}{profile.replace('+', '.')}" if profile else GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The equal devices that one replica runs on; several are always whole GPUs of one node."""

    product: str
    profile: str | None
    """MIG profile of a slice, by the name that the tables use; None for whole GPUs."""
    node_profile: str | None = None
    """Name that nodes give the profile, where it differs."""
    devices: int
    memory_mib: int
    """Memory of one device as the engine sees it."""
    bandwidth: float
    """Bytes per second of one device."""
    bf16_flops: float
    """Dense peak operations per second of one device."""
    fp8_flops: float | None
    """Dense peak operations per second of one device at 8 bits, where the product has it."""
    compute_slices: int
    memory_slices: int
    compute_slices_of_gpu: int = COMPUTE_SLICES
    memory_slices_of_gpu: int = MEMORY_SLICES
    resource: str = field(init=False, compare=False)
    """The extended resource that the device plugin offers under `mig.strategy=mixed`."""

    def __post_init__(self) -> None:
        # Every cycle asks for it.
        object.__setattr__(self, "resource", resource_of(self.node_profile or self.profile))

    @property
    def instance(self) -> str:
        """Return its part of the name of a variant."""
        return self.profile or f"{self.devices}gpu"

    @property
    def exclusive(self) -> bool:
        """Return whether nothing else fits beside it on its GPU."""
        return self.memory_slices >= self.memory_slices_of_gpu

    @property
    def name(self) -> str:
        """Return the name for people, such as `3g.40gb`, `whole GPU` or `2x whole GPU`."""
        whole = "whole GPU" if self.devices == 1 else f"{self.devices}x whole GPU"
        return self.profile or whole


def whole_gpu_hardware(product: Product, devices: int, memory_mib: int | None = None) -> Hardware:
    """Return `devices` whole GPUs; `memory_mib` is what a node reports for one of them."""
    gpu_model = find_gpu_model(product.product)
    compute_slices = gpu_model.compute_slices if gpu_model is not None else COMPUTE_SLICES
    memory_slices = gpu_model.memory_slices if gpu_model is not None else MEMORY_SLICES
    return Hardware(
        product=product.product,
        profile=None,
        devices=devices,
        # A driver may reserve memory, so the smaller of the table's and the node's size is safe.
        memory_mib=min(product.memory_mib, memory_mib or product.memory_mib),
        bandwidth=product.bandwidth_gbs * 1e9,
        bf16_flops=product.bf16_tflops * 1e12,
        fp8_flops=None if product.fp8_tflops is None else product.fp8_tflops * 1e12,
        compute_slices=compute_slices,
        memory_slices=memory_slices,
        compute_slices_of_gpu=compute_slices,
        memory_slices_of_gpu=memory_slices,
    )


def slice_hardware(
    product: Product, profile: str, memory_mib: int | None = None
) -> Hardware | None:
    """Return one MIG slice by any of its names; None where its size is not known."""
    gpu_model = find_gpu_model(product.product)
    gi_profile = gpu_model.find_profile(profile) if gpu_model is not None else None
    if (
        gpu_model is None
        or gi_profile is None
        or gi_profile.multiprocessors is None
        or gi_profile.memory_mib is None
    ):
        return None
    # On Hopper the multiprocessors are not proportional to the sevenths in the profile's name.
    compute_share = gi_profile.multiprocessors / product.multiprocessors
    return Hardware(
        product=product.product,
        profile=gi_profile.name,
        node_profile=profile if profile != gi_profile.name else None,
        devices=1,
        memory_mib=min(gi_profile.memory_mib, memory_mib or gi_profile.memory_mib),
        bandwidth=product.bandwidth_gbs * 1e9 * gi_profile.memory_slices / gpu_model.memory_slices,
        bf16_flops=product.bf16_tflops * 1e12 * compute_share,
        fp8_flops=None if product.fp8_tflops is None else product.fp8_tflops * 1e12 * compute_share,
        compute_slices=gi_profile.compute_slices,
        memory_slices=gi_profile.memory_slices,
        compute_slices_of_gpu=gpu_model.compute_slices,
        memory_slices_of_gpu=gpu_model.memory_slices,
    )


def sized_profiles(product: Product) -> list[GpuInstanceProfile]:
    """Return the MIG profiles of a product whose multiprocessors and memory are known."""
    gpu_model = find_gpu_model(product.product)
    gi_profiles = gpu_model.profiles if gpu_model is not None else ()
    return [gi_profile for gi_profile in gi_profiles if gi_profile.memory_mib is not None]


def product_slices(product: Product) -> list[Hardware]:
    """Return all slices of a product that are less than a whole GPU, the smallest first."""
    candidates = (
        slice_hardware(product, gi_profile.name) for gi_profile in sized_profiles(product)
    )
    partial_slices = [
        hardware
        for hardware in candidates
        if hardware and hardware.compute_slices < hardware.compute_slices_of_gpu
    ]
    return sorted(
        partial_slices,
        key=lambda hardware: (hardware.memory_slices, hardware.compute_slices, hardware.memory_mib),
    )
