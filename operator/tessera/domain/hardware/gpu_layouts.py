"""Layouts of one GPU (placed GPU instances) and geometries (counts of profiles, not placed).

The order of creation does not matter, since every instance is created at an explicit start.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuInstanceProfile, GpuModel
from tessera.domain.incremental import tabulated


class SlicePlacement(NamedTuple):
    """A profile and the memory slice it starts at.

    Together with the GPU it identifies a GPU instance, since UUIDs change on every creation.
    """

    start: int
    profile: str


# Placements on one GPU by start. A GPU without MIG mode has one placement, of the profile `whole`.
Layout: TypeAlias = tuple[SlicePlacement, ...]

# Profiles by name with their counts.
Geometry: TypeAlias = tuple[tuple[str, int], ...]

WHOLE_GPU_LAYOUT: Layout = (SlicePlacement(0, WHOLE_GPU),)


def format_placement(placement: SlicePlacement) -> str:
    """Return `profile@start`, as plans, statuses and messages name a placement."""
    return f"{placement.profile}@{placement.start}"


def parse_placement(text: str) -> tuple[str, int | None]:
    """Return the profile and the start of `profile@start`; None for the start of `profile`."""
    profile, _, start = text.partition("@")
    return profile, int(start) if start else None


def geometry(layout: Iterable[SlicePlacement]) -> Geometry:
    """Return the counts of a layout's profiles."""
    return tuple(sorted(Counter(placement.profile for placement in layout).items()))


def layout_error(gpu_model: GpuModel, layout: Sequence[SlicePlacement]) -> str | None:
    """Return why the GPU model cannot have this layout; None if it can."""
    if WHOLE_GPU in {placement.profile for placement in layout}:
        return (
            None
            if tuple(layout) == WHOLE_GPU_LAYOUT
            else f"{WHOLE_GPU} is the whole GPU and leaves no room for other profiles"
        )
    taken: list[tuple[GpuInstanceProfile, int]] = []
    for placement in layout:
        gi_profile = gpu_model.find_profile(placement.profile)
        if gi_profile is None:
            known = ", ".join(supported.name for supported in gpu_model.profiles)
            return f"{gpu_model.name} has no profile {placement.profile}; supported: {known}"
        if placement.start not in gi_profile.starts:
            starts = ", ".join(map(str, gi_profile.starts))
            return f"{gi_profile.name} cannot start at {placement.start}; allowed starts: {starts}"
        if conflict := _find_conflict(gpu_model, taken, gi_profile, placement.start):
            return conflict
        taken.append((gi_profile, placement.start))
    return None


def _find_conflict(
    gpu_model: GpuModel,
    taken: list[tuple[GpuInstanceProfile, int]],
    gi_profile: GpuInstanceProfile,
    start: int,
) -> str | None:
    description = format_placement(SlicePlacement(start, gi_profile.name))
    for other, other_start in taken:
        other_description = format_placement(SlicePlacement(other_start, other.name))
        if (
            start < other_start + other.memory_slices
            and other_start < start + gi_profile.memory_slices
        ):
            return f"{description} overlaps {other_description}"
        if gi_profile.has_media_engines and other.has_media_engines:
            return f"{description} needs the media engines, which {other_description} uses"
    if sum(other is gi_profile for other, _ in taken) == gi_profile.max_instances:
        return f"one GPU has at most {gi_profile.max_instances}x {gi_profile.name}"
    compute_slices = gpu_model.compute_slices
    if sum(other.compute_slices for other, _ in taken) + gi_profile.compute_slices > compute_slices:
        return f"{description} exceeds the {compute_slices} compute slices of {gpu_model.name}"
    return None


def fitting_placements(
    gpu_model: GpuModel, layout: Layout, profiles: Iterable[str]
) -> Iterator[SlicePlacement]:
    """Yield every placement of the profiles that fits beside the layout.

    Raises ValueError for a profile that the GPU model does not have.
    """

    def require_profile(name: str) -> GpuInstanceProfile:
        gi_profile = gpu_model.find_profile(name)
        if gi_profile is None:
            raise ValueError(f"{gpu_model.name} has no profile {name}")
        return gi_profile

    taken = [(require_profile(placement.profile), placement.start) for placement in layout]
    for profile in profiles:
        gi_profile = require_profile(profile)
        for start in gi_profile.starts:
            if _find_conflict(gpu_model, taken, gi_profile, start) is None:
                yield SlicePlacement(start, profile)


@tabulated
def place_geometry(gpu_model: GpuModel, geometry: Geometry, occupied: Layout = ()) -> Layout | None:
    """Return the first layout that adds exactly these slices to the occupied ones.

    Large slices are placed first. None if the slices do not fit.
    """
    counts = Counter(dict(geometry))
    if not counts:
        return occupied
    if WHOLE_GPU in counts:
        return WHOLE_GPU_LAYOUT if counts == Counter({WHOLE_GPU: 1}) and not occupied else None
    profile = max(counts, key=lambda name: (gpu_model.memory_slices_of(name), name))
    rest = tuple(sorted((+(counts - Counter({profile: 1}))).items()))
    for placement in fitting_placements(gpu_model, occupied, (profile,)):
        if layout := place_geometry(gpu_model, rest, tuple(sorted((*occupied, placement)))):
            return layout
    return None


def geometry_problem(
    gpu_model: GpuModel, layout: Mapping[str, int], field: str = "spec.mig.layout"
) -> tuple[bool, str] | None:
    """Return why no GPU of the model can have the slices, and whether a profile is unknown."""
    unknown = sorted(profile for profile in layout if gpu_model.find_profile(profile) is None)
    if unknown:
        known = ", ".join(gi_profile.name for gi_profile in gpu_model.profiles)
        return True, (
            f"{field}: {gpu_model.name} has no profile {', '.join(unknown)}; it has {known}"
        )
    if place_geometry(gpu_model, tuple(sorted(layout.items()))) is None:
        counts = ", ".join(f"{count} x {profile}" for profile, count in sorted(layout.items()))
        return False, (f"{field}: {counts} does not fit on 1 {gpu_model.name}; lower the counts")
    return None


def maximal_geometries(candidates: Iterable[Geometry]) -> tuple[Geometry, ...]:
    """Return the geometries that no other one contains.

    A planner of least cost needs only these, since a larger geometry costs the same.
    """
    counts = {candidate: Counter(dict(candidate)) for candidate in sorted(candidates)}
    return tuple(
        candidate
        for candidate in counts
        if not any(counts[candidate] < other_counts for other_counts in counts.values())
    )
