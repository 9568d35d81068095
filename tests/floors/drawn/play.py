"""Plays a drawn sequence: a fleet, 60 to 90 ticks with 5 to 40 events, their end, and the rest."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from tests.floors.drawn.faults import KINDS, KINDS_BY_NAME
from tests.floors.drawn.fleet import DrawnFleet, drawn_fleet
from tests.floors.drawn.promises import Promises
from tests.floors.drawn.verdict import Verdict, end_findings

_TICKS, _EVENTS = (60, 90), (5, 40)
# Quiet ticks after which time goes fastest.
_IDLE = 12
# How long nothing may change until a fleet is at rest; a wait of half of this may still end.
_REST = timedelta(minutes=25)
# How long a fleet may take to come to rest after its last fault.
_LONGEST = timedelta(minutes=90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event as it was drawn; what it hits depends on the fleet by then."""

    kind: str
    begins: int
    """The tick."""
    ticks: int
    draw: int
    """The seed of everything that is random about it."""

    def describe(self) -> str:
        return f"{self.kind} at {self.begins} for {self.ticks} ({self.draw})"


def drawn_events(seed: int) -> tuple[Event, ...]:
    """Return the events of a seed, by their begin."""
    rng = random.Random(f"events {seed}")  # noqa: S311 - no secret
    length, count = rng.randint(*_TICKS), rng.randint(*_EVENTS)
    kinds = rng.choices(KINDS, [kind.weight for kind in KINDS], k=count)
    events = (
        Event(
            kind=kind.name,
            begins=rng.randrange(length),
            ticks=rng.randint(*kind.ticks),
            draw=rng.randrange(1_000_000),
        )
        for kind in kinds
    )
    return tuple(sorted(events, key=lambda event: (event.begins, event.draw)))


@dataclass(slots=True)
class _Occurrence:
    event: Event
    undo: Callable[[], object] | None = None
    has_begun: bool = False
    is_over: bool = False

    def begin(self, fleet: DrawnFleet) -> str:
        """Hit one of what the kind may hit now, and return which."""
        self.has_begun = True
        kind, rng = KINDS_BY_NAME[self.event.kind], random.Random(self.event.draw)  # noqa: S311 - no secret
        targets = sorted(kind.targets(fleet))
        if not targets:
            self.is_over = True
            return ""
        target = rng.choice(targets)
        self.undo = kind.begin(fleet, target, rng)
        self.is_over = self.undo is None
        return target

    def end(self) -> None:
        self.is_over = True
        if self.undo is not None:
            self.undo()


@dataclass(slots=True)
class Play:
    """One sequence of a seed, with its own events or with fewer of them."""

    seed: int
    events: Sequence[Event] = ()
    """Events to play; the seed draws them where none are given."""
    log: list[str] = field(default_factory=list)
    _hit: list[str] = field(default_factory=list)

    async def run(self) -> Verdict:
        """Play it to its rest, and judge it."""
        fleet = drawn_fleet(self.seed)
        promises = Promises(fleet)
        try:
            await fleet.settle(900)
            self.log += [f"begins with {line}" for line in fleet.describe() if " on " in line]
            await self._meet(fleet, promises)
            ended = fleet.kube.steady
            is_at_rest = await self._rest(fleet, promises)
            minutes = (fleet.kube.steady - ended) / timedelta(minutes=1)
            findings = list(end_findings(fleet))
            if not is_at_rest:
                findings.append(f"pods or conditions still change after {minutes:.0f} minutes")
            self.log += fleet.describe()
            return Verdict(
                seed=self.seed,
                below_floor=fleet.judge.ticks_below_floor,
                unsettled=len(findings),
                untrue_promises=len(promises.untrue),
                defects=len(fleet.defects),
                findings=(*fleet.defects, *findings, *promises.untrue, *fleet.judge.findings),
                kinds=tuple(self._hit),
                minutes=minutes,
            )
        finally:
            await fleet.close()

    async def _meet(self, fleet: DrawnFleet, promises: Promises) -> None:
        """Let all events begin and end; what is left ends with the last tick."""
        occurrences = [_Occurrence(event) for event in self.events or drawn_events(self.seed)]
        last = max((each.event.begins for each in occurrences), default=0)
        for tick in range(last + 1):
            for each in occurrences:
                if (
                    each.has_begun
                    and not each.is_over
                    and tick >= each.event.begins + each.event.ticks
                ):
                    self._end(fleet, each)
                if not each.has_begun and tick >= each.event.begins:
                    self._begin(fleet, each)
            await _tick(fleet, promises, is_idle=fleet.pause > 0)
            fleet.pause = max(0, fleet.pause - 1)
        for each in occurrences:
            if each.has_begun and not each.is_over:
                self._end(fleet, each)

    def _begin(self, fleet: DrawnFleet, occurrence: _Occurrence) -> None:
        target = occurrence.begin(fleet)
        if target:
            self._hit.append(occurrence.event.kind)
            self.log.append(f"{fleet.kube.at:%H:%M:%S} {occurrence.event.kind} hits {target}")

    def _end(self, fleet: DrawnFleet, occurrence: _Occurrence) -> None:
        occurrence.end()
        self.log.append(f"{fleet.kube.at:%H:%M:%S} {occurrence.event.kind} ends")

    async def _rest(self, fleet: DrawnFleet, promises: Promises) -> bool:
        """Run until nothing changes; return whether that came in time."""
        begun = quiet_since = fleet.kube.steady
        before = _state(fleet)
        while fleet.kube.steady - begun < _LONGEST:
            is_quiet = fleet.kube.steady - quiet_since >= timedelta(minutes=1)
            await _tick(fleet, promises, is_idle=is_quiet)
            state = _state(fleet)
            if state != before:
                before, quiet_since = state, fleet.kube.steady
            if fleet.kube.steady - quiet_since >= _REST:
                return True
        return False


async def _tick(fleet: DrawnFleet, promises: Promises, *, is_idle: bool) -> None:
    fleet.quiet_ticks = _IDLE if is_idle else 0
    await fleet.tick()
    promises.look()


def _state(fleet: DrawnFleet) -> tuple[object, ...]:
    """Return what is at rest once it stays the same: pods, numbers and reasons."""
    reasons = [
        (service, each["type"], each["status"], each["reason"])
        for service in fleet.services()
        for each in fleet.conditions(service)
    ]
    pods = [
        (key.name, pod.takes_requests, pod.terminating, pod.node) for key, pod in fleet.kube.pods()
    ]
    sizes = [(key.name, fleet.kube.strategy(key)) for key in fleet.kube.deployments()]
    return reasons, pods, sizes


async def shrunk(
    events: Sequence[Event], finds: Callable[[Sequence[Event]], Awaitable[bool]]
) -> Sequence[Event]:
    """Return the events that a finding needs: halves are dropped first, then one at a time."""
    size = len(events) // 2
    while size:
        index = 0
        while index < len(events) and len(events) > 1:
            fewer = [*events[:index], *events[index + size :]]
            if fewer and await finds(fewer):
                events = fewer
            else:
                index += size
        size //= 2
    return events
