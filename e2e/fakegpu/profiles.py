"""What the driver knows of a board: its profiles, their NVML numbers, and where they may begin.

Names and memory come from the product's tables; sizes and places are derived here on their own.
"""

import re
from dataclasses import dataclass
from functools import cache

from tessera.domain.hardware.gpu_catalog import Product, products
from tessera.domain.mig.gpu_models import find_gpu_model, nvml_profile_constants

_IDS_SEVEN = {
    "7_SLICE": 0,
    "4_SLICE": 5,
    "3_SLICE": 9,
    "2_SLICE": 14,
    "1_SLICE_REV2": 15,
    "1_SLICE": 19,
    "1_SLICE_REV1": 20,
}
# The numbers that `nvidia-smi mig -lgip` prints; they differ by board, so nothing may rely on
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
class Profile:
    """One profile of a board."""

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
class Model:
    """A kind of GPU."""

    product: str
    """Blanks as dashes."""
    memory_mib: int
    compute_slices: int
    memory_slices: int
    mode_needs_reset: bool
    """A change of MIG mode waits for a reset: Ampere."""
    profiles: tuple[Profile, ...]

    @property
    def name(self) -> str:
        """As NVML tells it."""
        return self.product.replace("-", " ", 1)

    def named(self, profile: str) -> Profile | None:
        return next((one for one in self.profiles if one.name == profile), None)

    def by_id(self, profile_id: int) -> Profile | None:
        return next((one for one in self.profiles if one.id == profile_id), None)

    def starts(self, kind: Profile) -> range:
        """Multiples of its size, as far as there are compute slices."""
        return range(0, self.compute_slices - kind.compute_slices + 1, kind.memory_slices)

    def instance_id(self, kind: Profile, start: int) -> int:
        """As drivers number them: the whole, halves, quarters, eighths."""
        return self.memory_slices // kind.memory_slices - 1 + start // kind.memory_slices


@cache
def model_of(product: str) -> Model:
    """KeyError for a product that no table has; one without MIG has no profiles."""
    board = find_gpu_model(product)
    known = products().get(product)
    if board is None:
        return _uncut(products()[product])
    seven = board.compute_slices == 7
    profiles = []
    for cut in board.profiles:
        compute = int(cut.constant[0])
        slice_ = known.mig_profile(cut.name.partition("+")[0]) if known else None
        profiles.append(
            Profile(
                name=cut.name,
                constant=cut.constant,
                value=nvml_profile_constants()[cut.constant],
                id=(_IDS_SEVEN if seven else _IDS_FOUR)[cut.constant],
                compute_slices=compute,
                memory_slices=_MEMORY_OF_SEVEN.get(cut.constant, compute) if seven else compute,
                # A little less than the name says, where nobody has shown it.
                memory_mib=slice_.memory_mib if slice_ else 992 * _gigabytes(cut.name),
                multiprocessors=slice_.multiprocessors if slice_ else 14 * compute,
                media=cut.constant in _MEDIA,
            )
        )
    return Model(
        product=product,
        memory_mib=1024 * _gigabytes(board.profiles[-1].name),
        compute_slices=7 if seven else 4,
        memory_slices=8 if seven else 4,
        mode_needs_reset="A100" in product or "A30" in product,
        profiles=tuple(profiles),
    )


def _uncut(product: Product) -> Model:
    return Model(
        product=product.product,
        memory_mib=product.memory_mib,
        compute_slices=0,
        memory_slices=0,
        mode_needs_reset=False,
        profiles=(),
    )


def _gigabytes(profile: str) -> int:
    found = re.search(r"\.(\d+)gb", profile)
    assert found is not None, profile
    return int(found[1])
