"""Synthetic services for the planner of layouts, and the planners that it is compared with.

Throughput grows by a power law with the slice, since measured models do so more or less than in
proportion; models that need much memory fit the larger slices only.
"""

import math
import random
from collections.abc import Callable, Sequence

from tessera.domain.mig.demand import InstanceType, ServiceDemand
from tessera.domain.mig.gpu_building import place_geometry
from tessera.domain.mig.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.mig.layouts import Geometry
from tessera.domain.mig.pattern_pricing import cheapest_pattern

# What a slice of so many compute and memory slices does at the power 1.
WORK = {(1, 1): 1.0, (1, 2): 1.05, (2, 2): 2.0, (3, 4): 3.2, (4, 4): 4.0, (7, 8): 7.0}
WHOLE_WORK = 7.6


def fleet(
    count: int, seed: int, boards: Sequence[GpuModel], scale: float = 1.35
) -> list[ServiceDemand]:
    """Services whose median demand is `scale` whole GPUs of the first board."""
    draw = random.Random(seed)  # noqa: S311 - a fleet is no secret
    return [_service(f"service-{at:04}", draw, boards, scale) for at in range(count)]


def _service(
    name: str, draw: random.Random, boards: Sequence[GpuModel], scale: float
) -> ServiceDemand:
    power, base = draw.uniform(0.5, 1.15), draw.uniform(5, 50)
    memory = draw.choice([1, 1, 1, 2, 2, 4, 4, 8])
    throughput = {}
    for at, board in enumerate(boards):
        faster = base * (1 if at == 0 else draw.uniform(1.5, 3))
        for cut in board.profiles:
            work = WORK.get((cut.compute_slices, cut.memory_slices))
            if work and not cut.has_media_engines and cut.memory_slices >= memory:
                throughput[InstanceType(board.name, cut.name)] = round(faster * work**power, 3)
        throughput[InstanceType(board.name, WHOLE_GPU)] = round(faster * WHOLE_WORK**power, 3)
    whole = throughput[InstanceType(boards[0].name, WHOLE_GPU)]
    return ServiceDemand(
        name=name,
        demand=round(draw.lognormvariate(0, 1) * whole * scale, 3),
        min_replicas=draw.choice([1, 1, 2]),
        throughput=throughput,
    )


def first_fit_decreasing(services: Sequence[ServiceDemand], board: GpuModel) -> int:
    """Every service on the slices that take least; large ones first, each on the first GPU."""
    return _packed(board, _largest_first(board, _efficient(services, board)), min)


def best_fit(services: Sequence[ServiceDemand], board: GpuModel) -> int:
    """The same, each on the GPU with the least room left that holds it."""
    return _packed(board, _largest_first(board, _efficient(services, board)), max)


def homogeneous(services: Sequence[ServiceDemand], board: GpuModel) -> int:
    """All GPUs cut alike, into the profile that needs fewest; who does not fit takes whole GPUs."""
    return min(_alike(services, board, cut.name, cut.max_instances) for cut in board.profiles)


def request_driven(services: Sequence[ServiceDemand], board: GpuModel) -> int:
    """In order of arrival, for every instance the smallest slice that does what is left."""
    wanted = []
    for service in services:
        left, due = service.demand, service.required_replicas
        kinds = sorted(service.throughput, key=lambda kind: (_share(board, kind.profile), kind))
        while left > 0 or due > 0:
            enough = [kind for kind in kinds if service.throughput[kind] >= left]
            kind = enough[0] if enough else kinds[-1]
            wanted.append(kind.profile)
            left, due = left - service.throughput[kind], due - 1
    return _packed(board, wanted, min)


def _alike(services: Sequence[ServiceDemand], board: GpuModel, profile: str, each: int) -> int:
    slices, wholes = 0, 0
    for service in services:
        if speed := service.throughput.get(InstanceType(board.name, profile)):
            slices += max(math.ceil(service.demand / speed), service.required_replicas)
        else:
            speed = service.throughput[InstanceType(board.name, WHOLE_GPU)]
            wholes += max(math.ceil(service.demand / speed), service.required_replicas)
    return math.ceil(slices / each) + wholes


def _efficient(services: Sequence[ServiceDemand], board: GpuModel) -> list[str]:
    """Instances that take the least share of GPUs, each service for itself."""
    wanted: list[str] = []
    for service in services:
        shares = {kind: _share(board, kind.profile) for kind in service.throughput}
        for kind, count in cheapest_pattern(service, shares).pattern:
            wanted += [kind.profile] * count
    return wanted


def _largest_first(board: GpuModel, wanted: list[str]) -> list[str]:
    return sorted(wanted, key=lambda profile: (-_share(board, profile), profile))


def _packed(
    board: GpuModel, wanted: Sequence[str], choose: Callable[[list[tuple[float, int]]], object]
) -> int:
    """GPUs that are cut as instances come; which of those with room is chosen."""
    gpus: list[tuple[float, Geometry]] = []
    for profile in wanted:
        room = [
            (used if choose is max else 0.0, -at)
            for at, (used, way) in enumerate(gpus)
            if _fits(board, way, profile)
        ]
        if not room:
            gpus.append((_share(board, profile), ((profile, 1),)))
            continue
        at = -max(room)[1]
        used, way = gpus[at]
        gpus[at] = (used + _share(board, profile), _grown(way, profile))
    return len(gpus)


def _fits(board: GpuModel, way: Geometry, profile: str) -> bool:
    return place_geometry(board, _grown(way, profile)) is not None


def _grown(way: Geometry, profile: str) -> Geometry:
    counts = dict(way)
    return tuple(sorted((counts | {profile: counts.get(profile, 0) + 1}).items()))


def _share(board: GpuModel, profile: str) -> float:
    cut = board.find_profile(profile)
    return cut.memory_slices / board.memory_slices if cut else 1.0


PLANNERS = {
    "first_fit_decreasing": first_fit_decreasing,
    "best_fit": best_fit,
    "homogeneous": homogeneous,
    "request_driven": request_driven,
}
