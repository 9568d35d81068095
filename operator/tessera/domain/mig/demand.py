"""What is asked of the planner: services with what they need, and GPUs with what they cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.gpu_models import GpuModel
from tessera.domain.mig.layouts import Geometry

# Demand counts as met up to this share of it: sums of floats are not exact.
DEMAND_TOLERANCE = 1e-9


class InstanceType(NamedTuple):
    """What one instance may stand on: a slice of a board, or the whole (`full`)."""

    gpu_model: str
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDemand:
    """One service; demand and throughput in the same unit, whichever it is."""

    name: str
    demand: float
    min_replicas: int = 0
    """Least number of instances."""
    throughput: Mapping[InstanceType, float]
    """Of one instance. A kind that is absent cannot hold the service."""
    min_gpus: int = 1
    """On so many different GPUs its instances stand at least."""
    min_nodes: int = 1
    """And on so many different nodes."""
    single_type: bool = False
    """All of its instances are of one kind."""

    @property
    def required_replicas(self) -> int:
        """At least so many, for the floor and the spread."""
        spread = max(self.min_gpus, self.min_nodes)
        return max(self.min_replicas, spread if spread > 1 else 0, 1 if self.demand > 0 else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOffer:
    """GPUs of one board that can be had."""

    gpu_model: GpuModel
    price: int
    """Of a whole GPU for an hour, in nano-units of one currency; any other unit does as well."""
    max_gpus: int | None = None
    gpus_per_node: int = 8
    """GPUs of a node, where nodes are not there yet."""
    sibling_safe: bool = True
    """A slice can be cut while others on its GPU are in use; otherwise a GPU is cut anew as a
    whole, or left as it is."""
    drains_node: bool = False
    """Whoever sits on a node has to leave it before any of its GPUs is cut."""


class SunkCapacity(NamedTuple):
    """What can be cut on GPUs that are in use whatever is planned, so that it costs nothing."""

    gpu_model: str
    geometries: tuple[Geometry, ...]
    gpu_count: int


def replicas_needed(service: ServiceDemand, speed: float) -> int:
    """Instances of one speed that serve it alone."""
    return max(
        math.ceil(service.demand * (1 - DEMAND_TOLERANCE) / speed), service.required_replicas
    )


def meets_demand(service: ServiceDemand, replicas: Mapping[InstanceType, int]) -> bool:
    """Whether instances of these kinds serve it."""
    served = sum(
        service.throughput[instance_type] * count for instance_type, count in replicas.items()
    )
    return (
        served >= service.demand * (1 - DEMAND_TOLERANCE)
        and sum(replicas.values()) >= service.required_replicas
    )
