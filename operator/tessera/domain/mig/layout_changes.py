"""Differences between two states of a fleet: replicas that move, start or stop, and slices."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.fleet import FleetGpu
from tessera.domain.mig.layouts import SlicePlacement


class SliceLocation(NamedTuple):
    """A slice of a named GPU."""

    gpu: str
    start: int
    profile: str

    @property
    def placement(self) -> SlicePlacement:
        return SlicePlacement(self.start, self.profile)


class Move(NamedTuple):
    """A replica that leaves one slice for another."""

    service: str
    source: SliceLocation
    target: SliceLocation


class PlacedReplica(NamedTuple):
    """A replica and its slice."""

    service: str
    location: SliceLocation


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutChanges:
    """The way from one state of a fleet to another."""

    moves: tuple[Move, ...]
    starts: tuple[PlacedReplica, ...]
    """Replicas that start besides those that move."""
    stops: tuple[PlacedReplica, ...]
    created: tuple[SliceLocation, ...]
    destroyed: tuple[SliceLocation, ...]

    @property
    def is_empty(self) -> bool:
        """Return whether both states are the same."""
        return not (self.moves or self.starts or self.stops or self.created or self.destroyed)


def layout_changes(before: Iterable[FleetGpu], after: Iterable[FleetGpu]) -> LayoutChanges:
    """Return what changes from one state to the other."""
    old_slices, old_replicas = _slices_and_replicas(before)
    new_slices, new_replicas = _slices_and_replicas(after)
    leaving, arriving = sorted(old_replicas - new_replicas), sorted(new_replicas - old_replicas)
    moves, starts = [], []
    # A service that leaves slices and takes others moves; the surplus starts or stops.
    for replica in arriving:
        service = replica.service
        source = next((candidate for candidate in leaving if candidate.service == service), None)
        if source is None:
            starts.append(replica)
        else:
            leaving.remove(source)
            moves.append(Move(service, source.location, replica.location))
    return LayoutChanges(
        moves=tuple(moves),
        starts=tuple(starts),
        stops=tuple(leaving),
        created=tuple(sorted(new_slices - old_slices)),
        destroyed=tuple(sorted(old_slices - new_slices)),
    )


def _slices_and_replicas(gpus: Iterable[FleetGpu]) -> tuple[set[SliceLocation], set[PlacedReplica]]:
    slices, replicas = set(), set()
    for gpu in gpus:
        for mig_slice in gpu.slices:
            location = SliceLocation(gpu.name, mig_slice.start, mig_slice.profile)
            slices.add(location)
            if mig_slice.service is not None:
                replicas.add(PlacedReplica(mig_slice.service, location))
    return slices, replicas
