"""The order in which services get replicas where GPUs are too few.

Replicas that run go before new ones. Of both, tenants take turns by weighted max-min fairness: the
next replica is the one after which its tenant has the smallest share of GPUs for its weight. Within
a tenant, replicas of `min_replicas` go first, then classes decide, then the larger `min_replicas`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tessera.domain.hardware.gpu_models import WHOLE_GPU
from tessera.domain.mig.demand import (
    GpuOffer,
    InstanceType,
    ServiceDemand,
    SunkCapacity,
    replicas_needed,
)


@dataclass(frozen=True, slots=True)
class ReplicaStep:
    """One more replica of a service."""

    service: ServiceDemand
    replicas: int
    """Its replicas with this one."""
    speed: float
    """Throughput of a replica on the smallest slice."""
    gpu_share: float
    """Memory of that slice as a share of a GPU, or whatever else is shared."""
    is_last: bool

    @property
    def is_new(self) -> bool:
        return self.replicas > self.service.running_replicas

    @property
    def demand(self) -> ServiceDemand:
        """The part of the demand that so many replicas serve."""
        service = self.service
        required = service.required_replicas
        if self.is_last:
            return service
        served = min(service.demand, self.replicas * self.speed)
        return replace(
            service,
            demand=served if self.replicas > required else 0.0,
            min_replicas=min(self.replicas, required),
        )

    @property
    def tenant_order(self) -> tuple[bool, bool, int, int, str, int]:
        service, beyond = self.service, self.replicas > self.service.required_replicas
        order = service.class_rank, -service.min_replicas, service.name, self.replicas
        return (self.is_new, beyond, *order)


def fair_steps(
    services: Sequence[ServiceDemand], offers: Sequence[GpuOffer], sunk: Sequence[SunkCapacity]
) -> list[ReplicaStep]:
    """Return the replicas of all services in the order in which they get GPUs."""
    gpus = sum(offer.max_gpus or 0 for offer in offers) + sum(part.gpu_count for part in sunk)
    slices_of_gpu = max((offer.gpu_model.memory_slices for offer in offers), default=1)
    return in_fair_order(
        step
        for service in services
        if service.throughput
        for step in _steps(service, offers, gpus * slices_of_gpu)
    )


def in_fair_order(steps: Iterable[ReplicaStep]) -> list[ReplicaStep]:
    """Return the replicas in the order in which they get what is too little for all."""
    steps_by_tenant = defaultdict[str, list[ReplicaStep]](list)
    for step in steps:
        steps_by_tenant[step.service.tenant].append(step)
    ordered = []
    for tenant, own_steps in sorted(steps_by_tenant.items()):
        share = 0.0
        for index, step in enumerate(sorted(own_steps, key=lambda step: step.tenant_order)):
            share += step.gpu_share / step.service.weight
            ordered.append(((step.is_new, share, tenant, index), step))
    return [step for _, step in sorted(ordered, key=lambda entry: entry[0])]


def _steps(service: ServiceDemand, offers: Sequence[GpuOffer], most: int) -> Iterator[ReplicaStep]:
    memory = {
        (offer.gpu_model.name, profile.name): profile.memory_slices / offer.gpu_model.memory_slices
        for offer in offers
        for profile in offer.gpu_model.profiles
    }

    def gpu_share(instance_type: InstanceType) -> float:
        return 1.0 if instance_type.profile == WHOLE_GPU else memory.get(instance_type, 1.0)

    smallest = min(service.throughput, key=lambda kind: (gpu_share(kind), kind))
    speed = service.throughput[smallest]
    needed = replicas_needed(service, speed)
    for replicas in range(1, min(needed, most) + 1):
        yield ReplicaStep(service, replicas, speed, gpu_share(smallest), replicas == needed)
