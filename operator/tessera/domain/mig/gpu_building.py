"""GPUs for a mix: every geometry gets placements, and every service gets slices."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from tessera.domain.incremental import tabulated
from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.mig.layouts import WHOLE_GPU_LAYOUT, Geometry, Layout, fitting_placements
from tessera.domain.mig.mix import Mix
from tessera.domain.mig.pattern_pricing import ReplicaPattern


@tabulated
def place_geometry(gpu_model: GpuModel, geometry: Geometry, occupied: Layout = ()) -> Layout | None:
    """Return the first layout that adds exactly these slices to the occupied ones.

    Large slices are placed first. None if the slices do not fit.
    """
    counts = Counter(dict(geometry))
    if not counts:
        return occupied
    if WHOLE_GPU in counts:
        return WHOLE_GPU_LAYOUT if counts == Counter({WHOLE_GPU: 1}) and not occupied else None
    profile = max(counts, key=lambda name: (gpu_model.memory_slices_of(name), name))
    rest = tuple(sorted((+(counts - Counter({profile: 1}))).items()))
    for placement in fitting_placements(gpu_model, occupied, (profile,)):
        if layout := place_geometry(gpu_model, rest, tuple(sorted((*occupied, placement)))):
            return layout
    return None


def layout_problem(
    gpu_model: GpuModel, layout: Mapping[str, int], field: str = "spec.mig.layout"
) -> tuple[bool, str] | None:
    """Return why no GPU of the model can have the slices, and whether a profile is unknown."""
    unknown = sorted(profile for profile in layout if gpu_model.find_profile(profile) is None)
    if unknown:
        known = ", ".join(gi_profile.name for gi_profile in gpu_model.profiles)
        return True, (
            f"{field}: {gpu_model.name} has no profile {', '.join(unknown)}; it has {known}"
        )
    if place_geometry(gpu_model, tuple(sorted(layout.items()))) is None:
        counts = ", ".join(f"{count} x {profile}" for profile, count in sorted(layout.items()))
        return False, (f"{field}: {counts} does not fit on 1 {gpu_model.name}; lower the counts")
    return None


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
