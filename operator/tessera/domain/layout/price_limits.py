"""What an unchanged service may cost: a neighbour that grows or comes raises nobody's price.

The solver minimizes GPUs and knows no prices of tenants. So a service that wants no more replicas
than it has, and lost no device, is offered only instance types on which it costs no more than now.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tessera.domain.hardware.gpu_models import WHOLE_GPU
from tessera.domain.layout.problem import SliceDemand
from tessera.domain.mig.demand import InstanceType, meets_demand, replicas_needed
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service

_Counts = Mapping[InstanceType, int]


def with_price_limits(
    demands: Sequence[SliceDemand], gpus: Sequence[FleetGpu]
) -> tuple[SliceDemand, ...]:
    """Return the demands, those of unchanged services with the most that they may cost.

    A replica that restarts finds its slice again. Where more replicas want the free ones of an
    instance type than there are, each of them counts as one that has none.
    """
    replicas, free = replicas_by_service(gpus), free_places(gpus)
    counts = [_counts(demand, replicas.get(demand.service.name, Counter())) for demand in demands]
    missing = Counter[InstanceType]()
    for each in counts:
        missing.update(each.missing)
    short = {each for each, count in missing.items() if count > free[each]}
    return tuple(
        demand
        if not own.wanted or (not demand.is_moving and short & own.missing.keys())
        else with_limit(demand, own.wanted, own.running)
        for demand, own in zip(demands, counts, strict=True)
    )


def free_places(gpus: Iterable[FleetGpu]) -> Counter[InstanceType]:
    """Return the slices and whole GPUs without a pod, by instance type."""
    free = Counter[InstanceType]()
    for gpu in gpus:
        if is_free_whole_gpu(gpu):
            free[InstanceType(gpu.gpu_model, WHOLE_GPU)] += 1
        free.update(
            gpu.instance_type(part)
            for part in gpu.slices
            if part.service is None and part.placement not in gpu.foreign_slices
        )
    return free


def is_free_whole_gpu(gpu: FleetGpu) -> bool:
    """Return whether the GPU is outside MIG mode, without a pod and usable."""
    return gpu.gpu_model.endswith(f"/{WHOLE_GPU}") and not gpu.slices and not gpu.locked


class _OwnCounts(NamedTuple):
    """Replicas of a service by instance type."""

    wanted: _Counts
    """Replicas that an unchanged service has; none where it wants more."""
    running: _Counts
    """Replicas that have a device."""

    @property
    def missing(self) -> Counter[InstanceType]:
        return Counter(dict(self.wanted)) - Counter(dict(self.running))


def _counts(demand: SliceDemand, replicas: _Counts) -> _OwnCounts:
    service = demand.service
    running = {each: count for each, count in replicas.items() if each in service.throughput}
    if demand.is_asleep or not demand.current:
        return _OwnCounts({}, running)
    if demand.is_moving or len(demand.current) > 1:
        assigned = {
            each: demand.assigned[each] for each in demand.assigned.keys() & service.throughput
        }
        return _OwnCounts(assigned if meets_demand(service, assigned) else {}, running)
    own = demand.current[0]
    if own not in service.throughput:
        return _OwnCounts({}, running)
    return _OwnCounts({own: replicas_needed(service, service.throughput[own])}, running)


def with_limit(demand: SliceDemand, wanted: _Counts, running: _Counts) -> SliceDemand:
    """Return the demand on instance types that cost no more than the wanted replicas.

    The types of wanted and of running replicas are among them.
    """
    service, limit = demand.service, demand.hourly_nanos(wanted)
    prices = {option.instance_type: option.hourly_nanos for option in demand.options}
    throughput = {
        each: speed
        for each, speed in service.throughput.items()
        if each in wanted
        or each in running
        or replicas_needed(service, speed) * prices[each] <= limit
    }
    return replace(demand, service=replace(service, throughput=throughput), max_hourly_nanos=limit)
