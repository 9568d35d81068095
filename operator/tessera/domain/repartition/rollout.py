"""A planned layout is carried out unit by unit, and no service falls below what it has to keep.

A unit is some GPUs of one node. Its node takes no new pods, its pods leave when others serve in
their place, then the backend cuts, and the node is open again when it offers what was planned.
Nothing is remembered but the units in the pool's status, which are written before anything else:
every turn looks at what there is, so that any of its writes may be lost or repeated.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, Phase, Unit
from tessera.domain.reasons import LayoutReady, StatusVerdict
from tessera.domain.ref import Ref
from tessera.domain.repartition.backend import Ask, GeometryBackend
from tessera.domain.repartition.facts import Ground
from tessera.domain.repartition.goals import Goal, goals
from tessera.domain.repartition.leaving import kept_up, outgrown, stands, told
from tessera.domain.repartition.lending import Waiting, loan
from tessera.domain.repartition.orders import Orders, Tenant
from tessera.domain.repartition.room import Room, Shortage, successor
from tessera.domain.repartition.units import Work, hindrance, incomplete, unavailable, work
from tessera.domain.repartition.window import closed
from tessera.domain.repartition.wording import (
    cut_short,
    failed,
    no_room,
    placing,
    taken_back,
    waits,
    working,
)

ATTEMPTS = 5
"""So often a backend is asked for the same."""
SETTLED = timedelta(seconds=5)
"""A pod that was bound before the taint is seen by then."""
PATIENCE = timedelta(minutes=10)
"""Replacements that do not become Ready are waited for so long, where the floor is kept without
them; a unit whose room was taken by others is given up after it."""


_PASSING = frozenset(
    {LayoutReady.UNMANAGED_POD, LayoutReady.GPU_IN_USE, LayoutReady.REPARTITIONING}
)
"""What is seen for a moment after a pod ended, until the agent has seen that too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that a rollout looks at."""

    pool: str
    mig: Mig
    status: MigStatus
    """As it was written last."""
    grounds: Sequence[Ground]
    tenants: Sequence[Tenant]
    backend: GeometryBackend
    own: Collection[Ref]
    """Pods that Tessera made; others are nobody's to move."""
    at: datetime


def carry_on(scene: Scene) -> Orders:
    """What this turn does for the plan of the status.

    The status that comes out is to be written before the rest.
    """
    plan = scene.status.target
    if plan is None:
        untold = StatusVerdict(LayoutReady.PLANNING, f"the pool {scene.pool} has no plan yet")
        status = scene.status.model_copy(update={"units": ()})
        doomed, leaving = kept_up(scene.tenants)
        return Orders(verdict=untold, status=status, doomed=doomed, leaving=leaving)
    return _Turn(scene, plan).orders()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A unit in work."""

    unit: Unit
    work: Work
    """Of its GPUs that are not as they should be."""
    problem: StatusVerdict[LayoutReady] | None = None
    surges: bool = False
    """Its node takes pods until the replacements, which have room there alone, have slices."""

    @property
    def lends(self) -> bool:
        """Its node is open to pods meanwhile."""
        return self.unit.phase == "Lending"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A unit that may be begun."""

    work: Work
    harms: int = 0
    """Services that allowed to be harmed, and would be."""

    @property
    def rank(self) -> tuple[int, int, str]:
        return self.harms, len(self.work.pods), self.work.ground.name


class _Turn:
    def __init__(self, scene: Scene, plan: MigPlan) -> None:
        self._mig, self._status, self._at = scene.mig, scene.status, scene.at
        self._backend, self._can = scene.backend, scene.backend.capabilities
        self._own = frozenset(scene.own)
        self._since = plan.at
        self._units = sorted(scene.status.units, key=lambda one: one.node)
        self._goals = goals(plan, self._units, scene.grounds, pinned=self._can.pinned_starts)
        self._room = Room(scene.grounds, scene.tenants)
        self._works: dict[tuple[str, tuple[int, ...]], Work] = {}
        self._hindrances: dict[tuple[str, int], StatusVerdict[LayoutReady] | None] = {}
        self._open: dict[str, _Open] = {}
        self._asks: dict[str, Ask] = {}
        self._blocked: list[StatusVerdict[LayoutReady]] = []
        self._waiting: list[Waiting] = []

    def orders(self) -> Orders:
        for unit in self._units:
            if (found := self._gone_on(unit)) is not None:
                self._open[unit.node] = found
        shut = closed(self._mig.maintenance_window, self._at)
        self._begin(shut)
        self._settle()
        outgrew = outgrown(self._room.tenants)
        doomed = self._doomed() | outgrew
        leaving = self._leaving(doomed, outgrew)
        known = self._room.replica
        evict = {
            pod: known[pod].uid
            for pod in sorted(leaving)
            if known[pod].leaving and known[pod].empty
        }
        units = tuple(self._worded(one, leaving, evict) for _, one in sorted(self._open.items()))
        done = sum(self._done(goal) for goal in self._goals.values())
        total = sum(len(goal.wanted) + len(goal.impossible) for goal in self._goals.values())
        changes = {"units": units, "done": done, "total": total}
        return Orders(
            verdict=self._verdict(units, f"{done} of {total} GPUs are as planned", shut),
            status=self._status.model_copy(update=changes),
            tainted=self._shut(),
            doomed=frozenset(pod for pod in doomed if stands(known[pod])),
            surges=self._room.surges(self._doomed(), self._room.supply(self._shut())),
            leaving=leaving,
            evict=evict,
            asks=self._asks,
        )

    def _done(self, goal: Goal) -> int:
        undone = {*goal.differing, *goal.absent, *goal.lent}
        return sum(gpu not in undone for gpu in goal.wanted)

    def _shut(self) -> frozenset[str]:
        """Nodes that take no new pods."""
        return frozenset(name for name, one in self._open.items() if not (one.lends or one.surges))

    def _in_work(self) -> int:
        return sum(not one.lends for one in self._open.values())

    # What is in work

    def _gone_on(self, unit: Unit) -> _Open | None:
        """The unit a turn later; None when it is over."""
        goal = self._goals.get(unit.node)
        if goal is None:
            return None
        gpus = tuple(gpu for gpu in unit.gpus if gpu in goal.wanted)
        differing = tuple(gpu for gpu in gpus if gpu in goal.differing)
        if not gpus:
            return None
        if unit.phase in {"Applying", "Verifying"}:
            return self._applied(unit, goal, gpus, differing)
        return self._emptied(unit, goal, differing) if differing else self._over(unit, goal)

    def _over(self, unit: Unit, goal: Goal) -> _Open | None:
        """What is cut for a while stays until it is taken back."""
        if not unit.instead:
            return None
        since = unit.since if unit.phase == "Lending" else self._at
        lending = unit.model_copy(update={"phase": "Lending", "since": since})
        return _Open(unit=lending, work=self._work(goal, ()))

    def _emptied(self, unit: Unit, goal: Goal, gpus: tuple[int, ...]) -> _Open | None:
        found = self._work(goal, gpus)
        begun = any(self._room.replica[pod].leaving for pod in found.pods)
        since = self._at if unit.phase != "Emptying" else unit.since
        now = unit.model_copy(update={"gpus": gpus, "phase": "Emptying", "since": since})
        ahead = self._backend.ask(found.ground, found.wanted, unit.attempt).configs
        if ahead:  # a file takes a while to reach the node
            self._asks[unit.node] = Ask(configs=ahead)
        late = self._at - since >= PATIENCE
        if problem := self._hindered(goal, gpus):
            passes = problem.reason in _PASSING and not late
            kept = _Open(unit=now, work=found, problem=None if passes else problem)
            return kept if begun or passes else None
        if found.free and goal.ground.tainted and self._at - since >= SETTLED:
            return self._asked(now, found, "Applying")
        surges = not begun and self._surges(found)
        if late and not begun and not surges and self._short(found):
            return None
        return _Open(unit=now, work=found, surges=surges)

    def _hindered(self, goal: Goal, gpus: Sequence[int]) -> StatusVerdict[LayoutReady] | None:
        """Why these GPUs cannot be cut, whatever room there is."""
        if told_so := unavailable(goal):
            return told_so
        found = (self._hindrance(goal, gpu) for gpu in gpus)
        return next((one for one in found if one is not None), None)

    def _applied(
        self, unit: Unit, goal: Goal, gpus: tuple[int, ...], differing: tuple[int, ...]
    ) -> _Open | None:
        """Asked until it is done. Somebody who came nevertheless has to leave first."""
        ground = goal.ground
        found = self._work(goal, differing)
        now = unit.model_copy(update={"gpus": gpus})
        if not found.free:
            emptying = {"phase": "Emptying", "since": self._at}
            return _Open(unit=now.model_copy(update=emptying), work=found)
        wanted = {gpu: goal.wanted[gpu] for gpu in gpus}
        asked = replace(found, wanted=wanted)
        heard = self._backend.heard(ground, wanted, unit.attempt, unit.since, self._at)
        if heard.done:
            return self._over(unit, goal)
        if heard.again and unit.attempt < ATTEMPTS:
            following = {"attempt": unit.attempt + 1, "since": self._at}
            return self._asked(now.model_copy(update=following), asked, "Applying")
        again = failed(ground.name, gpus, ATTEMPTS) if heard.again else None
        phase: Phase = unit.phase if differing or goal.absent else "Verifying"
        return replace(self._asked(now, asked, phase), problem=heard.problem or again)

    def _asked(self, unit: Unit, found: Work, phase: Phase) -> _Open:
        since = unit.since if unit.phase == phase else self._at
        self._asks[unit.node] = self._backend.ask(found.ground, found.wanted, unit.attempt)
        return _Open(unit=unit.model_copy(update={"phase": phase, "since": since}), work=found)

    def _settle(self) -> None:
        """What keeps a finished node so is asked for where it is not there."""
        for name, goal in self._goals.items():
            if name in self._open or goal.differing or unavailable(goal) or incomplete(goal):
                continue
            if not self._backend.heard(goal.ground, goal.wanted, 1, self._since, self._at).done:
                self._asks[name] = self._backend.ask(goal.ground, goal.wanted, 1)

    # What begins

    def _begin(self, shut: str | None) -> None:
        """As much as may be in work; what lends is over when nothing goes on with it."""
        if self._in_work() and not self._may_begin():
            return
        candidates = self._candidates()
        while candidates and not shut and self._may_begin():
            first = min(candidates, key=lambda one: one.rank)
            self._opened(first.work)
            candidates = self._candidates() if self._may_begin() else []
        if candidates or self._in_work():
            return
        if self._open:
            self._open.clear()
            self._blocked.append(taken_back())
        elif self._waiting and not shut:
            self._lend()

    def _may_begin(self) -> bool:
        """A node that is stuck hinders others only when too many are."""
        stuck = sum(one.problem is not None for one in self._open.values())
        return (
            self._in_work() - stuck < self._mig.max_concurrent and stuck <= self._mig.max_concurrent
        )

    def _opened(self, found: Work, instead: tuple[GpuTarget, ...] = ()) -> None:
        node = found.ground.name
        unit = Unit(node=node, gpus=found.gpus, phase="Emptying", since=self._at, instead=instead)
        self._open[node] = _Open(unit=unit, work=found, surges=self._surges(found))

    def _lend(self) -> None:
        there = [goal for goal in self._goals.values() if not unavailable(goal)]
        found = loan(self._waiting, there, self._room, self._can)
        if found is not None:
            nobody = replace(self._work(found.goal, found.gpus), pods=frozenset())
            self._opened(nobody, found.instead)

    def _candidates(self) -> list[_Candidate]:
        """At most one of each node; what cannot be begun is told."""
        self._blocked, self._waiting = [], []
        found: list[_Candidate] = []
        for name, goal in self._goals.items():
            if told_so := incomplete(goal):
                self._blocked.append(told_so)
            if name in self._open or not (goal.differing or goal.ground.disagrees):
                continue
            if told_so := unavailable(goal):
                self._blocked.append(told_so)
            else:
                found += self._of_node(goal)
        return found

    def _of_node(self, goal: Goal) -> Iterator[_Candidate]:
        """GPUs that nobody has to leave go alone, since they free room; then as many as can."""
        told_so = {gpu: self._hindrance(goal, gpu) for gpu in goal.differing}
        self._blocked += [one for one in told_so.values() if one is not None]
        free = [gpu for gpu, one in told_so.items() if one is None]
        if not (self._can.knows_pods and goal.ground.tells_pods):
            if len(free) == len(goal.differing):
                yield from self._judged(goal, [free])
            return
        works = {gpu: self._work(goal, (gpu,)) for gpu in free}
        if idle := [gpu for gpu in free if not works[gpu].pods]:
            yield _Candidate(work=self._work(goal, idle))
            return
        single = sorted(free, key=lambda gpu: (len(works[gpu].pods), gpu))
        yield from self._judged(goal, [(gpu,) for gpu in single])

    def _judged(self, goal: Goal, parts: Sequence[Sequence[int]]) -> Iterator[_Candidate]:
        """All parts of the node that can be cut at once."""
        chosen, lacking = self._work(goal, ()), list[Waiting]()
        for part in parts:
            grown = self._work(goal, (*chosen.gpus, *part))
            short = self._short(grown)
            if not short or self._fits_beside(grown):
                chosen = grown
            elif not chosen.gpus:
                lacking.append(Waiting(work=grown, shortages=short))
        if chosen.gpus:
            yield _Candidate(work=chosen, harms=self._harms(chosen))
            return
        self._waiting += lacking
        self._blocked += [no_room(one.work, short) for one in lacking for short in one.shortages]

    def _work(self, goal: Goal, gpus: Sequence[int]) -> Work:
        """The same for the whole turn, in which it is looked at more than once."""
        key = goal.ground.name, tuple(gpus)
        if key not in self._works:
            self._works[key] = work(goal.ground, goal.wanted, gpus, self._room, self._can)
        return self._works[key]

    def _hindrance(self, goal: Goal, gpu: int) -> StatusVerdict[LayoutReady] | None:
        key = goal.ground.name, gpu
        if key not in self._hindrances:
            self._hindrances[key] = hindrance(goal, gpu, self._room, self._can, self._own)
        return self._hindrances[key]

    def _short(self, more: Work, *, beside: bool = False) -> list[Shortage]:
        """Who would fall short if this were cut besides all that is in work.

        `beside` counts on the free slices of its own node.
        """
        shut = self._shut() - {more.ground.name}
        supply = self._room.supply(shut if beside else {*shut, more.ground.name})
        return self._room.shortages(self._doomed() | more.pods, supply)

    def _surges(self, found: Work) -> bool:
        """Whether the replacements have room on the same node alone, and surely get that."""
        return bool(self._short(found)) and self._fits_beside(found)

    def _fits_beside(self, found: Work) -> bool:
        """They surely get it where none of them can take a slice that goes."""
        ground = found.ground
        if not (self._can.knows_pods and ground.tells_pods and self._room.free(ground.name)):
            return False
        profiles = {
            successor(tenant, [one for one in tenant.replicas if one.pod in found.pods])
            for tenant in self._room.concerned(found.pods)
        }
        return not (profiles & found.vacant or self._short(found, beside=True))

    def _harms(self, found: Work) -> int:
        return sum(tenant.downtime for tenant in self._room.concerned(found.pods))

    # Who leaves

    def _doomed(self) -> frozenset[Ref]:
        return frozenset[Ref]().union(*(one.work.pods for one in self._open.values()))

    def _leaving(self, doomed: frozenset[Ref], outgrew: frozenset[Ref]) -> frozenset[Ref]:
        """Those of a unit leave only once its node takes no new ones."""
        units = self._doomed()
        ready, hurried = set[Ref](), set[Ref]()
        for one in self._open.values():
            if one.work.ground.tainted:
                ready |= one.work.pods
                if self._at - one.unit.since >= PATIENCE:
                    hurried |= one.work.pods
        later = frozenset[Ref]().union(
            *(self._work(goal, goal.differing).pods for goal in self._goals.values())
        )
        return told(
            self._room,
            doomed,
            self._room.supply(self._shut()),
            may=ready | (outgrew - units),
            going=units | later if later else doomed,
            hurried=hurried,
        )

    # What is said

    def _worded(self, one: _Open, leaving: Collection[Ref], evict: Collection[Ref]) -> Unit:
        problem = one.problem.message if one.problem else ""
        message = problem or (
            placing(one.work) if one.surges else waits(one.unit, one.work, leaving, evict)
        )
        return one.unit.model_copy(update={"message": cut_short(message)})

    def _verdict(
        self, units: Sequence[Unit], so_far: str, shut: str | None
    ) -> StatusVerdict[LayoutReady]:
        problem = next((one.problem for one in self._open.values() if one.problem), None)
        if problem is not None:
            return StatusVerdict(problem.reason, f"{problem.message}; {so_far}")
        if units:
            return StatusVerdict(LayoutReady.REPARTITIONING, f"{working(units)}; {so_far}")
        if shut and any(goal.differing for goal in self._goals.values()):
            return StatusVerdict(LayoutReady.OUTSIDE_MAINTENANCE_WINDOW, f"{shut}; {so_far}")
        if self._blocked:
            first = min(self._blocked, key=lambda one: (one.reason.value, one.message))
            return StatusVerdict(first.reason, f"{first.message}; {so_far}")
        return StatusVerdict(LayoutReady.AS_PLANNED, so_far)
