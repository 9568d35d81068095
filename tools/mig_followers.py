"""Ways to follow a changing demand, which are compared by what they move and what they cost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand, meets_demand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice, replicas_by_service
from tessera.domain.mig.gpu_building import place_geometry
from tessera.domain.mig.gpu_models import WHOLE_GPU, gpu_models
from tessera.domain.mig.layouts import WHOLE_GPU_LAYOUT
from tessera.domain.mig.plan import plan_layouts

A100 = gpu_models()["A100-80GB"]
ONE = (GpuOffer(gpu_model=A100, price=1),)

# Services and the fleet; the fleet that serves them, and how many instances moved.
Follower: TypeAlias = Callable[
    [Sequence[ServiceDemand], tuple[FleetGpu, ...]], tuple[tuple[FleetGpu, ...], int]
]


def planned(
    services: Sequence[ServiceDemand], gpus: tuple[FleetGpu, ...]
) -> tuple[tuple[FleetGpu, ...], int]:
    """Tessera's planner."""
    got = plan_layouts(services, ONE, gpus)
    return got.gpus, len(got.changes.moves)


def cleared(
    services: Sequence[ServiceDemand], gpus: tuple[FleetGpu, ...]
) -> tuple[tuple[FleetGpu, ...], int]:
    """The same layouts, but a GPU that is cut anew loses everybody who sits on it."""
    got = plan_layouts(services, ONE, gpus)
    cut = {seat.gpu for seat in (*got.changes.created, *got.changes.destroyed)}
    moved = {move.source for move in got.changes.moves}
    lost = sum(
        one.service is not None
        for gpu in gpus
        for one in gpu.slices
        if gpu.name in cut and (gpu.name, one.start, one.profile) not in moved
    )
    stopped = sum(one.location.gpu in cut for one in got.changes.stops)
    return got.gpus, len(moved) + lost - stopped


def never(
    services: Sequence[ServiceDemand], gpus: tuple[FleetGpu, ...]
) -> tuple[tuple[FleetGpu, ...], int]:
    """Nobody moves: instances stop where they are too many and start where there is room."""
    for service in sorted(services, key=lambda one: one.name):
        gpus = _started(service, _stopped(service, gpus))
    return tuple(gpu for gpu in gpus if gpu.used), 0


def _stopped(service: ServiceDemand, gpus: tuple[FleetGpu, ...]) -> tuple[FleetGpu, ...]:
    """Without instances that can be spared, the last ones first."""
    for at in range(len(gpus) - 1, -1, -1):
        for one in reversed(gpus[at].slices):
            if one.service != service.name:
                continue
            rest = tuple(other for other in gpus[at].slices if other != one)
            fewer = (*gpus[:at], replace(gpus[at], slices=rest), *gpus[at + 1 :])
            if meets_demand(service, replicas_by_service(fewer).get(service.name, Counter())):
                gpus = fewer
    return gpus


def _started(service: ServiceDemand, gpus: tuple[FleetGpu, ...]) -> tuple[FleetGpu, ...]:
    """With instances on the smallest slices that do what is left, each on the first GPU."""
    while not meets_demand(service, held := replicas_by_service(gpus).get(service.name, Counter())):
        left = service.demand - _speed(service, held)
        kinds = sorted(service.throughput, key=lambda kind: (service.throughput[kind], kind))
        kind = next((one for one in kinds if service.throughput[one] >= left), kinds[-1])
        gpus = _seated(service.name, kind.profile, gpus)
    return gpus


def _speed(service: ServiceDemand, held: Mapping[InstanceType, int]) -> float:
    return sum(service.throughput[kind] * count for kind, count in held.items())


def _seated(service: str, profile: str, gpus: tuple[FleetGpu, ...]) -> tuple[FleetGpu, ...]:
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
        spot = next(spot for spot in grown if spot not in layout)
        slices = tuple(sorted((*gpu.slices, FleetSlice(spot.start, spot.profile, service))))
        return (*gpus[:at], replace(gpu, slices=slices), *gpus[at + 1 :])
    raise AssertionError(profile)


FOLLOWERS: Mapping[str, Follower] = {"planned": planned, "clearing": cleared, "never": never}
