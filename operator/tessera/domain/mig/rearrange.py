"""New layouts for GPUs that are in use, moving as few instances as the cost allows.

An integer programme: every opened GPU takes one of the ways to reshape it, services take slices,
and what sits on a slice that is kept may stay. In this order it saves moves, GPUs that are cut
anew, slices that are destroyed, and starts.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.demand import NEARLY, Kind, Offer, Service
from tessera.domain.mig.fill import Reshape, reshapes
from tessera.domain.mig.fleet import Gpu, Slice, instances
from tessera.domain.mig.layouts import Layout
from tessera.domain.mig.mix import ways
from tessera.domain.mig.seating import Seated, Shaped, seat
from tessera.domain.mig.solver import INFINITE, Programme, Whole

_NODES = 1_000
_DEAR = 1_000.0
"""Moves that the dearest GPU is worth where cost goes first; as many never happen at once."""
_SLICES = 8
"""On a GPU at most; it keeps the lesser aims below the greater ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is rearranged and what stands beside it."""

    services: Sequence[Service]
    """By name, each with a kind that is on offer."""
    offers: Sequence[Offer]
    opened: Sequence[Gpu]
    fixed: Sequence[Gpu] = ()
    """GPUs whose instances all stay."""
    budget: int | None = None
    """Of the opened GPUs and those that are added; without one, cost goes before moves."""
    worth: float | None = None
    """Without a budget: moves that saving the dearest GPU is worth; None for any number."""
    still: bool = False
    """Slices are only added beside those that are there, which is quick."""


class _Alike(NamedTuple):
    """What makes GPUs the same to the programme."""

    board: str
    slices: tuple[Slice, ...]
    fixed: Layout
    locked: bool
    node: str
    """Only where nodes are emptied as a whole."""


_Shape: TypeAlias = tuple[int, Reshape | None]
"""A group of GPUs that are alike, and what becomes of some of them."""


class _Need(NamedTuple):
    """Rows of one service."""

    demand: int
    number: int
    stops: int
    starts: int


def rearrange(ground: Ground) -> tuple[Gpu, ...] | None:
    """The opened GPUs as they should be, then the added ones; None when the budget is too small."""
    return _Rearranged(ground).solve()


class _Rearranged:
    """Columns are shapes, added GPUs, seats, stays, and two for every service's moves."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._offers = {offer.board.name: offer for offer in ground.offers}
        self._now = {} if ground.still else instances(ground.opened)
        held = instances((*ground.fixed, *ground.opened) if ground.still else ground.fixed)
        self._left = {
            service.name: left
            for service in ground.services
            if any(left := _left(service, held.get(service.name, Counter())))
            or service.name in self._now
        }
        self._services = [one for one in ground.services if one.name in self._left]
        self._kinds = sorted({kind for service in self._services for kind in service.throughput})
        self._made, self._rows = Programme(), 0
        self._groups = self._grouped(ground.opened)
        self._shapes: list[_Shape] = []
        self._ways: list[tuple[Offer, Reshape]] = []
        self._seats: list[tuple[str, Kind]] = []
        total = len(ground.opened) + 1
        worth = _DEAR if ground.worth is None else ground.worth
        self._dear = 0.0 if ground.budget is not None else worth
        self._touch = 1 / total
        self._destroy = self._touch / (4 * _SLICES * total)
        self._start = self._destroy / (2 * _SLICES * total)

    def _grouped(self, gpus: Sequence[Gpu]) -> list[list[Gpu]]:
        """GPUs that are alike, so that it does not matter which of them is reshaped how."""
        found: dict[_Alike, list[Gpu]] = {}
        for gpu in gpus:
            node = gpu.node if self._offers[gpu.board].by_node else ""
            key = _Alike(gpu.board, gpu.slices, gpu.fixed, gpu.locked, node)
            found.setdefault(key, []).append(gpu)
        return list(found.values())

    def solve(self) -> tuple[Gpu, ...] | None:
        """The best found; GPUs beyond the opened ones have no name yet."""
        self._add_rows()
        for at, group in enumerate(self._groups):
            self._add_shapes(at, group[0], len(group))
        for offer in self._ground.offers:
            self._add_ways(offer)
        for service in self._services:
            self._add_seats(service)
        self._add_stays()
        self._add_moves()
        self._add_nodes()
        quick = self._ground.budget is None and self._ground.worth is None
        step = self._touch if quick else 0.0
        found = self._made.whole(_NODES, step=step)
        return None if found is None else self._seated(found)

    def _row(self, low: float, high: float = INFINITE) -> int:
        self._made.row(low, high)
        self._rows += 1
        return self._rows - 1

    def _add_rows(self) -> None:
        self._of_group = [self._row(len(group), len(group)) for group in self._groups]
        self._limits = {
            offer.board.name: self._limit(offer)
            for offer in self._ground.offers
            if offer.most is not None
        }
        self._nodes = {
            gpu.node: self._row(0) for gpu in self._ground.opened if self._offers[gpu.board].by_node
        }
        self._of_kind = {kind: self._row(0) for kind in self._kinds}
        self._needs = {
            service.name: self._need(*self._left[service.name]) for service in self._services
        }
        self._stays = {
            (service.name, kind): (self._row(0), self._row(0))
            for service in self._services
            for kind in sorted(self._now.get(service.name, ()))
            if kind in service.throughput
        }
        self._cost = self._row(0, INFINITE if self._ground.budget is None else self._ground.budget)

    def _limit(self, offer: Offer) -> tuple[int, int]:
        """Rows of GPUs in use, and of those that are added."""
        name, most = offer.board.name, offer.most or 0
        fixed = [gpu for gpu in self._ground.fixed if gpu.board == name and not gpu.sunk]
        opened = [gpu for gpu in self._ground.opened if gpu.board == name and not gpu.sunk]
        left = max(0, most - sum(gpu.used for gpu in fixed))
        added = max(0, most - len(fixed) - len(opened))
        return self._row(-INFINITE, left), self._row(-INFINITE, added)

    def _need(self, demand: float, number: int) -> _Need:
        return _Need(self._row(demand), self._row(number), self._row(0), self._row(0))

    def _add_shapes(self, at: int, gpu: Gpu, size: int) -> None:
        """All ways to reshape it; unused it stays as it is and costs nothing."""
        offer = self._offers[gpu.board]
        if not (self._ground.still and gpu.used) and not gpu.sunk:
            self._shapes.append((at, None))
            self._made.column(0, [(self._of_group[at], 1)], 0, size)
        holders = {one.spot: one.service for one in gpu.slices}
        for shape in self._reshapes(offer, gpu):
            there = Counter(
                Kind(gpu.board, spot.profile)
                for spot in shape.kept
                if not (self._ground.still and holders[spot]) and spot not in gpu.fixed
            )
            there.update({Kind(gpu.board, name): count for name, count in shape.added})
            stays = Counter((holders[spot], Kind(gpu.board, spot.profile)) for spot in shape.kept)
            entries = [(self._of_group[at], 1.0)]
            if not gpu.sunk:
                entries.append((self._cost, float(offer.price)))
            if not gpu.sunk and (limit := self._limits.get(gpu.board)):
                entries.append((limit[0], 1.0))
            changed = shape.kept != gpu.layout or bool(shape.added)
            if changed and gpu.node in self._nodes:
                entries.append((self._nodes[gpu.node], -1.0))
            entries += [
                (self._of_kind[kind], count)
                for kind, count in there.items()
                if kind in self._of_kind
            ]
            entries += [
                (self._stays[stay][0], count)
                for stay, count in stays.items()
                if stay in self._stays
            ]
            lost = [spot for spot in gpu.layout if spot not in shape.kept]
            sitting = sum(holders[spot] is not None for spot in lost)
            cost = self._touch * bool(shape.added) + self._destroy * (len(lost) + sitting)
            self._shapes.append((at, shape))
            self._made.column(cost + self._price(offer) * (not gpu.sunk), entries, 0, size)

    def _reshapes(self, offer: Offer, gpu: Gpu) -> Iterator[Reshape]:
        """Those that leave fixed slices alone, and all others where the backend cannot do better.

        The GPU as it stands is always among them.
        """
        for shape in reshapes(offer.board, self._profiles(gpu.board), gpu.layout):
            same = shape.kept == gpu.layout and not shape.added
            if same or (
                not gpu.locked
                and set(gpu.fixed) <= set(shape.kept)
                and (offer.sibling_safe or not shape.kept)
                and (shape.kept == gpu.layout or not self._ground.still)
            ):
                yield shape

    def _profiles(self, board: str) -> tuple[str, ...]:
        return tuple(kind.profile for kind in self._kinds if kind.board == board)

    def _price(self, offer: Offer) -> float:
        return self._dear * offer.price / max(one.price for one in self._ground.offers)

    def _add_ways(self, offer: Offer) -> None:
        """GPUs that are added; one that is there already and empty is a little better."""
        profiles = self._profiles(offer.board.name)
        for way in ways(offer.board, profiles) if profiles else ():
            slices = [(self._of_kind[Kind(offer.board.name, name)], count) for name, count in way]
            slices += [(row, 1) for row in self._limits.get(offer.board.name, ())]
            self._ways.append((offer, Reshape((), way)))
            cost = 1.5 * self._touch + self._price(offer)
            self._made.column(cost, [*slices, (self._cost, offer.price)])

    def _add_seats(self, service: Service) -> None:
        """All instances, those that stay among them."""
        need = self._needs[service.name]
        for kind, speed in sorted(service.throughput.items()):
            entries = [(self._of_kind[kind], -1.0), (need.demand, speed), (need.number, 1.0)]
            entries.append((need.starts, -1.0))
            if stay := self._stays.get((service.name, kind)):
                entries.append((stay[1], 1.0))
            self._seats.append((service.name, kind))
            self._made.column(self._start, entries)

    def _add_stays(self) -> None:
        """At most as many as sit on kept slices, and as are wanted there."""
        for (name, _), (there, wanted) in self._stays.items():
            need = self._needs[name]
            self._made.column(0, [(there, -1), (wanted, -1), (need.stops, 1), (need.starts, 1)])

    def _add_moves(self) -> None:
        """Moved are the fewer of those that stop and those that start; a switch says which."""
        for service in self._services:
            need, now = self._needs[service.name], self._now.get(service.name, Counter())
            self._made.column(1, [(need.stops, 1), (need.starts, 1)])
            switch = [(need.stops, -now.total()), (need.starts, _most(service))]
            self._made.column(0, switch, 0, 1)

    def _add_nodes(self) -> None:
        """Whoever is on a node of which a GPU is cut anew leaves it, even to come back."""
        for node, row in self._nodes.items():
            there = [gpu for gpu in self._ground.opened if gpu.node == node]
            sitting = sum(one.service is not None for gpu in there for one in gpu.slices)
            self._made.column(sitting + 2 * self._touch, [(row, len(there))], 0, 1)

    def _seated(self, found: Whole) -> tuple[Gpu, ...]:
        columns = iter(found.columns)
        chosen = [shape for shape in self._shapes for _ in range(next(columns))]
        added = [way for way in self._ways for _ in range(next(columns))]
        seats = {one: count for one in self._seats if (count := next(columns))}
        stays = {one: count for one in self._stays if (count := next(columns))}
        shaped = []
        for at, group in enumerate(self._groups):
            shapes = [shape for where, shape in chosen if where == at]
            shapes.sort(key=_idle)
            shaped += [Shaped(gpu, shape) for gpu, shape in zip(group, shapes, strict=True)]
        shaped.sort(key=_name)
        shaped += [Shaped(Gpu(name="", board=offer.board.name), way) for offer, way in added]
        if self._ground.still:
            for name, kinds in instances(self._ground.opened).items():
                stays |= {(name, kind): count for kind, count in kinds.items()}
            seats = dict(Counter(seats) + Counter(stays))
        boards = {name: offer.board for name, offer in self._offers.items()}
        return seat(shaped, Seated(seats, stays), boards)


def _idle(shape: Reshape | None) -> bool:
    return shape is None


def _name(one: Shaped) -> str:
    return one.gpu.name


def _left(service: Service, held: Mapping[Kind, int]) -> tuple[float, int]:
    """Demand and instances beyond what is held already."""
    served = sum(service.throughput.get(kind, 0.0) * count for kind, count in held.items())
    demand = max(service.demand * (1 - NEARLY) - served, 0.0)
    return demand, max(service.instances - sum(held.values()), 0)


def _most(service: Service) -> int:
    """More instances are never wanted."""
    slowest = min(service.throughput.values())
    return max(math.ceil(service.demand / slowest), service.instances)
