"""Which slices the services take and which geometries give them, at least cost.

A configuration integer programme. Services meet only in the kinds of slices, a handful, so it is
decomposed: slices have prices, every service answers with its cheapest instances at these prices,
and a programme over all answers sets new prices, until no service has a cheaper answer. That is
the bound. Whole numbers are then found among the answers, which nearly always reach it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.boards import WHOLE, Board
from tessera.domain.mig.demand import Corner, Kind, Offer, Service
from tessera.domain.mig.fill import fillings
from tessera.domain.mig.layouts import Geometry
from tessera.domain.mig.patterns import Pattern, cheapest, single
from tessera.domain.mig.solver import Programme
from tessera.domain.mig.undecomposed import undecomposed

Sort: TypeAlias = tuple[str, Geometry]
"""A board, cut in a way."""

_TINY = 1e-7
"""Of a GPU's price: differences below are rounding of floats."""
_ROUNDS = 60
_NODES = 300
_MANY_NODES = 20_000
"""The same for small fleets of services that take one kind each, in which a node costs little."""
_GOOD = 0.0005
"""Of the cost: less is not worth the search, and less than the figures are true to."""
_SMALL = 250
"""Kinds of all services; up to here a gap is searched without decomposition, too."""
_SLACK = 1e-6
"""Of a step of cost: what rounding of floats may take from a bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Slices and GPUs, without places."""

    instances: Mapping[str, Pattern]
    """Of every service that is served."""
    gpus: Mapping[Sort, int]
    cost: int
    bound: int
    """No mix that serves the same services costs less."""
    unmet: tuple[str, ...]
    """Services that the GPUs on offer cannot hold."""

    @property
    def gap(self) -> float:
        """How far it may be from the optimum, as a share of its cost."""
        return (self.cost - self.bound) / self.cost if self.cost else 0.0


@cache
def ways(board: Board, profiles: tuple[str, ...]) -> tuple[Geometry, ...]:
    """Geometries that hold as much of these profiles as a GPU can; `full` is one of them."""
    cuts = tuple(profile for profile in profiles if profile != WHOLE)
    whole: tuple[Geometry, ...] = (((WHOLE, 1),),) if WHOLE in profiles else ()
    return (*fillings(board, cuts), *whole) if cuts else whole


class _Way(NamedTuple):
    """One column of GPUs."""

    offer: Offer
    way: Geometry
    price: int
    limit: int | None
    """Which of the limits it counts against."""


def cheapest_mix(
    services: Iterable[Service], offers: Iterable[Offer], corners: Sequence[Corner] = ()
) -> Mix:
    """The mix of least cost for all services that some GPU on offer can hold.

    Where not all find room, it is found for as many instances of the floors as possible.
    """
    offered, usable = _by_name(services, offers)
    served = [service for service in usable if service.throughput]
    unmet = tuple(service.name for service in usable if not service.throughput)
    if not served:
        return Mix(instances={}, gpus={}, cost=0, bound=0, unmet=unmet)
    return _Decomposed(served, offered, unmet, corners).solve()


def some_mix(
    services: Iterable[Service], offers: Iterable[Offer], corners: Sequence[Corner] = ()
) -> Mix | None:
    """Some mix that serves all of these, whatever it costs; None when none was found."""
    offered, usable = _by_name(services, offers)
    if not usable:
        return Mix(instances={}, gpus={}, cost=0, bound=0, unmet=())
    if not all(service.throughput for service in usable):
        return None
    return _Decomposed(usable, offered, (), corners).some()


def _by_name(
    services: Iterable[Service], offers: Iterable[Offer]
) -> tuple[list[Offer], list[Service]]:
    """So that their order does not matter; services without what they cannot have."""
    offered = sorted(offers, key=lambda offer: offer.board.name)
    wanted = sorted((one for one in services if one.instances), key=lambda one: one.name)
    return offered, [on_offer(service, offered) for service in wanted]


def on_offer(service: Service, offers: Sequence[Offer]) -> Service:
    """Without kinds that cannot be had or do nothing."""
    boards = {offer.board.name: offer.board for offer in offers}
    throughput = {
        kind: speed
        for kind, speed in sorted(service.throughput.items())
        if speed > 0
        and kind.board in boards
        and (kind.profile == WHOLE or boards[kind.board].cut(kind.profile))
    }
    return replace(service, throughput=throughput)


class _Decomposed:
    """The programme over answers; rows are kinds, services, boards with a limit, and corners."""

    def __init__(
        self,
        services: Sequence[Service],
        offers: Sequence[Offer],
        unmet: tuple[str, ...],
        corners: Sequence[Corner],
    ) -> None:
        self._services, self._offers, self._unmet = services, offers, unmet
        self._kinds = sorted({kind for service in services for kind in service.throughput})
        self._row = {kind: at for at, kind in enumerate(self._kinds)}
        self._limited = [offer for offer in offers if offer.most is not None]
        self._step = math.gcd(*(offer.price for offer in offers)) or 1
        self._all = sum(offer.price * (offer.most or 0) for offer in offers)
        most = self._step + self._all
        free = {offer.board.name for offer in offers if offer.most is None}
        self._penalties = [
            None if free & {kind.board for kind in one.throughput} else most * max(1, one.floor)
            for one in services
        ]
        self._corners = corners
        self._unit = float(max(offer.price for offer in offers)) or 1.0
        self._sorts = list(self._columns())
        self._answers: list[tuple[int, Pattern]] = []
        self._known: set[tuple[int, Pattern]] = set()
        self._master = self._programme()
        self._bound = 0

    def _columns(self) -> Iterator[_Way]:
        names = [offer.board.name for offer in self._limited]
        for offer in self._offers:
            limit = names.index(offer.board.name) if offer.board.name in names else None
            profiles = self._profiles(offer.board)
            for way in ways(offer.board, profiles) if profiles else ():
                yield _Way(offer, way, offer.price, limit)
        by_name = {offer.board.name: offer for offer in self._offers}
        for at, corner in enumerate(self._corners):
            for way in corner.ways:
                yield _Way(by_name[corner.board], way, 0, len(names) + at)

    def _profiles(self, board: Board) -> tuple[str, ...]:
        return tuple(kind.profile for kind in self._kinds if kind.board == board.name)

    def _programme(self) -> Programme:
        made = Programme()
        for _ in self._kinds:
            made.row(0)
        for _ in self._services:
            made.row(1)
        for offer in self._limited:
            made.row(-math.inf, offer.most or 0)
        for corner in self._corners:
            made.row(-math.inf, corner.gpus)
        first = len(self._kinds) + len(self._services)
        for one in self._sorts:
            entries = [(self._row[kind], count) for kind, count in self._asked(one)]
            if one.limit is not None:
                entries.append((first + one.limit, 1))
            made.column(one.price / self._unit, entries)
        return made

    def _asked(self, one: _Way) -> list[tuple[Kind, int]]:
        """Its slices, as far as anybody may want them."""
        slices = _slices(one.offer, one.way)
        return [(kind, count) for kind, count in slices if kind in self._row]

    def solve(self) -> Mix:
        """Answers until the bound stands, then whole numbers."""
        self._begin()
        self._price()
        step = max(self._step, _GOOD * self._bound) / self._unit
        target = self._bound / self._unit + _TINY
        size = sum(len(service.throughput) for service in self._services)
        whole = all(service.alike for service in self._services)
        nodes = _MANY_NODES if whole and size <= _SMALL else _NODES
        found = self._master.whole(nodes, target=target, step=step)
        if found is None:
            raise ArithmeticError("the solver found no whole numbers")
        if whole:
            # All that they could answer is there, so this bound holds, if the search has one.
            self._raise(max(found.bound, 0.0) * self._unit)
        mix = self._mix(found.columns)
        alike = any(service.alike for service in self._services)
        if mix.gap <= _GOOD or size > _SMALL or self._limited or self._corners or alike:
            return mix
        return self._improved(mix)

    def some(self) -> Mix | None:
        """The first whole numbers that cost less than to leave somebody out, which tells nothing
        where some GPUs have no limit."""
        if len(self._limited) < len(self._offers):
            mix = self.solve()
            return None if mix.unmet else mix
        self._begin()
        self._price()
        if self._bound > self._all:
            return None
        most = (self._all + self._step / 2) / self._unit
        found = self._master.whole(_MANY_NODES, target=most, most=most)
        return self._mix(found.columns) if found is not None else None

    def _begin(self) -> None:
        """The answers that are there from the first."""
        shares = {kind: _share(self._offer(kind), kind.profile) for kind in self._kinds}
        self._ask(shares, [math.inf] * len(self._services))
        for at, service in enumerate(self._services):
            if self._penalties[at] is not None:
                self._answer(at, ())
            elif self._limited:
                self._answer(at, cheapest(self._without_limits(service), shares).pattern)
            for pattern in single(service) if service.alike else ():
                self._answer(at, pattern)

    def _without_limits(self, service: Service) -> Service:
        """Where there is always room for it."""
        limited = {offer.board.name for offer in self._limited}
        kinds = service.throughput.items()
        free = {kind: speed for kind, speed in kinds if kind.board not in limited}
        return replace(service, throughput=free)

    def _improved(self, mix: Mix) -> Mix:
        """A small fleet may have a better mix than the answers give: all instances are tried."""
        whole = undecomposed(
            self._services,
            [(one.price / self._unit, self._asked(one)) for one in self._sorts],
            low=mix.bound / self._unit,
            high=mix.cost / self._unit,
            step=max(self._step, _GOOD * self._bound) / self._unit,
        )
        if whole is None:
            return mix
        self._raise(whole.bound * self._unit)
        gpus, instances = whole.gpus, whole.instances
        counts = {
            (one.offer.board.name, one.way): count
            for one, count in zip(self._sorts, gpus, strict=True)
            if count
        }
        cost = sum(self._price_of(board) * count for (board, _), count in counts.items())
        if cost >= mix.cost:
            return replace(mix, bound=min(mix.cost, self._bound))
        bound = min(cost, self._bound)
        return replace(mix, instances=instances, gpus=counts, cost=cost, bound=bound)

    def _price(self) -> None:
        """Ask all services at ever better prices; afterwards the bound is known."""
        begin, end, unit = len(self._kinds), len(self._kinds) + len(self._services), self._unit
        for _ in range(_ROUNDS):
            relaxed = self._master.relaxed()
            if relaxed is None:
                raise ArithmeticError("the solver found no prices")
            prices = {
                kind: max(price, 0.0) * unit
                for kind, price in zip(self._kinds, relaxed.duals[:begin], strict=True)
            }
            rents = [
                max(-rent, 0.0) * unit for rent in relaxed.duals[end : end + len(self._limited)]
            ]
            paid = [value * unit for value in relaxed.duals[begin:end]]
            sums, new = self._ask(prices, paid)
            self._raise(self._safe(prices, rents, sums))
            if not new or self._rounded(relaxed.value * unit) <= self._bound:
                return

    def _ask(self, prices: Mapping[Kind, float], paid: Sequence[float]) -> tuple[float, bool]:
        """The sum of the services' bounds, and whether one answered more cheaply than paid."""
        total, new = 0.0, False
        for at, service in enumerate(self._services):
            answer = cheapest(service, prices)
            penalty = self._penalties[at]
            total += answer.bound if penalty is None else min(answer.bound, penalty)
            if answer.cost < paid[at] - _TINY * self._unit:
                new |= self._answer(at, answer.pattern)
        return total, new

    def _answer(self, at: int, pattern: Pattern) -> bool:
        if (at, pattern) in self._known:
            return False
        self._known.add((at, pattern))
        self._answers.append((at, pattern))
        entries: list[tuple[int, float]] = [(self._row[kind], -count) for kind, count in pattern]
        cost = 0 if pattern else self._penalties[at] or 0
        self._master.column(cost / self._unit, [*entries, (len(self._kinds) + at, 1)])
        return True

    def _safe(self, prices: Mapping[Kind, float], rents: Sequence[float], total: float) -> float:
        """The bound, made smaller where the prices of a GPU's slices exceed its own."""
        rent = {offer.board.name: value for offer, value in zip(self._limited, rents, strict=True)}
        excess = max(
            self._value(one, prices) / (one.price + rent.get(one.offer.board.name, 0.0))
            for one in self._sorts
            if one.price
        )
        limits = sum(
            value * (offer.most or 0) for offer, value in zip(self._limited, rents, strict=True)
        )
        kept = [0.0] * len(self._corners)
        for one in self._sorts:
            if not one.price and one.limit is not None:
                at = one.limit - len(self._limited)
                kept[at] = max(kept[at], self._value(one, prices) * self._corners[at].gpus)
        return total / max(excess, 1.0) - limits - sum(kept)

    def _value(self, one: _Way, prices: Mapping[Kind, float]) -> float:
        return sum(prices[kind] * count for kind, count in self._asked(one))

    def _raise(self, bound: float) -> None:
        self._bound = max(self._bound, self._rounded(bound))

    def _rounded(self, bound: float) -> int:
        """Up to a cost that is possible."""
        return math.ceil((bound - _TINY * self._unit) / self._step - _SLACK) * self._step

    def _offer(self, kind: Kind) -> Offer:
        return next(offer for offer in self._offers if offer.board.name == kind.board)

    def _mix(self, columns: Sequence[int]) -> Mix:
        gpus = {
            (one.offer.board.name, one.way): count
            for one, count in zip(self._sorts, columns, strict=False)
            if count and one.price
        }
        chosen: dict[int, Pattern] = {}
        for (at, pattern), count in zip(self._answers, columns[len(self._sorts) :], strict=True):
            if count and not chosen.get(at):
                chosen[at] = pattern
        left = {at for at in range(len(self._services)) if not chosen.get(at)}
        cost = sum(self._price_of(board) * count for (board, _), count in gpus.items())
        lost = sum(self._penalties[at] or 0 for at in left)
        return Mix(
            instances={self._services[at].name: chosen[at] for at in sorted(chosen) if chosen[at]},
            gpus=gpus,
            cost=cost,
            bound=min(cost, max(self._bound - lost, 0)),
            unmet=tuple(sorted({*self._unmet, *(self._services[at].name for at in left)})),
        )

    def _price_of(self, board: str) -> int:
        return next(offer.price for offer in self._offers if offer.board.name == board)


def _slices(offer: Offer, way: Geometry) -> list[tuple[Kind, int]]:
    return [(Kind(offer.board.name, profile), count) for profile, count in way]


def _share(offer: Offer, profile: str) -> float:
    """A first price: the larger of the shares in compute and memory."""
    cut = offer.board.cut(profile)
    if cut is None:
        return float(offer.price)
    compute = cut.compute_slices / offer.board.compute_slices
    return offer.price * max(compute, cut.memory_slices / offer.board.memory_slices)
