"""The layout in which every running replica stays, and what is missing takes free places."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tessera.domain.hardware.gpu_models import WHOLE_GPU
from tessera.domain.layout.price_limits import free_places, is_free_whole_gpu
from tessera.domain.layout.problem import HardwareOption, LayoutProblem, SliceDemand
from tessera.domain.mig.demand import (
    DEMAND_TOLERANCE,
    InstanceType,
    meets_demand,
    served_demand,
)
from tessera.domain.mig.fair_shares import fair_steps
from tessera.domain.mig.fleet import FleetGpu, FleetSlice, replicas_by_service
from tessera.domain.mig.service_selection import sunk_capacities


def staying_gpus(
    demands: Sequence[SliceDemand], gpus: Sequence[FleetGpu], problem: LayoutProblem
) -> tuple[FleetGpu, ...]:
    """Return the GPUs with the missing replicas of these services on free places.

    No layout changes and nobody moves. Replicas take turns as where GPUs are too few, each on the
    cheapest place of the instance types that its service may have.
    """
    by_name = {demand.service.name: demand for demand in demands}
    running, free = replicas_by_service(gpus), free_places(gpus)
    counts = {
        name: Counter(
            {
                each: count
                for each, count in running.get(name, Counter()).items()
                if each in demand.service.throughput
            }
        )
        for name, demand in by_name.items()
    }
    started = list[tuple[str, InstanceType]]()
    services = [demand.service for demand in demands]
    sunk = sunk_capacities(gpus, problem.offers, services)
    for step in fair_steps(services, problem.offers, sunk):
        name = step.service.name
        if step.replicas <= running.get(name, Counter()).total():
            continue
        if meets_demand(step.service, counts[name]):
            continue
        place = _next_place(by_name[name], counts[name], free)
        if place is not None:
            counts[name][place] += 1
            free[place] -= 1
            started.append((name, place))
    return tuple(_with_started(gpus, started))


def _next_place(
    demand: SliceDemand, counts: Counter[InstanceType], free: Counter[InstanceType]
) -> InstanceType | None:
    """Return the cheapest free place for one more replica; None if none of its types has one.

    A type with room for all that is missing goes before those without.
    """
    service, used = demand.service, {each for each, count in counts.items() if count}
    most_types = 2 if service.may_mix or service.max_types == 2 else 1
    open_types = [
        option
        for option in demand.options
        if option.instance_type in service.throughput
        and free[option.instance_type] > 0
        and (option.instance_type in used or len(used) < most_types)
    ]
    if not open_types:
        return None

    def rank(option: HardwareOption) -> tuple[bool, bool, float, int, InstanceType]:
        place, speed = option.instance_type, service.throughput[option.instance_type]
        missing = max(
            math.ceil(
                (service.demand * (1 - DEMAND_TOLERANCE) - served_demand(service, counts)) / speed
            ),
            service.required_replicas - counts.total(),
        )
        suffices = free[place] >= missing
        served = 0.0 if suffices else free[place] * speed
        return place not in used, not suffices, -served, missing * option.hourly_nanos, place

    return min(open_types, key=rank).instance_type


def _with_started(
    gpus: Iterable[FleetGpu], started: Sequence[tuple[str, InstanceType]]
) -> Iterable[FleetGpu]:
    """Yield the GPUs with these replicas on free places, the first ones by name."""
    waiting: dict[InstanceType, list[str]] = {}
    for name, place in started:
        waiting.setdefault(place, []).append(name)
    for gpu in gpus:
        slices = [
            part._replace(service=waiting[each].pop(0))
            if part.service is None
            and part.placement not in gpu.foreign_slices
            and waiting.get(each := gpu.instance_type(part))
            else part
            for part in gpu.slices
        ]
        whole = InstanceType(gpu.gpu_model, WHOLE_GPU)
        if is_free_whole_gpu(gpu) and waiting.get(whole):
            slices = [FleetSlice(0, WHOLE_GPU, waiting[whole].pop(0))]
        yield replace(gpu, slices=tuple(slices)) if tuple(slices) != gpu.slices else gpu
