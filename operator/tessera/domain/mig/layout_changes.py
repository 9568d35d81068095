"""What differs between two states of a fleet: who moves, starts and stops, what is cut."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.fleet import FleetGpu


class SliceLocation(NamedTuple):
    """A slice of a named GPU."""

    gpu: str
    start: int
    profile: str


class Move(NamedTuple):
    """One instance that leaves a seat for another one."""

    service: str
    source: SliceLocation
    target: SliceLocation


class PlacedReplica(NamedTuple):
    """One instance and its seat."""

    service: str
    location: SliceLocation


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutChanges:
    """From one state to the other."""

    moves: tuple[Move, ...]
    starts: tuple[PlacedReplica, ...]
    """Instances beyond those that move."""
    stops: tuple[PlacedReplica, ...]
    created: tuple[SliceLocation, ...]
    destroyed: tuple[SliceLocation, ...]

    @property
    def is_empty(self) -> bool:
        """Nothing is to be done."""
        return not (self.moves or self.starts or self.stops or self.created or self.destroyed)


def layout_changes(before: Iterable[FleetGpu], after: Iterable[FleetGpu]) -> LayoutChanges:
    """A service that both leaves seats and takes others moves; what is over starts or stops."""
    old_gpus, new_gpus = tuple(before), tuple(after)
    old_replicas, new_replicas = set(_placed_replicas(old_gpus)), set(_placed_replicas(new_gpus))
    leaving, arriving = sorted(old_replicas - new_replicas), sorted(new_replicas - old_replicas)
    moves, starts = [], []
    for replica in arriving:
        source = next(
            (candidate for candidate in leaving if candidate.service == replica.service), None
        )
        if source is None:
            starts.append(replica)
        else:
            leaving.remove(source)
            moves.append(Move(replica.service, source.location, replica.location))
    old_slices, new_slices = set(_slice_locations(old_gpus)), set(_slice_locations(new_gpus))
    return LayoutChanges(
        moves=tuple(moves),
        starts=tuple(starts),
        stops=tuple(leaving),
        created=tuple(sorted(new_slices - old_slices)),
        destroyed=tuple(sorted(old_slices - new_slices)),
    )


def _placed_replicas(gpus: Iterable[FleetGpu]) -> Iterator[PlacedReplica]:
    for gpu in gpus:
        for mig_slice in gpu.slices:
            if mig_slice.service is not None:
                yield PlacedReplica(
                    mig_slice.service, SliceLocation(gpu.name, mig_slice.start, mig_slice.profile)
                )


def _slice_locations(gpus: Iterable[FleetGpu]) -> Iterator[SliceLocation]:
    for gpu in gpus:
        for mig_slice in gpu.slices:
            yield SliceLocation(gpu.name, mig_slice.start, mig_slice.profile)
