"""Differences between two states of a fleet: replicas that move, and GPUs whose slices change."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.mig.fleet import FleetGpu


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRepartition:
    """A GPU whose slices change."""

    gpu: str
    displaced: tuple[str, ...]
    """The services on slices that are destroyed, once per replica."""
    destroyed: tuple[SlicePlacement, ...]
    created: tuple[SlicePlacement, ...]


def replica_moves(before: Iterable[FleetGpu], after: Iterable[FleetGpu]) -> tuple[Move, ...]:
    """Return the replicas that leave one slice for another; the surplus starts or stops."""
    old_replicas, new_replicas = _placed_replicas(before), _placed_replicas(after)
    leaving, moved = sorted(old_replicas - new_replicas), []
    for service, target in sorted(new_replicas - old_replicas):
        source = next((replica for replica in leaving if replica[0] == service), None)
        if source is not None:
            leaving.remove(source)
            moved.append(Move(service, source[1], target))
    return tuple(moved)


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
        old = old_gpus.get(gpu.name, replace(gpu, slices=()))
        if set(gpu.layout) == set(old.layout):
            continue
        destroyed = tuple(placement for placement in old.layout if placement not in gpu.layout)
        repartition = GpuRepartition(
            gpu=gpu.name,
            displaced=tuple(
                mig_slice.service
                for mig_slice in old.slices
                if mig_slice.service is not None and mig_slice.placement in destroyed
            ),
            destroyed=destroyed,
            created=tuple(placement for placement in gpu.layout if placement not in old.layout),
        )
        changed.append(repartition)
    return sorted(changed, key=lambda gpu: repartition_rank(len(gpu.displaced), gpu.gpu))


def _placed_replicas(gpus: Iterable[FleetGpu]) -> set[tuple[str, SliceLocation]]:
    return {
        (mig_slice.service, SliceLocation(gpu.name, mig_slice.start, mig_slice.profile))
        for gpu in gpus
        for mig_slice in gpu.slices
        if mig_slice.service is not None
    }
