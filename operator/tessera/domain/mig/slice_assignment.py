"""Assignment of replicas to slices, from the counts that the rearrange program returns.

New slices are created only where a replica uses them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.geometries import Reshape
from tessera.domain.mig.gpu_building import place_geometry
from tessera.domain.mig.gpu_models import GpuModel
from tessera.domain.mig.layouts import SlicePlacement

# Replicas by service and instance type.
CountByServiceAndType: TypeAlias = Mapping[tuple[str, InstanceType], int]


@dataclass(frozen=True, slots=True)
class ReshapedGpu:
    """A GPU and how it is repartitioned; None leaves its slices as they are, without services."""

    gpu: FleetGpu
    reshape: Reshape | None


@dataclass(frozen=True, slots=True)
class ReplicaTargets:
    """Counts of all replicas, and of those that keep their slices."""

    totals: CountByServiceAndType
    staying: CountByServiceAndType


def assign_replicas(
    reshaped: Sequence[ReshapedGpu], targets: ReplicaTargets, gpu_models: Mapping[str, GpuModel]
) -> tuple[FleetGpu, ...]:
    """Return the GPUs with all replicas assigned, in the given order."""
    staying = Counter(dict(targets.staying))
    slices_by_gpu = [dict(_retained_slices(reshaped_gpu, staying)) for reshaped_gpu in reshaped]
    starting = _starting_services(targets)
    # Retained slices go first, so that as few new slices as possible are created.
    for reshaped_gpu, slices in zip(reshaped, slices_by_gpu, strict=True):
        for placement in sorted(slices):
            if (
                slices[placement] is None
                and reshaped_gpu.reshape is not None
                and placement not in reshaped_gpu.gpu.foreign_slices
            ):
                slices[placement] = _take_next(
                    starting, InstanceType(reshaped_gpu.gpu.gpu_model, placement.profile)
                )
    for reshaped_gpu, slices in zip(reshaped, slices_by_gpu, strict=True):
        for placement in _new_placements(reshaped_gpu, gpu_models):
            if (
                service := _take_next(
                    starting, InstanceType(reshaped_gpu.gpu.gpu_model, placement.profile)
                )
            ) is not None:
                slices[placement] = service
    return tuple(
        replace(
            reshaped_gpu.gpu,
            slices=tuple(
                FleetSlice(placement.start, placement.profile, slices[placement])
                for placement in sorted(slices)
            ),
        )
        for reshaped_gpu, slices in zip(reshaped, slices_by_gpu, strict=True)
    )


def _retained_slices(
    reshaped_gpu: ReshapedGpu, staying: Counter[tuple[str, InstanceType]]
) -> Iterator[tuple[SlicePlacement, str | None]]:
    """Yield the retained slices with the services that stay, which are deducted from `staying`."""
    for mig_slice in reshaped_gpu.gpu.slices:
        if reshaped_gpu.reshape is None:
            yield mig_slice.placement, None
        elif mig_slice.placement in reshaped_gpu.reshape.retained:
            key = (mig_slice.service or "", reshaped_gpu.gpu.instance_type(mig_slice))
            if staying[key] > 0:
                staying[key] -= 1
                yield mig_slice.placement, mig_slice.service
            else:
                yield mig_slice.placement, None


def _new_placements(
    reshaped_gpu: ReshapedGpu, gpu_models: Mapping[str, GpuModel]
) -> Iterator[SlicePlacement]:
    if reshaped_gpu.reshape is None or not reshaped_gpu.reshape.added:
        return
    gpu_model = gpu_models[reshaped_gpu.gpu.gpu_model]
    layout = place_geometry(gpu_model, reshaped_gpu.reshape.added, reshaped_gpu.reshape.retained)
    if layout is None:
        raise ValueError(
            f"{reshaped_gpu.reshape.added} does not fit beside {reshaped_gpu.reshape.retained}"
        )
    yield from sorted(set(layout) - set(reshaped_gpu.reshape.retained))


def _starting_services(targets: ReplicaTargets) -> dict[InstanceType, list[str]]:
    """Return services by instance type, once per replica that starts; the last is the next."""
    services: dict[InstanceType, list[str]] = defaultdict(list)
    for (service, instance_type), count in sorted(targets.totals.items(), reverse=True):
        services[instance_type] += [service] * (
            count - targets.staying.get((service, instance_type), 0)
        )
    return services


def _take_next(
    starting: Mapping[InstanceType, list[str]], instance_type: InstanceType
) -> str | None:
    waiting = starting.get(instance_type)
    return waiting.pop() if waiting else None
