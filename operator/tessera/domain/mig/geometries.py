"""What still fits on a GPU of which some memory slices are taken, and what may be cut anew.

Places decide alone: that starts and sizes keep within the compute slices and the counts of every
known board is tested.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.gpu_models import WHOLE_GPU, GpuInstanceProfile, GpuModel
from tessera.domain.mig.layouts import WHOLE_GPU_LAYOUT, Geometry, Layout, maximal_geometries

_ProfileCounts: TypeAlias = frozenset[tuple[str, int]]


class Reshape(NamedTuple):
    """Slices of a GPU that stay, and those that are cut beside them."""

    retained: Layout
    added: Geometry


@cache
def maximal_fillings(
    gpu_model: GpuModel, profiles: tuple[str, ...], retained: Layout = ()
) -> tuple[Geometry, ...]:
    """The largest geometries of these profiles beside what is kept; the empty one if none fits."""
    gi_profiles = [gpu_model.find_profile(placement.profile) for placement in retained]
    if None in gi_profiles:
        return ((),)
    taken = sum(
        _slice_mask(gi_profile, placement.start)
        for gi_profile, placement in zip(gi_profiles, retained, strict=True)
        if gi_profile
    )
    media_taken = any(gi_profile.has_media_engines for gi_profile in gi_profiles if gi_profile)
    possible_counts = _fill_counts(
        gpu_model, tuple(sorted(set(profiles) - {WHOLE_GPU})), taken, media_taken
    )
    return maximal_geometries(tuple(sorted(counts)) for counts in possible_counts)


def _slice_mask(gi_profile: GpuInstanceProfile, start: int) -> int:
    return ((1 << gi_profile.memory_slices) - 1) << start


@cache
def _fill_counts(
    gpu_model: GpuModel, profiles: tuple[str, ...], taken: int, media_taken: bool
) -> frozenset[_ProfileCounts]:
    """With the first free memory slice left alone, or the start of a slice."""
    free = next((at for at in range(gpu_model.memory_slices) if not taken >> at & 1), None)
    if free is None:
        return frozenset({frozenset[tuple[str, int]]()})
    possible_counts = set(_fill_counts(gpu_model, profiles, taken | 1 << free, media_taken))
    for profile in profiles:
        gi_profile = gpu_model.find_profile(profile)
        if (
            gi_profile is None
            or free not in gi_profile.starts
            or (gi_profile.has_media_engines and media_taken)
        ):
            continue
        mask = _slice_mask(gi_profile, free)
        if not taken & mask:
            rest = _fill_counts(
                gpu_model, profiles, taken | mask, media_taken or gi_profile.has_media_engines
            )
            possible_counts |= {_add_profile(counts, profile) for counts in rest}
    return frozenset(possible_counts)


def _add_profile(counts: _ProfileCounts, profile: str) -> _ProfileCounts:
    return frozenset((Counter(dict(counts)) + Counter({profile: 1})).items())


@cache
def possible_reshapes(
    gpu_model: GpuModel, profiles: tuple[str, ...], layout: Layout
) -> tuple[Reshape, ...]:
    """Every largest addition with every largest part of the layout that leaves it room.

    The layout as it stands comes first.
    """
    masks_by_geometry: dict[Geometry, list[int]] = {}
    for retained_mask in sorted(
        range(1 << len(layout)), key=lambda mask: (-mask.bit_count(), mask)
    ):
        retained = _sublayout(layout, retained_mask)
        for added in _geometries_beside(gpu_model, profiles, retained):
            known_masks = masks_by_geometry.setdefault(added, [])
            if added and not any(retained_mask & larger == retained_mask for larger in known_masks):
                known_masks.append(retained_mask)
    changed = (
        Reshape(_sublayout(layout, retained_mask), added)
        for added, masks in sorted(masks_by_geometry.items())
        for retained_mask in masks
    )
    return (Reshape(layout, ()), *changed)


def _geometries_beside(
    gpu_model: GpuModel, profiles: tuple[str, ...], retained: Layout
) -> Iterable[Geometry]:
    if retained == WHOLE_GPU_LAYOUT:
        return ()
    whole: tuple[Geometry, ...] = (
        (((WHOLE_GPU, 1),),) if WHOLE_GPU in profiles and not retained else ()
    )
    return (*maximal_fillings(gpu_model, profiles, retained), *whole)


def _sublayout(layout: Layout, mask: int) -> Layout:
    return tuple(placement for at, placement in enumerate(layout) if mask >> at & 1)
