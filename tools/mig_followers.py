"""Ways to follow a changing demand, which are compared by what they move and what they cost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from tessera.domain.hardware.gpu_layouts import WHOLE_GPU_LAYOUT, place_geometry
from tessera.domain.hardware.gpu_models import WHOLE_GPU, gpu_models
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand, meets_demand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice, replicas_by_service
from tessera.domain.mig.layout_changes import repartitions, replica_moves
from tessera.domain.mig.plan import plan_layouts

A100 = gpu_models()["A100-80GB"]
ONE = (GpuOffer(gpu_model=A100, price=1),)

# Services and the fleet; the fleet that serves them, and how many instances moved.
Follower: TypeAlias = Callable[
    [Sequence[ServiceDemand], tuple[FleetGpu, ...]], tuple[tuple[FleetGpu, ...], int]
]


def follow_with_planner(
    services: Sequence[ServiceDemand], gpus: tuple[FleetGpu, ...]
) -> tuple[tuple[FleetGpu, ...], int]:
    """Tessera's planner."""
    mig_plan = plan_layouts(services, ONE, gpus)
    return mig_plan.gpus, len(replica_moves(gpus, mig_plan.gpus))


def follow_with_clearing(
    services: Sequence[ServiceDemand], gpus: tuple[FleetGpu, ...]
) -> tuple[tuple[FleetGpu, ...], int]:
    """The same layouts, but a GPU that is repartitioned loses all its replicas."""
    mig_plan = plan_layouts(services, ONE, gpus)
    repartitioned = {change.gpu for change in repartitions(gpus, mig_plan.gpus)}
    planned = {gpu.name: gpu.slices for gpu in mig_plan.gpus}
    lost = sum(
        slice_.service is not None and slice_ in planned[gpu.name]
        for gpu in gpus
        for slice_ in gpu.slices
        if gpu.name in repartitioned
    )
    return mig_plan.gpus, len(replica_moves(gpus, mig_plan.gpus)) + lost


def follow_without_moves(
    services: Sequence[ServiceDemand], gpus: tuple[FleetGpu, ...]
) -> tuple[tuple[FleetGpu, ...], int]:
    """No instance moves: instances stop where there are too many and start on free slices."""
    for service in sorted(services, key=lambda demand: demand.name):
        gpus = _start_missing(service, _stop_spare(service, gpus))
    return tuple(gpu for gpu in gpus if gpu.used), 0


def _stop_spare(service: ServiceDemand, gpus: tuple[FleetGpu, ...]) -> tuple[FleetGpu, ...]:
    """Without instances that can be spared, the last ones first."""
    for at in range(len(gpus) - 1, -1, -1):
        for slice_ in reversed(gpus[at].slices):
            if slice_.service != service.name:
                continue
            rest = tuple(other for other in gpus[at].slices if other != slice_)
            fewer = (*gpus[:at], replace(gpus[at], slices=rest), *gpus[at + 1 :])
            if meets_demand(service, replicas_by_service(fewer).get(service.name, Counter())):
                gpus = fewer
    return gpus


def _start_missing(service: ServiceDemand, gpus: tuple[FleetGpu, ...]) -> tuple[FleetGpu, ...]:
    """With instances on the smallest slices that do what is left, each on the first GPU."""
    while not meets_demand(
        service, counts := replicas_by_service(gpus).get(service.name, Counter())
    ):
        left = service.demand - _speed(service, counts)
        kinds = sorted(service.throughput, key=lambda kind: (service.throughput[kind], kind))
        kind = next(
            (candidate for candidate in kinds if service.throughput[candidate] >= left), kinds[-1]
        )
        gpus = _add_instance(service.name, kind.profile, gpus)
    return gpus


def _speed(service: ServiceDemand, counts: Mapping[InstanceType, int]) -> float:
    return sum(service.throughput[kind] * count for kind, count in counts.items())


def _add_instance(service: str, profile: str, gpus: tuple[FleetGpu, ...]) -> tuple[FleetGpu, ...]:
    fresh = FleetGpu(
        name=f"gpu-{max((int(gpu.name[4:]) for gpu in gpus), default=0) + 1:04}",
        gpu_model=A100.name,
    )
    for at, gpu in enumerate((*gpus, fresh)):
        layout = gpu.layout
        grown = (
            None if layout == WHOLE_GPU_LAYOUT else place_geometry(A100, ((profile, 1),), layout)
        )
        if grown is None or (profile == WHOLE_GPU and layout):
            continue
        placement = next(placement for placement in grown if placement not in layout)
        slices = tuple(
            sorted((*gpu.slices, FleetSlice(placement.start, placement.profile, service)))
        )
        return (*gpus[:at], replace(gpu, slices=slices), *gpus[at + 1 :])
    raise AssertionError(profile)


FOLLOWERS: Mapping[str, Follower] = {
    "planned": follow_with_planner,
    "clearing": follow_with_clearing,
    "never": follow_without_moves,
}
