"""Instances of one service on different GPUs and nodes.

Slices and their costs know no names, so that spreading comes afterwards: instances change seats
with those of services that do not mind, take idle slices or free room, and only then own GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.boards import WHOLE, Board
from tessera.domain.mig.deal import places
from tessera.domain.mig.demand import Service
from tessera.domain.mig.fleet import Gpu, Slice
from tessera.domain.mig.layouts import UNCUT

_ADDED = "+"
"""What names of GPUs and nodes begin with until they get one."""

Area: TypeAlias = Callable[[Gpu], str]
"""What instances are spread over, of a GPU: itself, or its node."""


class _Seat(NamedTuple):
    gpu: int
    one: Slice


def by_gpu(gpu: Gpu) -> str:
    """GPUs fail one by one."""
    return gpu.name


def by_node(gpu: Gpu) -> str:
    """Nodes fail with all their GPUs; a GPU without one stands alone."""
    return gpu.node or f"?{gpu.name}"


@dataclass(frozen=True, slots=True)
class _Rule:
    area: Area
    least: Mapping[str, int]
    """Different areas of each service."""


def _rules(services: Sequence[Service]) -> tuple[_Rule, ...]:
    return (
        _Rule(by_node, {one.name: one.nodes for one in services if one.nodes > 1}),
        _Rule(by_gpu, {one.name: one.gpus for one in services if one.gpus > 1}),
    )


def cramped(services: Sequence[Service], gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """Services that stand on fewer GPUs or nodes than they should."""
    rules = _rules(services)
    if not any(rule.least for rule in rules):
        return ()
    areas = [_areas(gpus, rule.area) for rule in rules]
    return tuple(
        sorted(
            {
                name
                for rule, found in zip(rules, areas, strict=True)
                for name, least in rule.least.items()
                if len(found.get(name, ())) < least
            }
        )
    )


def spread(
    services: Sequence[Service], gpus: Sequence[Gpu], boards: Mapping[str, Board]
) -> tuple[Gpu, ...]:
    """The same instances, spread as far as GPUs and nodes allow; GPUs that it adds have no name."""
    found = list(gpus)
    rules = _rules(services)
    for rule in rules:
        for name, least in sorted(rule.least.items()):
            while len(_areas(found, rule.area).get(name, ())) < least:
                changed = _moved(name, rule, rules, found, boards)
                if changed is None:
                    break
                found = changed
    return tuple(replace(gpu, name="") if gpu.name.startswith(_ADDED) else gpu for gpu in found)


def on_nodes(gpus: Sequence[Gpu], each: int) -> tuple[Gpu, ...]:
    """GPUs without a node get places on nodes, which hold so many each."""
    taken = Counter(gpu.node for gpu in gpus if gpu.node and not gpu.node.startswith(_ADDED))
    own = {gpu.node for gpu in gpus if gpu.node.startswith(_ADDED)}
    names = (name for at in count(1) if (name := f"node-{at:04}") not in taken)
    named = dict(zip(sorted(own), names, strict=False))
    open_ = [node for node in sorted(taken) for _ in range(each - taken[node])]
    found = []
    for gpu in gpus:
        node = named.get(gpu.node, gpu.node)
        if not node:
            if not open_:
                open_ = [next(names)] * each
            node = open_.pop(0)
        found.append(replace(gpu, node=node))
    return tuple(found)


def _areas(gpus: Sequence[Gpu], area: Area) -> dict[str, Counter[str]]:
    """Instances of each service in each area."""
    found: dict[str, Counter[str]] = {}
    for gpu in gpus:
        for one in gpu.slices:
            if one.service is not None:
                found.setdefault(one.service, Counter())[area(gpu)] += 1
    return found


def _moved(
    name: str, rule: _Rule, rules: Sequence[_Rule], gpus: list[Gpu], boards: Mapping[str, Board]
) -> list[Gpu] | None:
    """One instance of the service brought into an area where it has none; None if nobody can."""
    areas = _areas(gpus, rule.area)
    seats = [
        _Seat(at, one)
        for at, gpu in enumerate(gpus)
        for one in gpu.slices
        if one.service == name and areas[name][rule.area(gpu)] > 1
    ]
    free = [at for at, gpu in enumerate(gpus) if rule.area(gpu) not in areas.get(name, ())]
    for seat in reversed(seats):
        for changed in _choices(seat, free, gpus, boards):
            if all(_kept(one, gpus, changed) for one in rules):
                return changed
    return _added(seats[-1], rule, gpus, boards) if seats else None


def _added(seat: _Seat, rule: _Rule, gpus: list[Gpu], boards: Mapping[str, Board]) -> list[Gpu]:
    """A GPU for this instance alone, on a node of its own if it is nodes that lack."""
    board, profile = gpus[seat.gpu].board, seat.one.profile
    start = next(iter(_fresh(boards[board], profile)))
    name = f"{_ADDED}{len(gpus)}"
    node = name if rule.area is by_node else ""
    own = Gpu(name=name, board=board, node=node, slices=(seat.one._replace(start=start),))
    return [*_put(gpus, seat, None), own]


def _fresh(board: Board, profile: str) -> Iterator[int]:
    layout = places(board, ((profile, 1),)) or ()
    return (spot.start for spot in layout)


def _choices(
    seat: _Seat, free: Sequence[int], gpus: list[Gpu], boards: Mapping[str, Board]
) -> Iterator[list[Gpu]]:
    """Idle slices first, then free room, then those who would change seats."""
    profile, board = seat.one.profile, gpus[seat.gpu].board
    alike = [at for at in free if gpus[at].board == board]
    for idle in (True, False):
        for at in alike:
            for other in gpus[at].slices:
                if other.profile == profile and (other.service is None) == idle:
                    yield _put(_put(gpus, seat, other.service), _Seat(at, other), seat.one.service)
        for at in alike if idle else ():
            if (spot := _room(gpus[at], profile, boards[board])) is not None:
                grown = tuple(
                    sorted((*gpus[at].slices, Slice(spot, profile, seat.one.service)), key=_start)
                )
                gone = _put(gpus, seat, None)
                yield [*gone[:at], replace(gone[at], slices=grown), *gone[at + 1 :]]


def _start(one: Slice) -> int:
    return one.start


def _room(gpu: Gpu, profile: str, board: Board) -> int | None:
    """Where the profile could be cut on a GPU that somebody uses."""
    if not gpu.used or gpu.layout == UNCUT or profile == WHOLE:
        return None
    grown = places(board, ((profile, 1),), gpu.layout)
    return None if grown is None else next(one.start for one in grown if one not in gpu.layout)


def _put(gpus: list[Gpu], seat: _Seat, service: str | None) -> list[Gpu]:
    slices = tuple(
        one._replace(service=service) if one == seat.one else one for one in gpus[seat.gpu].slices
    )
    return [*gpus[: seat.gpu], replace(gpus[seat.gpu], slices=slices), *gpus[seat.gpu + 1 :]]


def _kept(rule: _Rule, before: Sequence[Gpu], after: Sequence[Gpu]) -> bool:
    """Nobody is spread less than before and than he should be."""
    old, new = _areas(before, rule.area), _areas(after, rule.area)
    return all(
        len(new.get(name, ())) >= min(least, len(old.get(name, ())))
        for name, least in rule.least.items()
    )
