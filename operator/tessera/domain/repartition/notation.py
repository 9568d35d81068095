"""How slices are written in the status of a pool: `3g.40gb@4`, or `3g.40gb` without its place."""

from collections.abc import Iterable

from tessera.domain.mig.boards import Board
from tessera.domain.mig.deal import places
from tessera.domain.mig.layouts import Layout, Spot, geometry


def written(spot: Spot, *, pinned: bool) -> str:
    """Without the place where nobody can keep it."""
    return f"{spot.profile}@{spot.start}" if pinned else spot.profile


def layout(board: Board, tiles: Iterable[str]) -> Layout:
    """Of one GPU; where places are not told, the first that there are."""
    parts = [tile.partition("@") for tile in tiles]
    if all(start for _, _, start in parts):
        return tuple(sorted(Spot(int(start), profile) for profile, _, start in parts))
    return places(board, geometry(Spot(0, profile) for profile, _, _ in parts)) or ()
