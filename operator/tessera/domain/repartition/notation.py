"""How slices are written in the status of a pool: `3g.40gb@4`, or `3g.40gb` without its place."""

from collections.abc import Iterable

from tessera.domain.mig.boards import GpuModel
from tessera.domain.mig.deal import place_geometry
from tessera.domain.mig.layouts import Layout, SlicePlacement, geometry


def written(spot: SlicePlacement, *, pinned: bool) -> str:
    """Without the place where nobody can keep it."""
    return f"{spot.profile}@{spot.start}" if pinned else spot.profile


def layout(board: GpuModel, tiles: Iterable[str]) -> Layout:
    """Of one GPU; where places are not told, the first that there are."""
    parts = [tile.partition("@") for tile in tiles]
    if all(start for _, _, start in parts):
        return tuple(sorted(SlicePlacement(int(start), profile) for profile, _, start in parts))
    return (
        place_geometry(board, geometry(SlicePlacement(0, profile) for profile, _, _ in parts)) or ()
    )
