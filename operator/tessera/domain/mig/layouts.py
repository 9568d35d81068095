"""What may stand on one GPU at once: placed layouts, and geometries, which are counts alone.

The order in which instances are made does not matter, since every one is pinned to its start.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.boards import WHOLE, Board, Cut


class Spot(NamedTuple):
    """An instance in its place; with its GPU this is its identity, since UUIDs change."""

    start: int
    profile: str


Layout: TypeAlias = tuple[Spot, ...]
"""Spots of one GPU by start. The unpartitioned GPU is one spot of the profile `full`."""

Geometry: TypeAlias = tuple[tuple[str, int], ...]
"""Profiles with their counts, by name."""

UNCUT: Layout = (Spot(0, WHOLE),)


def geometry(layout: Iterable[Spot]) -> Geometry:
    """A layout without its places."""
    return tuple(sorted(Counter(spot.profile for spot in layout).items()))


def fault(board: Board, layout: Sequence[Spot]) -> str | None:
    """Why the board cannot carry this; None when it can."""
    if WHOLE in {spot.profile for spot in layout}:
        return None if tuple(layout) == UNCUT else f"{WHOLE} leaves no room for anything else"
    taken: list[tuple[Cut, int]] = []
    for spot in layout:
        cut = board.cut(spot.profile)
        if cut is None:
            known = ", ".join(one.profile for one in board.cuts)
            return f"{board.name} has no profile {spot.profile}, but {known}"
        if spot.start not in cut.starts:
            starts = ", ".join(map(str, cut.starts))
            return f"{cut.profile} cannot start at {spot.start}, only at {starts}"
        if told := _conflict(board, taken, cut, spot.start):
            return told
        taken.append((cut, spot.start))
    return None


def _conflict(board: Board, taken: list[tuple[Cut, int]], cut: Cut, start: int) -> str | None:
    told = f"{cut.profile} at {start}"
    for other, at in taken:
        if start < at + other.memory_slices and at < start + cut.memory_slices:
            return f"{told} overlaps {other.profile} at {at}"
        if cut.media and other.media:
            return f"{told} needs the media engines that {other.profile} at {at} has"
    if sum(other is cut for other, _ in taken) == cut.most:
        return f"more than {cut.most} of {cut.profile}"
    if sum(other.compute_slices for other, _ in taken) + cut.compute_slices > board.compute_slices:
        return f"{told} needs a compute slice more than the GPU has"
    return None


def additions(board: Board, layout: Layout, profiles: Iterable[str]) -> Iterator[Spot]:
    """Every single instance of the profiles that still fits beside the layout."""
    taken = [(_known(board, spot.profile), spot.start) for spot in layout]
    for profile in profiles:
        cut = _known(board, profile)
        for start in cut.starts:
            if _conflict(board, taken, cut, start) is None:
                yield Spot(start, profile)


def _known(board: Board, profile: str) -> Cut:
    cut = board.cut(profile)
    if cut is None:
        raise ValueError(f"{board.name} has no profile {profile}")
    return cut


def placed(board: Board, profiles: Sequence[str], kept: Layout = ()) -> tuple[Layout, ...]:
    """Every legal layout of the profiles that holds what is kept, that alone among them."""
    found = {kept}
    edge = [kept]
    while edge:
        layout = edge.pop()
        for spot in additions(board, layout, profiles):
            grown = tuple(sorted((*layout, spot)))
            if grown not in found:
                found.add(grown)
                edge.append(grown)
    return tuple(sorted(found))


def placed_maximal(board: Board, profiles: Sequence[str], kept: Layout = ()) -> tuple[Layout, ...]:
    """Those to which nothing can be added."""
    return tuple(
        layout
        for layout in placed(board, profiles, kept)
        if next(additions(board, layout, profiles), None) is None
    )


def geometries(layouts: Iterable[Layout]) -> tuple[Geometry, ...]:
    """The different counts among layouts."""
    return tuple(sorted({geometry(layout) for layout in layouts}))


def inclusion_maximal(found: Iterable[Geometry]) -> tuple[Geometry, ...]:
    """Geometries that are no part of another: all that a planner of least cost needs."""
    counted = [(one, Counter(dict(one))) for one in sorted(found)]
    return tuple(
        one
        for one, counts in counted
        if not any(counts < other for name, other in counted if name != one)
    )
