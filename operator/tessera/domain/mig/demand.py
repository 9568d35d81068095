"""The planner's inputs: services with their demand, and GPUs with their prices."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.hardware.gpu_layouts import Geometry
from tessera.domain.hardware.gpu_models import GpuModel

# Demand counts as met up to this share of it: sums of floats are not exact.
DEMAND_TOLERANCE = 1e-9


class InstanceType(NamedTuple):
    """What one replica runs on: a profile of a GPU model, or the whole GPU (`whole`)."""

    gpu_model: str
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDemand:
    """The demand of one service, in the same unit as its throughput."""

    name: str
    demand: float
    min_replicas: int = 0
    throughput: Mapping[InstanceType, float]
    """Throughput of one replica. The service does not fit on an instance type that is absent."""
    max_types: int | None = None
    """The most instance types that its replicas have: 1, 2, or None for any number."""
    may_mix: bool = False
    """Whether there are 2, or another second one, where slices of its types are too few."""
    kept_types: tuple[InstanceType, ...] = ()
    """At most 2 types, which are kept while there are 2."""
    tenant: str = ""
    """Tenants share the GPUs by weight where these are too few."""
    weight: float = 1.0
    """Weight of the tenant."""
    running_replicas: int = 0
    """Replicas that run already; they go before new ones."""
    class_rank: int = 0
    """Among the services of a tenant, a lower rank goes first."""

    @property
    def required_replicas(self) -> int:
        """Return `min_replicas`, or 1 where there is demand."""
        return max(self.min_replicas, 1 if self.demand > 0 else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOffer:
    """The available GPUs of one model."""

    gpu_model: GpuModel
    price: int
    """Price of a whole GPU per hour, in nano-units of one currency or in any other unit."""
    max_gpus: int | None = None
    """Limit of GPUs; None without a limit."""
    sibling_safe: bool = True
    """Whether a slice can be created or destroyed while others on its GPU are in use; otherwise a
    GPU is repartitioned as a whole."""
    drains_node: bool = False
    """Whether all replicas have to leave a node before any of its GPUs is repartitioned."""


class SunkCapacity(NamedTuple):
    """Geometries of GPUs that are paid in any case, so that their slices cost nothing."""

    gpu_model: str
    geometries: tuple[Geometry, ...]
    gpu_count: int


def instance_types_of(services: Iterable[ServiceDemand]) -> list[InstanceType]:
    """Return the instance types that the services fit on, by name."""
    return sorted({instance_type for service in services for instance_type in service.throughput})


def profiles_of(gpu_model: str, instance_types: Iterable[InstanceType]) -> tuple[str, ...]:
    """Return the profiles of those instance types that are of the GPU model."""
    return tuple(profile for model, profile in instance_types if model == gpu_model)


def replicas_needed(service: ServiceDemand, speed: float) -> int:
    """Return the number of replicas with this throughput that serve the service alone."""
    return max(
        math.ceil(service.demand * (1 - DEMAND_TOLERANCE) / speed), service.required_replicas
    )


def served_demand(service: ServiceDemand, replicas: Mapping[InstanceType, int]) -> float:
    """Return what these replicas serve; those on instance types that are not its own serve none."""
    return sum(
        service.throughput.get(instance_type, 0.0) * count
        for instance_type, count in replicas.items()
    )


def served_share(service: ServiceDemand, replicas: Mapping[InstanceType, int]) -> float:
    """Return the part of the service that these replicas are, at most 1.

    Replicas count as parts of as many of their instance type as would serve it alone.
    """
    shares = (
        count / replicas_needed(service, service.throughput[instance_type])
        for instance_type, count in replicas.items()
        if instance_type in service.throughput
    )
    return min(1.0, sum(shares))


def meets_demand(service: ServiceDemand, replicas: Mapping[InstanceType, int]) -> bool:
    """Return whether these replicas serve the demand and reach `required_replicas`."""
    return (
        served_demand(service, replicas) >= service.demand * (1 - DEMAND_TOLERANCE)
        and sum(replicas.values()) >= service.required_replicas
    )
