"""The order in which a plan is carried out, so that no service falls below what it has to keep.

Starting and cutting come as soon as there is room; which instance stops next is searched, with the
fewest temporary instances. Where everybody waits for somebody else's place, one instance takes a
temporary one; where there is no room for that, a stop says that its service is short.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count

from tessera.domain.mig.boards import Board
from tessera.domain.mig.changes import Placed, Seat
from tessera.domain.mig.demand import NEARLY, Kind, Service
from tessera.domain.mig.fleet import Gpu
from tessera.domain.mig.layouts import Spot, additions, fault

_EXPANSIONS = 2_000
_WIDE = 12
"""More instances that may stop are not compared; the first one does."""
_SHORT = 1_000
"""Temporary instances that are better than one service that is short."""

_HURRIED_SHORT = 3
"""Moves by which another way may be longer, in a hurry, than one with a service that is short."""


class Deed(StrEnum):
    """What is done to one slice."""

    DESTROY = "destroy"
    CREATE = "create"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One deed; the ones after it may rely on it."""

    deed: Deed
    seat: Seat
    service: str | None = None
    temporary: bool = False
    """The instance does not belong to the plan; it bridges a wait."""
    short: bool = False
    """The service has less than it should from here on until its next start."""


@dataclass(frozen=True, slots=True)
class _State:
    cut: frozenset[Seat]
    sits: frozenset[Placed]


@dataclass(order=True, slots=True)
class _Open:
    cost: int
    left: int
    turn: int
    state: _State = field(compare=False)
    steps: tuple[Step, ...] = field(compare=False)


def ordered(
    before: Sequence[Gpu],
    after: Sequence[Gpu],
    services: Sequence[Service],
    boards: Mapping[str, Board],
) -> tuple[Step, ...]:
    """All steps from one state to the other; equal states give none."""
    return _Order(before, after, services, boards).search()


class _Order:
    def __init__(
        self,
        before: Sequence[Gpu],
        after: Sequence[Gpu],
        services: Sequence[Service],
        boards: Mapping[str, Board],
    ) -> None:
        self._board = {gpu.name: boards[gpu.board] for gpu in (*before, *after)}
        self._first, self._goal = _state(before), _state(after)
        self._services = {service.name: service for service in services}
        self._needs = {name: self._need(service) for name, service in self._services.items()}

    def _need(self, service: Service) -> tuple[float, int]:
        """What it keeps at every step: what it has and will have, but no more than it asks for."""
        had, will = (self._held(state, service.name) for state in (self._first, self._goal))
        speed = min(had[0], will[0], service.demand) * (1 - NEARLY)
        return speed, min(had[1], will[1], service.instances)

    def _held(self, state: _State, name: str) -> tuple[float, int]:
        seats = [placed.seat for placed in state.sits if placed.service == name]
        return sum(self._speed(name, seat) for seat in seats), len(seats)

    def _speed(self, name: str, seat: Seat) -> float:
        kind = Kind(self._board[seat.gpu].name, seat.profile)
        return self._services[name].throughput.get(kind, 0.0) if name in self._services else 0.0

    def search(self) -> tuple[Step, ...]:
        """Cheapest first; among equals the one with the least left to do."""
        turn = count()
        edge = [_Open(0, 0, next(turn), *self._closed(self._first, ()))]
        seen: set[_State] = set()
        while edge:
            best = heapq.heappop(edge)
            if best.state.sits == self._goal.sits:
                return self._finished(best)
            if len(seen) > _EXPANSIONS:
                return self._finished(self._hurried(best))
            if best.state not in seen:
                seen.add(best.state)
                for one in self._onward(best, self._next(best.state), turn):
                    heapq.heappush(edge, one)
        raise AssertionError("a stop is always possible")

    def _hurried(self, best: _Open) -> _Open:
        """The way that seems nearest to its end is followed, not the cheapest one."""
        turn = count(0, -1)
        edge = [(0, best)]
        seen: set[_State] = set()
        while edge:
            _, one = heapq.heappop(edge)
            if one.state.sits == self._goal.sits:
                return one
            if one.state in seen:
                continue
            seen.add(one.state)
            for following in self._onward(one, self._next(one.state, every=True), turn):
                shorts, temporary = divmod(following.cost, _SHORT)
                rank = following.left + temporary + _HURRIED_SHORT * shorts
                heapq.heappush(edge, (rank, following))
        raise AssertionError("a stop is always possible")

    def _onward(
        self, best: _Open, following: Iterable[tuple[int, tuple[Step, ...]]], turn: Iterator[int]
    ) -> Iterator[_Open]:
        for cost, taken in following:
            state = best.state
            for step in taken:
                state = _after(state, step)
            state, steps = self._closed(state, (*best.steps, *taken))
            left = len(state.sits ^ self._goal.sits)
            yield _Open(best.cost + cost, left, next(turn), state, steps)

    def _finished(self, best: _Open) -> tuple[Step, ...]:
        """Slices that were in nobody's way go last."""
        gone = [
            Step(deed=Deed.DESTROY, seat=seat) for seat in sorted(best.state.cut - self._goal.cut)
        ]
        state = best.state
        for step in gone:
            state = _after(state, step)
        new = [Step(deed=Deed.CREATE, seat=seat) for seat in sorted(self._goal.cut - state.cut)]
        return (*best.steps, *gone, *new)

    def _closed(self, state: _State, steps: tuple[Step, ...]) -> tuple[_State, tuple[Step, ...]]:
        """Everything done that only helps: starts, cuts, and idle slices out of their way."""
        done = list(steps)
        while step := self._helpful(state):
            state = _after(state, step)
            done.append(step)
        return state, tuple(done)

    def _helpful(self, state: _State) -> Step | None:
        taken = {placed.seat for placed in state.sits}
        starts = sorted(self._goal.sits - state.sits)
        for placed in starts:
            if placed.seat in state.cut and placed.seat not in taken:
                return Step(deed=Deed.START, seat=placed.seat, service=placed.service)
        for seat in sorted({placed.seat for placed in starts} - state.cut):
            beside = [other for other in sorted(state.cut) if other.gpu == seat.gpu]
            if self._fits(seat, beside):
                return Step(deed=Deed.CREATE, seat=seat)
            doomed = [one for one in beside if one not in taken and one not in self._goal.cut]
            if doomed and self._fits(seat, [one for one in beside if one not in doomed]):
                return Step(deed=Deed.DESTROY, seat=doomed[0])
        return None

    def _fits(self, seat: Seat, beside: Sequence[Seat]) -> bool:
        spots = sorted(Spot(one.start, one.profile) for one in (*beside, seat))
        return fault(self._board[seat.gpu], spots) is None

    def _next(
        self, state: _State, *, every: bool = False
    ) -> Iterator[tuple[int, tuple[Step, ...]]]:
        """Stops that hurt nobody, then temporary places, then the stops that hurt: these only
        where nobody else stops, unless every way is asked for."""
        stops = sorted(state.sits - self._goal.sits)
        harmless = [placed for placed in stops if self._spare(state, placed)]
        narrow = len(harmless) > _WIDE and not every
        for placed in harmless[: 1 if narrow else None]:
            yield 0, (_stop(placed),)
        waiting = [placed for placed in stops if placed not in harmless]
        for placed in waiting:
            for steps in self._bridges(state, placed):
                yield 1, steps
        for placed in waiting if every or not harmless else ():
            yield _SHORT, (_stop(placed, short=True),)

    def _spare(self, state: _State, placed: Placed) -> bool:
        speed, number = self._held(state, placed.service)
        least, fewest = self._needs.get(placed.service, (0.0, 0))
        return speed - self._speed(placed.service, placed.seat) >= least and number > fewest

    def _bridges(self, state: _State, placed: Placed) -> Iterator[tuple[Step, ...]]:
        """A start in an idle slice, or the cut of a slice for it, that lets the instance stop."""
        service = self._services.get(placed.service)
        if service is None:
            return
        taken = {one.seat for one in state.sits}
        wanted = {one.seat for one in self._goal.sits}
        for seat in sorted(state.cut - taken - wanted):
            if self._enough(state, placed, seat):
                yield (_bridge(service, seat),)
        for seat in self._free(state, service):
            if self._enough(state, placed, seat) and seat not in wanted:
                yield Step(deed=Deed.CREATE, seat=seat, temporary=True), _bridge(service, seat)

    def _enough(self, state: _State, placed: Placed, seat: Seat) -> bool:
        speed, _ = self._held(state, placed.service)
        added = self._speed(placed.service, seat)
        least, _ = self._needs[placed.service]
        return added > 0 and speed + added - self._speed(placed.service, placed.seat) >= least

    def _free(self, state: _State, service: Service) -> Iterator[Seat]:
        """Room on any GPU, small slices first."""
        found = []
        for name, board in sorted(self._board.items()):
            layout = tuple(
                sorted(Spot(one.start, one.profile) for one in state.cut if one.gpu == name)
            )
            profiles = [
                kind.profile
                for kind in sorted(service.throughput)
                if kind.board == board.name and board.cut(kind.profile)
            ]
            if any(board.cut(spot.profile) is None for spot in layout):
                continue
            for spot in additions(board, layout, profiles):
                cut = board.cut(spot.profile)
                size = cut.memory_slices if cut else 0
                found.append((not layout, size, Seat(name, spot.start, spot.profile)))
        return (seat for _, _, seat in sorted(found))


def _bridge(service: Service, seat: Seat) -> Step:
    return Step(deed=Deed.START, seat=seat, service=service.name, temporary=True)


def _stop(placed: Placed, *, short: bool = False) -> Step:
    return Step(deed=Deed.STOP, seat=placed.seat, service=placed.service, short=short)


def _state(gpus: Sequence[Gpu]) -> _State:
    seats = {
        (one.service, Seat(gpu.name, one.start, one.profile)) for gpu in gpus for one in gpu.slices
    }
    return _State(
        frozenset(seat for _, seat in seats),
        frozenset(Placed(service, seat) for service, seat in seats if service is not None),
    )


def _after(state: _State, step: Step) -> _State:
    match step.deed:
        case Deed.DESTROY:
            return replace(state, cut=state.cut - {step.seat})
        case Deed.CREATE:
            return replace(state, cut=state.cut | {step.seat})
        case Deed.START:
            return replace(state, sits=state.sits | {Placed(step.service or "", step.seat)})
        case Deed.STOP:
            return replace(state, sits=state.sits - {Placed(step.service or "", step.seat)})


def summary(steps: Sequence[Step]) -> Counter[str]:
    """How many of each deed, and of them temporary ones and short ones."""
    found = Counter(str(step.deed) for step in steps)
    found["temporary"] = sum(step.temporary and step.deed == Deed.START for step in steps)
    found["short"] = sum(step.short for step in steps)
    return found
