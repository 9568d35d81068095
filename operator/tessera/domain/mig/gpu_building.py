"""GPUs for a mix: every geometry gets placements, and every service gets slices."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from tessera.domain.hardware.gpu_layouts import Layout, place_geometry
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.mix import Mix
from tessera.domain.mig.pattern_pricing import ReplicaPattern


def build_gpus(mix: Mix, gpu_models: Mapping[str, GpuModel]) -> tuple[FleetGpu, ...]:
    """Return GPUs for the mix, numbered from 1, without slices that nothing uses.

    Raises ValueError for a geometry that the GPU model cannot have.
    """
    layouts: list[tuple[str, str, Layout]] = []
    for (model_name, geometry), count in sorted(mix.gpus.items()):
        layout = place_geometry(gpu_models[model_name], geometry)
        if layout is None:
            raise ValueError(f"{model_name} cannot be partitioned into {geometry}")
        layouts += [
            (model_name, f"gpu-{1 + len(layouts) + offset:04}", layout) for offset in range(count)
        ]
    # Replicas of a service are distributed round-robin, so that a failed GPU takes few of them.
    free_slices: dict[InstanceType, list[tuple[int, str, int]]] = defaultdict(list)
    for gpu_model, gpu, layout in layouts:
        next_round = Counter[str]()
        for placement in layout:
            free_slices[InstanceType(gpu_model, placement.profile)].append(
                (next_round[placement.profile], gpu, placement.start)
            )
            next_round[placement.profile] += 1
    slices_by_gpu: dict[str, list[FleetSlice]] = defaultdict(list)
    for instance_type, replicas in _services_by_type(mix.replicas).items():
        for service, (_, gpu, start) in zip(
            replicas, sorted(free_slices[instance_type]), strict=False
        ):
            slices_by_gpu[gpu].append(FleetSlice(start, instance_type.profile, service))
    return tuple(
        FleetGpu(name=gpu, gpu_model=gpu_model, slices=tuple(sorted(slices_by_gpu[gpu])))
        for gpu_model, gpu, _ in layouts
        if slices_by_gpu[gpu]
    )


def _services_by_type(patterns: Mapping[str, ReplicaPattern]) -> dict[InstanceType, list[str]]:
    """Return the services that use each instance type, once per replica."""
    services: dict[InstanceType, list[str]] = defaultdict(list)
    for service, pattern in sorted(patterns.items()):
        for instance_type, count in pattern:
            services[instance_type] += [service] * count
    return services
