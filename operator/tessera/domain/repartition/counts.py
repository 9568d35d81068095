"""Layouts of a node whose slices are only known by number."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from tessera.domain.mig.boards import GpuModel
from tessera.domain.mig.deal import place_geometry
from tessera.domain.mig.fill import maximal_fillings
from tessera.domain.mig.layouts import Geometry, Layout, geometry


@cache
def spread_out(
    board: GpuModel, counts: Geometry, gpus: int, likely: tuple[Layout, ...] = ()
) -> tuple[Layout, ...] | None:
    """Layouts of so many GPUs that make these counts together; None when there are none.

    Which GPU holds what is made up, save that every GPU gets its `likely` layout as far as the
    counts allow: whoever asked for a layout recognises it.
    """
    if not all(board.find_profile(profile) for profile, _ in counts):
        return None
    if _packed(board, counts, gpus) is None:
        return None
    found: list[Layout] = []
    left = counts
    for at in range(gpus):
        layout = _recognised(board, left, gpus - at, likely[at : at + 1])
        if layout is None:
            packed = _packed(board, left, gpus - at) or ()
            layout = place_geometry(board, packed[0] if packed else ()) or ()
        found.append(layout)
        left = _less(left, geometry(layout))
    return tuple(found)


@cache
def _packed(board: GpuModel, counts: Geometry, gpus: int) -> tuple[Geometry, ...] | None:
    """What each of so many GPUs, or of fewer, holds; None when it is too much for them."""
    return _Search(board).packed(counts, gpus)


class _Search:
    """What real GPUs hold is found at once; what they cannot hold may take long to be refuted, so
    that what is not found after so many looks counts as that."""

    def __init__(self, board: GpuModel) -> None:
        self._board = board
        self._looks = 3000
        self._refuted: set[tuple[Geometry, int]] = set()

    def packed(self, counts: Geometry, gpus: int) -> tuple[Geometry, ...] | None:
        """Some GPU holds one of the largest slices, so only what goes with it is tried."""
        if not counts:
            return ()
        if (counts, gpus) in self._refuted or not _room(self._board, counts, gpus):
            return None
        self._looks -= 1
        largest = max((name for name, _ in counts), key=lambda name: _size(self._board, name))
        for way in _densest_first(self._board, tuple(name for name, _ in counts)):
            if largest not in dict(way) or self._looks <= 0:
                continue
            left = _less(counts, way)
            rest = self.packed(left, gpus - 1)
            if rest is not None:
                return (_less(counts, left), *rest)
        self._refuted.add((counts, gpus))
        return None


@cache
def _densest_first(board: GpuModel, profiles: tuple[str, ...]) -> tuple[Geometry, ...]:
    """What one GPU can hold of these profiles."""
    return tuple(
        sorted(
            maximal_fillings(board, profiles),
            key=lambda way: (-sum(_size(board, name)[0] * count for name, count in way), way),
        )
    )


def _room(board: GpuModel, counts: Geometry, gpus: int) -> bool:
    """Are there so many memory and compute slices, and places of each profile, at all?"""
    sizes = [(_size(board, name), count) for name, count in counts]
    return (
        sum(memory * count for (memory, _), count in sizes) <= gpus * board.memory_slices
        and sum(compute * count for (_, compute), count in sizes) <= gpus * board.compute_slices
        and all(
            count <= gpus * cut.max_instances
            for name, count in counts
            if (cut := board.find_profile(name))
        )
    )


def _size(board: GpuModel, profile: str) -> tuple[int, int]:
    cut = board.find_profile(profile)
    return (cut.memory_slices, cut.compute_slices) if cut else (0, 0)


def _recognised(
    board: GpuModel, left: Geometry, gpus: int, likely: Sequence[Layout]
) -> Layout | None:
    for layout in likely:
        way = geometry(layout)
        there = not Counter(dict(way)) - Counter(dict(left))
        if there and _packed(board, _less(left, way), gpus - 1) is not None:
            return layout
    return None


def _less(counts: Geometry, way: Geometry) -> Geometry:
    return tuple(sorted((Counter(dict(counts)) - Counter(dict(way))).items()))
