"""A language of faults: what goes wrong is data, and a sequence of two is a sentence of it.

A `Fault` says what is done to a fleet, to which of its parts, for how long and whether it takes
capacity away. `sequence_of` draws two of them by a seed, and a player (`layout_player.py`,
`batch_player.py`) carries them out under a simulated clock while an observer looks on.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

FleetT = TypeVar("FleetT")
# A fault that finds nothing to hit for so long does not happen.
_LONGEST_WAIT_SECONDS = 300.0


def _nothing(_fleet: object, _target: str) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Generic[FleetT]):
    """Something that happens to a fleet of this type."""

    name: str
    targets: Callable[[FleetT], Sequence[str]]
    """What it may hit now; while that is nothing, it waits for some minutes."""
    begin: Callable[[FleetT, str], None]
    during: Callable[[FleetT, str], None] = _nothing
    """Done again in each step until it ends."""
    end: Callable[[FleetT, str], None] | None = None
    """Takes it back; None for what stays as it is."""
    seconds: tuple[int, int] = (5, 60)
    """The shortest and the longest time from its begin to its end."""
    removes_capacity: bool = False
    """Replicas that it takes down itself may be missing until their service has its floor again."""
    backends: Collection[str] | None = None
    """The backends with which it can happen; None is all of them."""
    permits: Collection[str] = ()
    """States of a batch at the end that it justifies beside the right one."""
    needs: str = ""
    """An object without which it has nothing to hit."""
    takes_away: str = ""
    """An object that is gone afterwards for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSequence(Generic[FleetT]):
    """Two faults, and the seed of everything that is random about them."""

    seed: int
    faults: tuple[Fault[FleetT], Fault[FleetT]]

    @property
    def name(self) -> str:
        return "-".join((str(self.seed), *(fault.name for fault in self.faults)))


def sequence_of(
    faults: Sequence[Fault[FleetT]], seed: int, backend: str | None = None
) -> FaultSequence[FleetT]:
    """Draw the sequence of this seed from the faults that can happen with the backend."""
    possible = [fault for fault in faults if fault.backends is None or backend in fault.backends]
    rng = random.Random(seed)  # noqa: S311 - no secret
    first = rng.choice(possible)
    second = rng.choice(
        [
            fault
            for fault in possible
            if fault is not first and not (fault.needs and fault.needs == first.takes_away)
        ]
    )
    return FaultSequence(seed=seed, faults=(first, second))


@dataclass(slots=True, kw_only=True)
class Occurrence(Generic[FleetT]):
    """A fault of a sequence with its times, in seconds of the fleet's clock."""

    fault: Fault[FleetT]
    begins: float
    ends: float
    target: str | None = None
    """What it hit; None before it began."""
    over: bool = False

    def step(self, fleet: FleetT, now: float, rng: random.Random) -> bool:
        """Begin, go on or end, whatever is due; return whether it began or ended now."""
        if self.over or now < self.begins:
            return False
        if self.target is None:
            targets = self.fault.targets(fleet)
            if not targets:
                self.over = now >= self.begins + _LONGEST_WAIT_SECONDS
                return self.over
            self.target, self.ends = rng.choice(sorted(targets)), self.ends + now - self.begins
            self.fault.begin(fleet, self.target)
            self.over = self.fault.end is None and self.fault.during is _nothing
            return True
        if now < self.ends:
            self.fault.during(fleet, self.target)
            return False
        self.over = True
        if self.fault.end is not None:
            self.fault.end(fleet, self.target)
        return True

    def describe(self) -> str:
        if self.target is None:
            return f"{self.fault.name} finds nothing to hit"
        ending = self.over and self.fault.end is not None
        return f"{self.fault.name} {'ends' if ending else f'hits {self.target}'}"


def occurrences(
    sequence: FaultSequence[FleetT], rng: random.Random, start: float, spread: float, step: float
) -> list[Occurrence[FleetT]]:
    """Return when the faults happen: the first within `spread` seconds, the second soon after it.

    The second begins at any step between the first one's begin and some seconds after its end.
    """
    planned: list[Occurrence[FleetT]] = []
    earliest, latest = start, start + spread
    for fault in sequence.faults:
        begins = rng.uniform(earliest, latest)
        ends = begins + max(step, rng.uniform(*fault.seconds))
        planned.append(Occurrence(fault=fault, begins=begins, ends=ends))
        earliest, latest = begins, ends + 6 * step
    return planned
