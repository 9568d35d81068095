"""What differs between two states of a fleet: who moves, starts and stops, what is cut."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.fleet import Gpu


class Seat(NamedTuple):
    """A slice of a named GPU."""

    gpu: str
    start: int
    profile: str


class Move(NamedTuple):
    """One instance that leaves a seat for another one."""

    service: str
    source: Seat
    target: Seat


class Placed(NamedTuple):
    """One instance and its seat."""

    service: str
    seat: Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """From one state to the other."""

    moves: tuple[Move, ...]
    starts: tuple[Placed, ...]
    """Instances beyond those that move."""
    stops: tuple[Placed, ...]
    created: tuple[Seat, ...]
    destroyed: tuple[Seat, ...]

    @property
    def none(self) -> bool:
        """Nothing is to be done."""
        return not (self.moves or self.starts or self.stops or self.created or self.destroyed)


def changes(before: Iterable[Gpu], after: Iterable[Gpu]) -> Changes:
    """A service that both leaves seats and takes others moves; what is over starts or stops."""
    old, new = tuple(before), tuple(after)
    sat, sits = set(_placed(old)), set(_placed(new))
    left, taken = sorted(sat - sits), sorted(sits - sat)
    moves, starts = [], []
    for placed in taken:
        source = next((one for one in left if one.service == placed.service), None)
        if source is None:
            starts.append(placed)
        else:
            left.remove(source)
            moves.append(Move(placed.service, source.seat, placed.seat))
    cut, cuts = set(_seats(old)), set(_seats(new))
    return Changes(
        moves=tuple(moves),
        starts=tuple(starts),
        stops=tuple(left),
        created=tuple(sorted(cuts - cut)),
        destroyed=tuple(sorted(cut - cuts)),
    )


def _placed(gpus: Iterable[Gpu]) -> Iterator[Placed]:
    for gpu in gpus:
        for one in gpu.slices:
            if one.service is not None:
                yield Placed(one.service, Seat(gpu.name, one.start, one.profile))


def _seats(gpus: Iterable[Gpu]) -> Iterator[Seat]:
    for gpu in gpus:
        for one in gpu.slices:
            yield Seat(gpu.name, one.start, one.profile)
