"""What still fits on a GPU of which some memory slices are taken, and what may be cut anew.

Places decide alone: that starts and sizes keep within the compute slices and the counts of every
known board is tested.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.boards import WHOLE, Board, Cut
from tessera.domain.mig.layouts import UNCUT, Geometry, Layout, inclusion_maximal

_Counts: TypeAlias = frozenset[tuple[str, int]]


class Reshape(NamedTuple):
    """Slices of a GPU that stay, and those that are cut beside them."""

    kept: Layout
    added: Geometry


@cache
def fillings(board: Board, profiles: tuple[str, ...], kept: Layout = ()) -> tuple[Geometry, ...]:
    """The largest geometries of these profiles beside what is kept; the empty one if none fits."""
    cuts = [board.cut(spot.profile) for spot in kept]
    if None in cuts:
        return ((),)
    taken = sum(_mask(cut, spot.start) for cut, spot in zip(cuts, kept, strict=True) if cut)
    media = any(cut.media for cut in cuts if cut)
    found = _filled(board, tuple(sorted(set(profiles) - {WHOLE})), taken, media)
    return inclusion_maximal(tuple(sorted(counts)) for counts in found)


def _mask(cut: Cut, start: int) -> int:
    return ((1 << cut.memory_slices) - 1) << start


@cache
def _filled(board: Board, profiles: tuple[str, ...], taken: int, media: bool) -> frozenset[_Counts]:
    """With the first free memory slice left alone, or the start of a slice."""
    free = next((at for at in range(board.memory_slices) if not taken >> at & 1), None)
    if free is None:
        return frozenset({frozenset[tuple[str, int]]()})
    found = set(_filled(board, profiles, taken | 1 << free, media))
    for profile in profiles:
        cut = board.cut(profile)
        if cut is None or free not in cut.starts or (cut.media and media):
            continue
        mask = _mask(cut, free)
        if not taken & mask:
            rest = _filled(board, profiles, taken | mask, media or cut.media)
            found |= {_with(counts, profile) for counts in rest}
    return frozenset(found)


def _with(counts: _Counts, profile: str) -> _Counts:
    return frozenset((Counter(dict(counts)) + Counter({profile: 1})).items())


@cache
def reshapes(board: Board, profiles: tuple[str, ...], layout: Layout) -> tuple[Reshape, ...]:
    """Every largest addition with every largest part of the layout that leaves it room.

    The layout as it stands comes first.
    """
    found: dict[Geometry, list[int]] = {}
    for bits in sorted(range(1 << len(layout)), key=lambda one: (-one.bit_count(), one)):
        kept = _part(layout, bits)
        for added in _additions(board, profiles, kept):
            others = found.setdefault(added, [])
            if added and not any(bits & other == bits for other in others):
                others.append(bits)
    changed = (
        Reshape(_part(layout, bits), added)
        for added, parts in sorted(found.items())
        for bits in parts
    )
    return (Reshape(layout, ()), *changed)


def _additions(board: Board, profiles: tuple[str, ...], kept: Layout) -> Iterable[Geometry]:
    if kept == UNCUT:
        return ()
    whole: tuple[Geometry, ...] = (((WHOLE, 1),),) if WHOLE in profiles and not kept else ()
    return (*fillings(board, profiles, kept), *whole)


def _part(layout: Layout, bits: int) -> Layout:
    return tuple(spot for at, spot in enumerate(layout) if bits >> at & 1)
