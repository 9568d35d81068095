"""What an unchanged service may cost: a neighbour that grows or comes raises nobody's price.

The solver minimizes GPUs and knows no prices of tenants. So a service that wants no more replicas
than it has, and lost no device, is offered only instance types on which it costs no more than now.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

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
    running, free = replicas_by_service(gpus), free_places(gpus)
    present = [_present(demand, running.get(demand.service.name, Counter())) for demand in demands]
    missing = Counter[InstanceType]()
    for wanted, held in present:
        missing.update(_missing(wanted, held))
    short = {each for each, count in missing.items() if count > free[each]}
    return tuple(
        demand
        if not wanted or (not demand.is_moving and short & _missing(wanted, held).keys())
        else with_limit(demand, wanted, held)
        for demand, (wanted, held) in zip(demands, present, strict=True)
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


def _present(demand: SliceDemand, held: _Counts) -> tuple[_Counts, _Counts]:
    """Return the replicas that an unchanged service has, and those of them that hold a device.

    None are returned for a service that has none, or wants more.
    """
    service = demand.service
    usable = {each: count for each, count in held.items() if each in service.throughput}
    if demand.is_asleep or not demand.current:
        return {}, usable
    if demand.is_moving or len(demand.current) > 1:
        wanted = {
            each: demand.assigned[each] for each in demand.assigned.keys() & service.throughput
        }
        return (wanted if meets_demand(service, wanted) else {}), usable
    own = demand.current[0]
    if own not in service.throughput:
        return {}, usable
    return {own: replicas_needed(service, service.throughput[own])}, usable


def _missing(wanted: _Counts, held: _Counts) -> Counter[InstanceType]:
    return Counter(dict(wanted)) - Counter(dict(held))


def with_limit(demand: SliceDemand, wanted: _Counts, held: _Counts) -> SliceDemand:
    """Return the demand on instance types that cost no more than the wanted replicas.

    Those that are wanted and those that it holds are among them.
    """
    service, limit = demand.service, demand.hourly_nanos(wanted)
    prices = {option.instance_type: option.hourly_nanos for option in demand.options}
    throughput = {
        each: speed
        for each, speed in service.throughput.items()
        if each in wanted or each in held or replicas_needed(service, speed) * prices[each] <= limit
    }
    return replace(demand, service=replace(service, throughput=throughput), max_hourly_nanos=limit)
