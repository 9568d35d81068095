"""From counts to seats: which instances stay, and where the others sit.

New slices are cut only where somebody sits on them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tessera.domain.mig.boards import Board
from tessera.domain.mig.deal import places
from tessera.domain.mig.demand import Kind
from tessera.domain.mig.fill import Reshape
from tessera.domain.mig.fleet import Gpu, Slice
from tessera.domain.mig.layouts import Spot

Counts: TypeAlias = Mapping[tuple[str, Kind], int]
"""Instances of a service on a kind."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """A GPU and how it is reshaped; None leaves it to nobody, as it is."""

    gpu: Gpu
    shape: Reshape | None


@dataclass(frozen=True, slots=True)
class Seated:
    """All instances, and those of them that stay where they are."""

    seats: Counts
    stays: Counts


def seat(shaped: Sequence[Shaped], wanted: Seated, boards: Mapping[str, Board]) -> tuple[Gpu, ...]:
    """The GPUs with everybody in place, in the order given."""
    staying = Counter(dict(wanted.stays))
    held: list[dict[Spot, str | None]] = []
    for one in shaped:
        held.append({spot: holder for spot, holder in _held(one, staying)})
    due = _due(wanted)
    for one, slices in zip(shaped, held, strict=True):
        for spot in sorted(slices):
            if slices[spot] is None and one.shape is not None and spot not in one.gpu.fixed:
                slices[spot] = _next(due, Kind(one.gpu.board, spot.profile))
    for one, slices in zip(shaped, held, strict=True):
        for spot in _cut(one, boards):
            if (service := _next(due, Kind(one.gpu.board, spot.profile))) is not None:
                slices[spot] = service
    return tuple(
        replace(
            one.gpu,
            slices=tuple(Slice(spot.start, spot.profile, slices[spot]) for spot in sorted(slices)),
        )
        for one, slices in zip(shaped, held, strict=True)
    )


def _held(one: Shaped, staying: Counter[tuple[str, Kind]]) -> Iterator[tuple[Spot, str | None]]:
    """Slices that are kept; whoever may stay does, as long as there are any who may."""
    for cut in one.gpu.slices:
        if one.shape is None:
            yield cut.spot, None
        elif cut.spot in one.shape.kept:
            stay = (cut.service or "", one.gpu.kind(cut))
            if staying[stay] > 0:
                staying[stay] -= 1
                yield cut.spot, cut.service
            else:
                yield cut.spot, None


def _cut(one: Shaped, boards: Mapping[str, Board]) -> Iterator[Spot]:
    if one.shape is None or not one.shape.added:
        return
    board = boards[one.gpu.board]
    layout = places(board, one.shape.added, one.shape.kept)
    if layout is None:
        raise ValueError(f"{one.shape.added} does not fit beside {one.shape.kept}")
    yield from sorted(set(layout) - set(one.shape.kept))


def _due(wanted: Seated) -> dict[Kind, list[str]]:
    """Services that start, by kind, once for each instance; the last one is next."""
    found: dict[Kind, list[str]] = defaultdict(list)
    for (service, kind), count in sorted(wanted.seats.items(), reverse=True):
        found[kind] += [service] * (count - wanted.stays.get((service, kind), 0))
    return found


def _next(due: Mapping[Kind, list[str]], kind: Kind) -> str | None:
    waiting = due.get(kind)
    return waiting.pop() if waiting else None
