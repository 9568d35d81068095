"""Synthetic services for the planner of layouts, and the planners that it is compared with.

Throughput grows by a power law with the slice, since measured models do so more or less than in
proportion; models that need much memory fit the larger slices only.
"""

import math
import random
from collections.abc import Callable, Sequence

from tessera.domain.hardware.gpu_layouts import Geometry, place_geometry
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.mig.demand import InstanceType, ServiceDemand
from tessera.domain.mig.pattern_pricing import cheapest_pattern

# What a slice of so many compute and memory slices does at the power 1.
WORK = {(1, 1): 1.0, (1, 2): 1.05, (2, 2): 2.0, (3, 4): 3.2, (4, 4): 4.0, (7, 8): 7.0}
WHOLE_WORK = 7.6


def fleet(
    count: int, seed: int, gpu_models: Sequence[GpuModel], scale: float = 1.35
) -> list[ServiceDemand]:
    """Services whose median demand is `scale` whole GPUs of the first GPU model."""
    draw = random.Random(seed)  # noqa: S311 - a fleet is no secret
    return [_service(f"service-{at:04}", draw, gpu_models, scale) for at in range(count)]


def _service(
    name: str, draw: random.Random, gpu_models: Sequence[GpuModel], scale: float
) -> ServiceDemand:
    power, base = draw.uniform(0.5, 1.15), draw.uniform(5, 50)
    memory = draw.choice([1, 1, 1, 2, 2, 4, 4, 8])
    throughput = {}
    for at, gpu_model in enumerate(gpu_models):
        faster = base * (1 if at == 0 else draw.uniform(1.5, 3))
        for profile in gpu_model.profiles:
            work = WORK.get((profile.compute_slices, profile.memory_slices))
            if work and not profile.has_media_engines and profile.memory_slices >= memory:
                throughput[InstanceType(gpu_model.name, profile.name)] = round(
                    faster * work**power, 3
                )
        throughput[InstanceType(gpu_model.name, WHOLE_GPU)] = round(faster * WHOLE_WORK**power, 3)
    whole = throughput[InstanceType(gpu_models[0].name, WHOLE_GPU)]
    return ServiceDemand(
        name=name,
        demand=round(draw.lognormvariate(0, 1) * whole * scale, 3),
        min_replicas=draw.choice([1, 1, 2]),
        throughput=throughput,
    )


def first_fit_decreasing(services: Sequence[ServiceDemand], gpu_model: GpuModel) -> int:
    """Every service on the slices that take least; large ones first, each on the first GPU."""
    return _pack(gpu_model, _largest_first(gpu_model, _efficient(services, gpu_model)), min)


def best_fit(services: Sequence[ServiceDemand], gpu_model: GpuModel) -> int:
    """The same, each on the GPU with the least room left that holds it."""
    return _pack(gpu_model, _largest_first(gpu_model, _efficient(services, gpu_model)), max)


def homogeneous(services: Sequence[ServiceDemand], gpu_model: GpuModel) -> int:
    """All GPUs with the profile that needs fewest; services that do not fit take whole GPUs."""
    return min(
        _homogeneous_gpus(services, gpu_model, profile.name, profile.max_instances)
        for profile in gpu_model.profiles
    )


def request_driven(services: Sequence[ServiceDemand], gpu_model: GpuModel) -> int:
    """In order of arrival, for every instance the smallest slice that does what is left."""
    profiles = []
    for service in services:
        left, due = service.demand, service.required_replicas
        kinds = sorted(service.throughput, key=lambda kind: (_share(gpu_model, kind.profile), kind))
        while left > 0 or due > 0:
            enough = [kind for kind in kinds if service.throughput[kind] >= left]
            kind = enough[0] if enough else kinds[-1]
            profiles.append(kind.profile)
            left, due = left - service.throughput[kind], due - 1
    return _pack(gpu_model, profiles, min)


def _homogeneous_gpus(
    services: Sequence[ServiceDemand], gpu_model: GpuModel, profile: str, each: int
) -> int:
    slices, wholes = 0, 0
    for service in services:
        if speed := service.throughput.get(InstanceType(gpu_model.name, profile)):
            slices += max(math.ceil(service.demand / speed), service.required_replicas)
        else:
            speed = service.throughput[InstanceType(gpu_model.name, WHOLE_GPU)]
            wholes += max(math.ceil(service.demand / speed), service.required_replicas)
    return math.ceil(slices / each) + wholes


def _efficient(services: Sequence[ServiceDemand], gpu_model: GpuModel) -> list[str]:
    """Instances that take the least share of GPUs, each service for itself."""
    profiles: list[str] = []
    for service in services:
        shares = {kind: _share(gpu_model, kind.profile) for kind in service.throughput}
        for kind, count in cheapest_pattern(service, shares).pattern:
            profiles += [kind.profile] * count
    return profiles


def _largest_first(gpu_model: GpuModel, profiles: list[str]) -> list[str]:
    return sorted(profiles, key=lambda profile: (-_share(gpu_model, profile), profile))


def _pack(
    gpu_model: GpuModel,
    profiles: Sequence[str],
    choose: Callable[[list[tuple[float, int]]], object],
) -> int:
    """Count GPUs that are partitioned as instances come; `choose` picks one with free slices."""
    gpus: list[tuple[float, Geometry]] = []
    for profile in profiles:
        candidates = [
            (used if choose is max else 0.0, -at)
            for at, (used, geometry) in enumerate(gpus)
            if _fits(gpu_model, geometry, profile)
        ]
        if not candidates:
            gpus.append((_share(gpu_model, profile), ((profile, 1),)))
            continue
        at = -max(candidates)[1]
        used, geometry = gpus[at]
        gpus[at] = (used + _share(gpu_model, profile), _with_instance(geometry, profile))
    return len(gpus)


def _fits(gpu_model: GpuModel, geometry: Geometry, profile: str) -> bool:
    return place_geometry(gpu_model, _with_instance(geometry, profile)) is not None


def _with_instance(geometry: Geometry, profile: str) -> Geometry:
    counts = dict(geometry)
    return tuple(sorted((counts | {profile: counts.get(profile, 0) + 1}).items()))


def _share(gpu_model: GpuModel, profile: str) -> float:
    mig_profile = gpu_model.find_profile(profile)
    return mig_profile.memory_slices / gpu_model.memory_slices if mig_profile else 1.0


PLANNERS = {
    "first_fit_decreasing": first_fit_decreasing,
    "best_fit": best_fit,
    "homogeneous": homogeneous,
    "request_driven": request_driven,
}
