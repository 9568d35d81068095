"""GPU models, services and GPUs for the layout planner, with defaults."""

from collections.abc import Mapping

from tessera.domain.hardware.gpu_models import gpu_models
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice

A100 = gpu_models()["A100-80GB"]
ONE = (GpuOffer(gpu_model=A100, price=1),)


def a_service(
    name: str = "a",
    demand: float = 0.0,
    speeds: Mapping[str, float] | None = None,
    min_replicas: int = 0,
    like: ServiceDemand | None = None,
) -> ServiceDemand:
    """Build a service on slices of an A100, or one like another with a new name."""
    if like is not None:
        return ServiceDemand(
            name=name,
            demand=like.demand,
            min_replicas=like.min_replicas,
            throughput=like.throughput,
        )
    given = {"1g.10gb": 1.0} if speeds is None else speeds
    throughput = {InstanceType(A100.name, profile): speed for profile, speed in given.items()}
    return ServiceDemand(name=name, demand=demand, min_replicas=min_replicas, throughput=throughput)


def a_gpu(name: str, *slices: str) -> FleetGpu:
    """Build a GPU from slices as `3g.40gb@4=chat`, or `3g.40gb@4` for an idle one."""
    gpu_slices = []
    for text in slices:
        position, _, service = text.partition("=")
        profile, _, start = position.partition("@")
        gpu_slices.append(FleetSlice(int(start), profile, service or None))
    return FleetGpu(
        name=name,
        gpu_model=A100.name,
        slices=tuple(sorted(gpu_slices, key=lambda gpu_slice: gpu_slice.placement)),
    )
