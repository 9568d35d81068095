"""What the driver knows of a GPU model: its profiles, their NVML numbers, and their placements.

Names and memory come from the product's tables; sizes and placements are derived here again.
"""

import re
from dataclasses import dataclass
from functools import cache

import pynvml

from tessera.domain.hardware.gpu_catalog import Product, products
from tessera.domain.hardware.gpu_models import find_gpu_model

_IDS_SEVEN = {
    "7_SLICE": 0,
    "4_SLICE": 5,
    "3_SLICE": 9,
    "2_SLICE": 14,
    "1_SLICE_REV2": 15,
    "1_SLICE": 19,
    "1_SLICE_REV1": 20,
}
# The numbers that `nvidia-smi mig -lgip` prints; they differ by model, so nothing may rely on
# them.
_IDS_FOUR = {
    "4_SLICE": 0,
    "2_SLICE": 5,
    "2_SLICE_REV1": 6,
    "1_SLICE": 14,
    "1_SLICE_REV1": 21,
    "4_SLICE_GFX": 32,
    "2_SLICE_GFX": 35,
    "1_SLICE_GFX": 47,
    "2_SLICE_ALL_ME": 64,
    "1_SLICE_ALL_ME": 65,
    "2_SLICE_NO_ME": 66,
    "1_SLICE_NO_ME": 67,
}
_MEMORY_OF_SEVEN = {"1_SLICE_REV2": 2, "3_SLICE": 4, "7_SLICE": 8}
_MEDIA = ("1_SLICE_REV1", "2_SLICE_REV1", "1_SLICE_ALL_ME", "2_SLICE_ALL_ME")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpuProfile:
    """One profile of a GPU model."""

    name: str
    constant: str
    value: int
    """Of NVML's constant."""
    id: int
    """That create calls want."""
    compute_slices: int
    memory_slices: int
    memory_mib: int
    multiprocessors: int
    media: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpuModel:
    """A kind of GPU."""

    product: str
    """Blanks as dashes."""
    memory_mib: int
    compute_slices: int
    memory_slices: int
    mode_needs_reset: bool
    """A change of MIG mode waits for a reset: Ampere."""
    profiles: tuple[FakeGpuProfile, ...]

    @property
    def name(self) -> str:
        """The name that NVML returns."""
        return self.product.replace("-", " ", 1)

    def by_name(self, profile: str) -> FakeGpuProfile | None:
        return next(
            (gpu_profile for gpu_profile in self.profiles if gpu_profile.name == profile), None
        )

    def by_id(self, profile_id: int) -> FakeGpuProfile | None:
        return next(
            (gpu_profile for gpu_profile in self.profiles if gpu_profile.id == profile_id), None
        )

    def starts(self, kind: FakeGpuProfile) -> range:
        """Multiples of its size, as far as there are compute slices."""
        return range(0, self.compute_slices - kind.compute_slices + 1, kind.memory_slices)

    def instance_id(self, kind: FakeGpuProfile, start: int) -> int:
        """As drivers number them: the whole, halves, quarters, eighths."""
        return self.memory_slices // kind.memory_slices - 1 + start // kind.memory_slices


@cache
def model_of(product: str) -> FakeGpuModel:
    """KeyError for a product that no table has; one without MIG has no profiles."""
    gpu_model = find_gpu_model(product)
    if gpu_model is None:
        return _without_mig(products()[product])
    seven = gpu_model.compute_slices == 7
    profiles = []
    for gpu_profile in gpu_model.profiles:
        compute = int(gpu_profile.constant[0])
        sized = gpu_model.find_profile(gpu_profile.name.partition("+")[0]) or gpu_profile
        profiles.append(
            FakeGpuProfile(
                name=gpu_profile.name,
                constant=gpu_profile.constant,
                value=getattr(pynvml, f"NVML_GPU_INSTANCE_PROFILE_{gpu_profile.constant}"),
                id=(_IDS_SEVEN if seven else _IDS_FOUR)[gpu_profile.constant],
                compute_slices=compute,
                memory_slices=_MEMORY_OF_SEVEN.get(gpu_profile.constant, compute)
                if seven
                else compute,
                # A little less than the name says, where it is not known.
                memory_mib=sized.memory_mib or 992 * _gigabytes(gpu_profile.name),
                multiprocessors=sized.multiprocessors or 14 * compute,
                media=gpu_profile.constant in _MEDIA,
            )
        )
    return FakeGpuModel(
        product=product,
        memory_mib=1024 * _gigabytes(gpu_model.profiles[-1].name),
        compute_slices=7 if seven else 4,
        memory_slices=8 if seven else 4,
        mode_needs_reset="A100" in product or "A30" in product,
        profiles=tuple(profiles),
    )


def _without_mig(product: Product) -> FakeGpuModel:
    return FakeGpuModel(
        product=product.product,
        memory_mib=product.memory_mib,
        compute_slices=0,
        memory_slices=0,
        mode_needs_reset=False,
        profiles=(),
    )


def _gigabytes(profile: str) -> int:
    match = re.search(r"\.(\d+)gb", profile)
    assert match is not None, profile
    return int(match[1])
