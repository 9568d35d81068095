"""Assignment of replicas to slices, from the counts that the rearrange program returns.

New slices are created only where a replica uses them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from tessera.domain.hardware.gpu_layouts import SlicePlacement, place_geometry
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.geometries import Reshape

# Replicas by service and instance type.
CountByServiceAndType: TypeAlias = Mapping[tuple[str, InstanceType], int]


# A GPU and how it is repartitioned; None leaves its slices as they are, without services.
ReshapedGpu: TypeAlias = tuple[FleetGpu, Reshape | None]


def assign_replicas(
    reshaped: Sequence[ReshapedGpu],
    totals: CountByServiceAndType,
    staying: CountByServiceAndType,
    gpu_models: Mapping[str, GpuModel],
) -> tuple[FleetGpu, ...]:
    """Return the GPUs with all replicas assigned, in the given order.

    The `totals` of replicas include those that keep their slices, which are `staying`.
    """
    remaining = Counter(dict(staying))
    assigned = [
        (gpu, reshape, dict(_retained_slices(gpu, reshape, remaining))) for gpu, reshape in reshaped
    ]
    starting = _starting_services(totals, staying)
    # Retained slices go first, so that as few new slices as possible are created.
    for gpu, reshape, slices in assigned:
        for placement in sorted(slices) if reshape is not None else ():
            if slices[placement] is None and placement not in gpu.foreign_slices:
                slices[placement] = _take_next(starting, gpu.gpu_model, placement)
    for gpu, reshape, slices in assigned:
        added = _new_placements(gpu_models[gpu.gpu_model], reshape) if reshape is not None else ()
        for placement in added:
            if (service := _take_next(starting, gpu.gpu_model, placement)) is not None:
                slices[placement] = service
    return tuple(
        replace(
            gpu,
            slices=tuple(
                FleetSlice(placement.start, placement.profile, slices[placement])
                for placement in sorted(slices)
            ),
        )
        for gpu, _, slices in assigned
    )


def _retained_slices(
    gpu: FleetGpu, reshape: Reshape | None, staying: Counter[tuple[str, InstanceType]]
) -> Iterator[tuple[SlicePlacement, str | None]]:
    """Yield the retained slices with the services that stay, which are deducted from `staying`."""
    for mig_slice in gpu.slices:
        key = (mig_slice.service or "", gpu.instance_type(mig_slice))
        if reshape is None:
            yield mig_slice.placement, None
        elif mig_slice.placement in reshape.retained:
            stays = staying[key] > 0
            staying[key] -= stays
            yield mig_slice.placement, mig_slice.service if stays else None


def _new_placements(gpu_model: GpuModel, reshape: Reshape) -> list[SlicePlacement]:
    layout = place_geometry(gpu_model, reshape.added, reshape.retained)
    if layout is None:
        raise ValueError(f"{reshape.added} does not fit beside {reshape.retained}")
    return sorted(set(layout) - set(reshape.retained))


def _starting_services(
    totals: CountByServiceAndType, staying: CountByServiceAndType
) -> dict[InstanceType, list[str]]:
    """Return services by instance type, once per replica that starts; the last is the next."""
    services: dict[InstanceType, list[str]] = defaultdict(list)
    for (service, instance_type), count in sorted(totals.items(), reverse=True):
        services[instance_type] += [service] * (count - staying.get((service, instance_type), 0))
    return services


def _take_next(
    starting: Mapping[InstanceType, list[str]], gpu_model: str, placement: SlicePlacement
) -> str | None:
    waiting = starting.get(InstanceType(gpu_model, placement.profile))
    return waiting.pop() if waiting else None
