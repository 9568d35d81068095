"""The text form of slices in the status of a pool: `3g.40gb@4`, or `3g.40gb` without a start."""

from collections.abc import Iterable

from tessera.domain.hardware.gpu_layouts import (
    Layout,
    SlicePlacement,
    format_placement,
    geometry,
    parse_placement,
    place_geometry,
)
from tessera.domain.hardware.gpu_models import GpuModel


def format_slice(placement: SlicePlacement, *, pinned: bool) -> str:
    """Return the slice as text, with its start if the backend can place slices (`pinned`)."""
    return format_placement(placement) if pinned else placement.profile


def parse_layout(gpu_model: GpuModel, slices: Iterable[str]) -> Layout:
    """Return the layout of one GPU; without starts, the first possible ones are assumed."""
    parts = [parse_placement(text) for text in slices]
    placements = [SlicePlacement(start, profile) for profile, start in parts if start is not None]
    if len(placements) == len(parts):
        return tuple(sorted(placements))
    return (
        place_geometry(gpu_model, geometry(SlicePlacement(0, profile) for profile, _ in parts))
        or ()
    )
