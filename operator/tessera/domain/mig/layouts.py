"""What may stand on one GPU at once: placed layouts, and geometries, which are counts alone.

The order in which instances are made does not matter, since every one is pinned to its start.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.gpu_models import WHOLE_GPU, GpuInstanceProfile, GpuModel


class SlicePlacement(NamedTuple):
    """An instance in its place; with its GPU this is its identity, since UUIDs change."""

    start: int
    profile: str


# Spots of one GPU by start. The unpartitioned GPU is one spot of the profile `full`.
Layout: TypeAlias = tuple[SlicePlacement, ...]

# Profiles with their counts, by name.
Geometry: TypeAlias = tuple[tuple[str, int], ...]

WHOLE_GPU_LAYOUT: Layout = (SlicePlacement(0, WHOLE_GPU),)


def geometry(layout: Iterable[SlicePlacement]) -> Geometry:
    """A layout without its places."""
    return tuple(sorted(Counter(placement.profile for placement in layout).items()))


def layout_error(gpu_model: GpuModel, layout: Sequence[SlicePlacement]) -> str | None:
    """Why the board cannot carry this; None when it can."""
    if WHOLE_GPU in {placement.profile for placement in layout}:
        return (
            None
            if tuple(layout) == WHOLE_GPU_LAYOUT
            else f"{WHOLE_GPU} leaves no room for anything else"
        )
    taken: list[tuple[GpuInstanceProfile, int]] = []
    for placement in layout:
        gi_profile = gpu_model.find_profile(placement.profile)
        if gi_profile is None:
            known = ", ".join(supported.name for supported in gpu_model.profiles)
            return f"{gpu_model.name} has no profile {placement.profile}, but {known}"
        if placement.start not in gi_profile.starts:
            starts = ", ".join(map(str, gi_profile.starts))
            return f"{gi_profile.name} cannot start at {placement.start}, only at {starts}"
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
    description = f"{gi_profile.name} at {start}"
    for other, other_start in taken:
        if (
            start < other_start + other.memory_slices
            and other_start < start + gi_profile.memory_slices
        ):
            return f"{description} overlaps {other.name} at {other_start}"
        if gi_profile.has_media_engines and other.has_media_engines:
            return f"{description} needs the media engines that {other.name} at {other_start} has"
    if sum(other is gi_profile for other, _ in taken) == gi_profile.max_instances:
        return f"more than {gi_profile.max_instances} of {gi_profile.name}"
    if (
        sum(other.compute_slices for other, _ in taken) + gi_profile.compute_slices
        > gpu_model.compute_slices
    ):
        return f"{description} needs a compute slice more than the GPU has"
    return None


def fitting_placements(
    gpu_model: GpuModel, layout: Layout, profiles: Iterable[str]
) -> Iterator[SlicePlacement]:
    """Every single instance of the profiles that still fits beside the layout."""
    taken = [
        (_require_profile(gpu_model, placement.profile), placement.start) for placement in layout
    ]
    for profile in profiles:
        gi_profile = _require_profile(gpu_model, profile)
        for start in gi_profile.starts:
            if _find_conflict(gpu_model, taken, gi_profile, start) is None:
                yield SlicePlacement(start, profile)


def _require_profile(gpu_model: GpuModel, profile: str) -> GpuInstanceProfile:
    gi_profile = gpu_model.find_profile(profile)
    if gi_profile is None:
        raise ValueError(f"{gpu_model.name} has no profile {profile}")
    return gi_profile


def enumerate_layouts(
    gpu_model: GpuModel, profiles: Sequence[str], base: Layout = ()
) -> tuple[Layout, ...]:
    """Every legal layout of the profiles that holds what is kept, that alone among them."""
    seen = {base}
    pending = [base]
    while pending:
        layout = pending.pop()
        for placement in fitting_placements(gpu_model, layout, profiles):
            extended = tuple(sorted((*layout, placement)))
            if extended not in seen:
                seen.add(extended)
                pending.append(extended)
    return tuple(sorted(seen))


def maximal_layouts(
    gpu_model: GpuModel, profiles: Sequence[str], base: Layout = ()
) -> tuple[Layout, ...]:
    """Those to which nothing can be added."""
    return tuple(
        layout
        for layout in enumerate_layouts(gpu_model, profiles, base)
        if next(fitting_placements(gpu_model, layout, profiles), None) is None
    )


def distinct_geometries(layouts: Iterable[Layout]) -> tuple[Geometry, ...]:
    """The different counts among layouts."""
    return tuple(sorted({geometry(layout) for layout in layouts}))


def maximal_geometries(candidates: Iterable[Geometry]) -> tuple[Geometry, ...]:
    """Geometries that are no part of another: all that a planner of least cost needs."""
    counted = [(candidate, Counter(dict(candidate))) for candidate in sorted(candidates)]
    return tuple(
        candidate
        for candidate, counts in counted
        if not any(
            counts < other_counts
            for other_geometry, other_counts in counted
            if other_geometry != candidate
        )
    )
