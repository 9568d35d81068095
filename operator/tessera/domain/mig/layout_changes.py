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
class GpuRepartition:
    """A GPU whose slices change."""

    gpu: str
    displaced: tuple[str, ...]
    """The services on slices that are destroyed, once per replica."""
    destroyed: tuple[SlicePlacement, ...]
    created: tuple[SlicePlacement, ...]


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


def repartition_rank(
    displaced: int, name: str, services_with_downtime: int = 0
) -> tuple[int, int, str]:
    """Return the key by which repartitions begin: the least harm first, then by name."""
    return services_with_downtime, displaced, name


def repartitions(before: Iterable[FleetGpu], after: Iterable[FleetGpu]) -> list[GpuRepartition]:
    """Return the GPUs whose slices change, in the order in which they are begun."""
    old_gpus = {gpu.name: gpu for gpu in before}
    changed = []
    for gpu in after:
        old = old_gpus.get(gpu.name)
        old_slices = old.slices if old is not None else ()
        old_layout = old.layout if old is not None else ()
        if set(gpu.layout) == set(old_layout):
            continue
        destroyed = tuple(placement for placement in old_layout if placement not in gpu.layout)
        repartition = GpuRepartition(
            gpu=gpu.name,
            displaced=tuple(
                mig_slice.service
                for mig_slice in old_slices
                if mig_slice.service is not None and mig_slice.placement in destroyed
            ),
            destroyed=destroyed,
            created=tuple(placement for placement in gpu.layout if placement not in old_layout),
        )
        changed.append(repartition)
    return sorted(changed, key=lambda gpu: repartition_rank(len(gpu.displaced), gpu.gpu))


def _slices_and_replicas(gpus: Iterable[FleetGpu]) -> tuple[set[SliceLocation], set[PlacedReplica]]:
    slices, replicas = set(), set()
    for gpu in gpus:
        for mig_slice in gpu.slices:
            location = SliceLocation(gpu.name, mig_slice.start, mig_slice.profile)
            slices.add(location)
            if mig_slice.service is not None:
                replicas.add(PlacedReplica(mig_slice.service, location))
    return slices, replicas
