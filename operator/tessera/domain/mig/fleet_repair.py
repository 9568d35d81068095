"""A fleet in use, changed as little as a new demand allows.

A small fleet is rearranged at once. In a large one slices are added beside those
that are there; while that costs too much, the emptiest GPUs are rearranged, a few at a time.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand, meets_demand
from tessera.domain.mig.failure_domains import spread_violations
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.rearrange import RearrangeProblem, rearrange

# GPUs that are opened together in a large fleet.
_WINDOW_SIZE = 8
# So often the emptiest GPUs of a large fleet are opened.
_MAX_WINDOWS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class MigFleet:
    """What is there, and for whom; services by name, each with a kind on offer."""

    services: Sequence[ServiceDemand]
    offers: Sequence[GpuOffer]
    gpus: tuple[FleetGpu, ...]

    def cost(self, gpus: Sequence[FleetGpu]) -> int:
        """Of GPUs that somebody sits on."""
        prices = {offer.gpu_model.name: offer.price for offer in self.offers}
        return sum(prices[gpu.gpu_model] for gpu in gpus if gpu.paid)


def serves_all_demand(fleet: MigFleet) -> bool:
    """Everybody is served, and nobody sits there who should not."""
    replicas = replicas_by_service(fleet.gpus)
    names = {service.name for service in fleet.services}
    return (
        replicas.keys() <= names
        and all(
            replicas[service.name].keys() <= service.throughput.keys()
            for service in fleet.services
            if service.single_type and service.name in replicas
        )
        and all(
            meets_demand(service, usable_replicas(service, replicas)) for service in fleet.services
        )
        and not spread_violations(fleet.services, fleet.gpus)
    )


def rearrange_all(
    fleet: MigFleet, budget: int | None, moves_per_gpu: float | None
) -> tuple[FleetGpu, ...] | None:
    """All GPUs opened at once; without a budget, moves have to earn what they save."""
    problem = RearrangeProblem(
        services=fleet.services,
        offers=fleet.offers,
        open_gpus=fleet.gpus,
        budget=budget,
        moves_per_gpu=moves_per_gpu,
    )
    solution = rearrange(problem)
    return None if solution is None else name_gpus(solution)


def repair_fleet(fleet: MigFleet, budget: int) -> tuple[FleetGpu, ...]:
    """Opened where the change is, then where room is wasted; the cost may stay above the budget."""
    if serves_all_demand(fleet) and fleet.cost(fleet.gpus) <= budget:
        return fleet.gpus
    gpus = _release_surplus(fleet)
    if names := _gpus_to_open(fleet, gpus):
        gpus = _rearrange_some(fleet, gpus, names, only_adds=True)
    for window in range(_MAX_WINDOWS):
        if fleet.cost(gpus) <= budget:
            break
        emptiest = sorted(
            (gpu for gpu in gpus if gpu.used),
            key=lambda gpu: (_used_memory_share(fleet, gpu), gpu.name),
        )
        begin = window * _WINDOW_SIZE // 2
        gpus = _rearrange_some(
            fleet, gpus, {gpu.name for gpu in emptiest[begin : begin + _WINDOW_SIZE]}
        )
    return gpus


def _release_surplus(fleet: MigFleet) -> tuple[FleetGpu, ...]:
    """Without services that are gone, and without instances that nobody needs."""
    services = {service.name: service for service in fleet.services}
    remaining = {
        name: Counter(usable_replicas(services[name], {name: counts_by_type}))
        if name in services
        else Counter()
        for name, counts_by_type in replicas_by_service(fleet.gpus).items()
    }
    gpus = {gpu.name: gpu for gpu in fleet.gpus}
    for gpu in sorted(fleet.gpus, key=lambda gpu: (_used_memory_share(fleet, gpu), gpu.name)):
        slices = []
        for mig_slice in gpu.slices:
            counts = remaining.get(mig_slice.service or "", Counter[InstanceType]())
            instance_type = gpu.instance_type(mig_slice)
            service = services.get(mig_slice.service or "")
            if service is None or instance_type not in service.throughput:
                slices.append(mig_slice._replace(service=None))
            elif meets_demand(service, counts - Counter({instance_type: 1})):
                counts[instance_type] -= 1
                slices.append(mig_slice._replace(service=None))
            else:
                slices.append(mig_slice)
        gpus[gpu.name] = replace(gpu, slices=tuple(slices))
    return tuple(gpus[gpu.name] for gpu in fleet.gpus)


def _rearrange_some(
    fleet: MigFleet, gpus: tuple[FleetGpu, ...], names: set[str], *, only_adds: bool = False
) -> tuple[FleetGpu, ...]:
    """The fleet with these GPUs at the least cost that they can have together."""
    solution = rearrange(
        RearrangeProblem(
            services=fleet.services,
            offers=fleet.offers,
            open_gpus=[gpu for gpu in gpus if gpu.name in names],
            fixed_gpus=[gpu for gpu in gpus if gpu.name not in names],
            only_adds=only_adds,
        )
    )
    if solution is None:
        return gpus
    changed = {gpu.name: gpu for gpu in solution if gpu.name}
    added = [gpu for gpu in solution if not gpu.name]
    return name_gpus([*(changed.get(gpu.name, gpu) for gpu in gpus), *added])


def _gpus_to_open(fleet: MigFleet, gpus: Sequence[FleetGpu]) -> set[str]:
    """Some GPUs of services that are not served, and those with the most room beside them."""
    replicas = replicas_by_service(gpus)
    unserved = {
        service.name
        for service in fleet.services
        if not meets_demand(service, usable_replicas(service, replicas))
    }
    if not unserved:
        return set()
    by_free_memory = sorted(
        gpus, key=lambda gpu: (not gpu.used, _used_memory_share(fleet, gpu), gpu.name)
    )
    holders = [
        gpu
        for gpu in by_free_memory
        if any(mig_slice.service in unserved for mig_slice in gpu.slices)
    ]
    return {gpu.name for gpu in (*holders[:_WINDOW_SIZE], *by_free_memory[:_WINDOW_SIZE])}


def usable_replicas(
    service: ServiceDemand, replicas: Mapping[str, Counter[InstanceType]]
) -> dict[InstanceType, int]:
    """Its instances on kinds that it is known to fit."""
    counts = replicas.get(service.name, Counter())
    return {
        instance_type: count
        for instance_type, count in counts.items()
        if instance_type in service.throughput
    }


def _used_memory_share(fleet: MigFleet, gpu: FleetGpu) -> float:
    """Of the GPU's memory slices, those that somebody sits on."""
    gpu_model = next(
        offer.gpu_model for offer in fleet.offers if offer.gpu_model.name == gpu.gpu_model
    )
    used_slices = 0
    for mig_slice in gpu.slices:
        gi_profile = gpu_model.find_profile(mig_slice.profile)
        if mig_slice.service is not None:
            used_slices += gi_profile.memory_slices if gi_profile else gpu_model.memory_slices
    return used_slices / gpu_model.memory_slices


def name_gpus(gpus: Sequence[FleetGpu]) -> tuple[FleetGpu, ...]:
    """By name; those without one get the first numbers that are free."""
    free = _free_names({gpu.name for gpu in gpus})
    return tuple(
        sorted(
            (gpu if gpu.name else replace(gpu, name=next(free)) for gpu in gpus),
            key=lambda gpu: gpu.name,
        )
    )


def _free_names(taken: set[str]) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        if (name := f"gpu-{number:04}") not in taken:
            yield name
