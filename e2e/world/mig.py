"""Which MIG slices fit on one GPU together, and where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.hardware.gpu_catalog import Product
from tessera.domain.hardware.gpu_models import find_gpu_model

# Suffix of the one small slice of a GPU that also has the media engines.
MEDIA = "+me"

# Legal starts on the axis of memory slices, by (compute, memory) slices; the right end first, as
# the driver does, since a 3g at 0 strands a compute slice. The 7 + 8 geometry of A100 to B300.
_SEVEN = {
    (1, 1): (6, 5, 4, 3, 2, 1, 0),
    (1, 2): (6, 4, 2, 0),
    (2, 2): (4, 2, 0),
    (3, 4): (4, 0),
    (4, 4): (0,),
    (7, 8): (0,),
}
# The 4 + 4 geometry of A30 and RTX PRO 6000.
_FOUR = {(1, 1): (3, 2, 1, 0), (2, 2): (2, 0), (4, 4): (0,)}


@dataclass(frozen=True, slots=True)
class SliceSize:
    """What a slice has of its GPU."""

    compute_slices: int
    memory_slices: int
    multiprocessors: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class PlacedSlice:
    """A slice and the memory slice that it starts at."""

    profile: str
    slice: SliceSize
    start: int

    @property
    def instance(self) -> int:
        """The GPU instance id as drivers number them: halves, quarters, then eighths."""
        size = self.slice.memory_slices
        return 8 // size - 1 + self.start // size

    @property
    def resource(self) -> str:
        return f"nvidia.com/mig-{self.profile.replace('+', '.')}"


def find_mig_profile(product: Product, profile: str) -> SliceSize | None:
    """The slice that a profile of this product stands for."""
    gpu_model = find_gpu_model(product.product)
    gi_profile = gpu_model.find_profile(profile.removesuffix(MEDIA)) if gpu_model else None
    if gi_profile is None or gi_profile.multiprocessors is None or gi_profile.memory_mib is None:
        return None
    if profile.endswith(MEDIA) and gi_profile.memory_slices != 1:
        return None
    return SliceSize(
        compute_slices=gi_profile.compute_slices,
        memory_slices=gi_profile.memory_slices,
        multiprocessors=gi_profile.multiprocessors,
        memory_mib=gi_profile.memory_mib,
    )


def place_slices(product: Product, profiles: Sequence[str]) -> tuple[PlacedSlice, ...] | None:
    """Starts for all the profiles of one GPU, in the order of their starts; None if none exist."""
    if sum(profile.endswith(MEDIA) for profile in profiles) > 1:
        return None
    slices = [(profile, find_mig_profile(product, profile)) for profile in profiles]
    required = [
        (profile, mig_profile) for profile, mig_profile in slices if mig_profile is not None
    ]
    required.sort(key=lambda pair: (-pair[1].memory_slices, -pair[1].compute_slices, pair[0]))
    gpu_model = find_gpu_model(product.product)
    seven = gpu_model is None or gpu_model.memory_slices == 8
    placed = _search(required, _SEVEN if seven else _FOUR, frozenset())
    return (
        None
        if placed is None
        else tuple(sorted(placed, key=lambda placed_slice: placed_slice.start))
    )


def _search(
    required: Sequence[tuple[str, SliceSize]],
    starts: Mapping[tuple[int, int], Sequence[int]],
    taken: frozenset[int],
) -> list[PlacedSlice] | None:
    if not required:
        return []
    (profile, mig_profile), *rest = required
    for start in starts[mig_profile.compute_slices, mig_profile.memory_slices]:
        needed = frozenset(range(start, start + mig_profile.memory_slices))
        if needed & taken:
            continue
        others = _search(rest, starts, taken | needed)
        if others is not None:
            return [PlacedSlice(profile, mig_profile, start), *others]
    return None
