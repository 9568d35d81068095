"""Repair of a fleet in use: as few changes as a new demand allows.

A small fleet is rearranged in one program. In a large one, slices are added beside the existing
ones; while that costs too much, the emptiest GPUs are rearranged, a few at a time.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand, meets_demand
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.rearrange import RearrangeProblem, rearrange

# GPUs of a large fleet that are rearranged together.
_WINDOW_SIZE = 8
# Windows of the emptiest GPUs of a large fleet that are rearranged.
_MAX_WINDOWS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class MigFleet:
    """The current GPUs and the services to run on them, each with an offered instance type."""

    services: Sequence[ServiceDemand]
    offers: Sequence[GpuOffer]
    gpus: tuple[FleetGpu, ...]

    def cost(self, gpus: Sequence[FleetGpu]) -> int:
        """Return the price of the used GPUs that are not paid in any case."""
        prices = {offer.gpu_model.name: offer.price for offer in self.offers}
        return sum(prices[gpu.gpu_model] for gpu in gpus if gpu.paid)


def serves_all_demand(fleet: MigFleet) -> bool:
    """Return whether all services are served, and no other service has replicas."""
    replicas = replicas_by_service(fleet.gpus)
    names = {service.name for service in fleet.services}
    return (
        replicas.keys() <= names
        and all(
            replicas[service.name].keys() <= service.throughput.keys()
            for service in fleet.services
            if service.max_types is not None and service.name in replicas
        )
        and not unmet_services(fleet.services, fleet.gpus)
    )


def unmet_services(services: Iterable[ServiceDemand], gpus: Iterable[FleetGpu]) -> tuple[str, ...]:
    """Return the services that get less than their demand."""
    replicas = replicas_by_service(gpus)
    return tuple(
        service.name
        for service in services
        if not meets_demand(service, _usable_replicas(service, replicas))
    )


def rearrange_gpus(
    fleet: MigFleet,
    gpus: tuple[FleetGpu, ...],
    names: Collection[str] | None = None,
    *,
    max_cost: int | None = None,
    moves_per_gpu: float | None = None,
    only_adds: bool = False,
) -> tuple[FleetGpu, ...] | None:
    """Return the GPUs with the named ones, or all, rearranged in one program.

    Without `max_cost`, moves are weighed against the cost that they save; None if it is too small.
    """
    solution = rearrange(
        RearrangeProblem(
            services=fleet.services,
            offers=fleet.offers,
            open_gpus=[gpu for gpu in gpus if names is None or gpu.name in names],
            fixed_gpus=[gpu for gpu in gpus if names is not None and gpu.name not in names],
            max_cost=max_cost,
            moves_per_gpu=moves_per_gpu,
            only_adds=only_adds,
        )
    )
    if solution is None:
        return None
    changed = {gpu.name: gpu for gpu in solution if gpu.name}
    added = [gpu for gpu in solution if not gpu.name]
    return name_gpus([*(changed.get(gpu.name, gpu) for gpu in gpus), *added])


def repair_fleet(fleet: MigFleet, max_cost: int) -> tuple[FleetGpu, ...]:
    """Rearrange GPUs of unserved services, then the emptiest, until the cost is at most `max_cost`.

    The cost may stay above `max_cost`.
    """
    if serves_all_demand(fleet) and fleet.cost(fleet.gpus) <= max_cost:
        return fleet.gpus
    gpus = _release_surplus(fleet)
    if names := _gpus_to_open(fleet, gpus):
        gpus = rearrange_gpus(fleet, gpus, names, only_adds=True) or gpus
    for window in range(_MAX_WINDOWS):
        if fleet.cost(gpus) <= max_cost:
            break
        emptiest = sorted(
            (gpu for gpu in gpus if gpu.used),
            key=lambda gpu: (_used_memory_share(fleet, gpu), gpu.name),
        )
        # Windows overlap by half, so that neighbors meet in different groups.
        begin = window * _WINDOW_SIZE // 2
        names = {gpu.name for gpu in emptiest[begin : begin + _WINDOW_SIZE]}
        gpus = rearrange_gpus(fleet, gpus, names) or gpus
    return gpus


def _release_surplus(fleet: MigFleet) -> tuple[FleetGpu, ...]:
    """Return the GPUs without replicas of removed services and without surplus replicas."""
    services = {service.name: service for service in fleet.services}
    remaining = {
        name: Counter(_usable_replicas(services[name], {name: counts_by_type}))
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


def _gpus_to_open(fleet: MigFleet, gpus: Sequence[FleetGpu]) -> set[str]:
    """Return the emptiest GPUs of unserved services, and the emptiest GPUs of all."""
    unserved = unmet_services(fleet.services, gpus)
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


def _usable_replicas(
    service: ServiceDemand, replicas: Mapping[str, Counter[InstanceType]]
) -> dict[InstanceType, int]:
    """Return its replicas on instance types that it fits on."""
    counts = replicas.get(service.name, Counter())
    return {
        instance_type: count
        for instance_type, count in counts.items()
        if instance_type in service.throughput
    }


def _used_memory_share(fleet: MigFleet, gpu: FleetGpu) -> float:
    """Return the share of the GPU's memory slices that services use."""
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
    """Return the GPUs by name; those without one get the first free numbers."""
    taken = {gpu.name for gpu in gpus}
    free = (name for number in count(1) if (name := f"gpu-{number:04}") not in taken)
    return tuple(
        sorted(
            (gpu if gpu.name else replace(gpu, name=next(free)) for gpu in gpus),
            key=lambda gpu: gpu.name,
        )
    )
