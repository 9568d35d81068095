"""Geometries that fit on a GPU beside retained slices, and the ways to repartition a GPU.

Placements decide alone: tests show that legal starts and sizes never exceed the compute slices or
the instance counts of any known GPU model.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from tessera.domain.hardware.gpu_layouts import (
    WHOLE_GPU_LAYOUT,
    Geometry,
    Layout,
    maximal_geometries,
)
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuInstanceProfile, GpuModel
from tessera.domain.incremental import tabulated

_ProfileCounts: TypeAlias = frozenset[tuple[str, int]]


class Reshape(NamedTuple):
    """A way to repartition a GPU: the slices that stay, and those that are created beside them."""

    retained: Layout
    added: Geometry


@tabulated
def maximal_fillings(
    gpu_model: GpuModel, profiles: tuple[str, ...], retained: Layout = ()
) -> tuple[Geometry, ...]:
    """Return the largest geometries of these profiles that fit beside the retained slices.

    The empty geometry is the only one if none fits or a retained profile is unknown.
    """
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


@tabulated
def _fill_counts(
    gpu_model: GpuModel, profiles: tuple[str, ...], taken: int, media_taken: bool
) -> frozenset[_ProfileCounts]:
    """Return the counts of all fillings of the memory slices that `taken` leaves, as a bit mask."""
    free = next((at for at in range(gpu_model.memory_slices) if not taken >> at & 1), None)
    if free is None:
        return frozenset({frozenset[tuple[str, int]]()})
    # The first free memory slice either stays empty or is the start of an instance.
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
            possible_counts |= {
                frozenset((Counter(dict(counts)) + Counter({profile: 1})).items())
                for counts in rest
            }
    return frozenset(possible_counts)


def _possible_reshapes(
    gpu_model: GpuModel, profiles: tuple[str, ...], layout: Layout
) -> tuple[Reshape, ...]:
    """Return every maximal addition with every maximal part of the layout that leaves room for it.

    The unchanged layout comes first.
    """
    masks_by_geometry: dict[Geometry, list[int]] = {}
    # Subsets of the layout as bit masks, the largest first, so that a subset of one that leaves
    # room for the same addition is skipped.
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


# 128 KiB for the layout of seven slices.
possible_reshapes = tabulated(_possible_reshapes, size=512)


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
