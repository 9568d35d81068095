"""Random pools with a bad start and a planned layout."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.plan import plan_layouts
from tessera.domain.mig_backends.backend import GeometryBackend
from tests.domain.repartition.pool_simulation import (
    LayoutExecutor,
    PinnedBackend,
    PoolSimulation,
    SimService,
    WholeGpuBackend,
    slice_names,
)
from tests.mig_builders import A100
from tests.mig_oracles import maximal_layouts

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
SPEED = {"1g.10gb": 1.0, "2g.20gb": 2.0, "3g.40gb": 3.0, "4g.40gb": 3.5, "7g.80gb": 7.0}
LAYOUTS = maximal_layouts(A100, PROFILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPool:
    """Everything that a simulation is built from."""

    nodes: dict[str, list[Layout]]
    slices_by_service: dict[str, list[tuple[str, int, SlicePlacement]]]
    services: dict[str, SimService]
    target: dict[str, list[list[str]]]

    def simulate(
        self, backend: GeometryBackend, executor: LayoutExecutor, seed: int = 0
    ) -> PoolSimulation:
        simulation = PoolSimulation(self.nodes, backend, executor, seed=seed)
        for name, service in self.services.items():
            simulation.serve(service, self.slices_by_service.get(name, []))
        simulation.plan(self.target)
        return simulation


BACKENDS: dict[str, Callable[[], PinnedBackend | WholeGpuBackend]] = {
    "pinned": PinnedBackend,
    "whole": WholeGpuBackend,
    "whole, with an agent": lambda: WholeGpuBackend(knows_pods=True),
}


def a_random_pool(
    seed: int,
    *,
    nodes: int = 3,
    gpus: int = 2,
    idle: int = 1,
    whole_node_idle: bool = False,
    mixes: bool = False,
) -> RandomPool | None:
    """Build services on random slices, and plan what they should have.

    `idle` GPUs are unused; with `room` all of one node. With `mixes` a service may get slices of
    several profiles.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    names = [f"n{index}" for index in range(nodes)]
    layouts = {name: [rng.choice(LAYOUTS) for _ in range(gpus)] for name in names}
    unused = (
        {("n0", index) for index in range(gpus)}
        if whole_node_idle
        else set(rng.sample([(name, index) for name in names for index in range(gpus)], idle))
    )
    used_slices = [
        (name, gpu, placement)
        for name in names
        for gpu in range(gpus)
        if (name, gpu) not in unused
        for placement in layouts[name][gpu]
        if rng.random() < 0.75
    ]
    slices_by_service: dict[str, list[tuple[str, int, SlicePlacement]]] = {}
    for used_slice in used_slices:
        slices_by_service.setdefault(f"{used_slice[2].profile[0]}{rng.choice('ab')}", []).append(
            used_slice
        )
    demands = [_service(rng, name, slices_by_service[name]) for name in sorted(slices_by_service)]
    if mixes:
        demands = [_on_any_profile(demand) for demand in demands]
    current = [
        _gpu(name, gpu, layout, slices_by_service)
        for name in names
        for gpu, layout in enumerate(layouts[name])
    ]
    plan = plan_layouts(
        demands, [GpuOffer(gpu_model=A100, price=1, max_gpus=nodes * gpus)], current
    )
    planned = {gpu.name: gpu for gpu in plan.gpus}
    if plan.unmet or not planned.keys() <= {gpu.name for gpu in current}:
        return None
    wanted: dict[str, Counter[str]] = {demand.name: Counter() for demand in demands}
    for gpu in planned.values():
        for fleet_slice in gpu.slices:
            if fleet_slice.service:
                wanted[fleet_slice.service][fleet_slice.profile] += 1
    services = {
        demand.name: _sim_service(demand, wanted[demand.name], is_mixed=mixes) for demand in demands
    }
    target = {
        name: [
            slice_names(planned[f"{name}-{gpu}"].layout if f"{name}-{gpu}" in planned else layout)
            for gpu, layout in enumerate(layouts[name])
        ]
        for name in names
    }
    return RandomPool(
        nodes=layouts, slices_by_service=slices_by_service, services=services, target=target
    )


def _on_any_profile(demand: ServiceDemand) -> ServiceDemand:
    """Return the service as one that fits on its profile and all larger ones."""
    (smallest,) = demand.throughput
    profiles = PROFILES[PROFILES.index(smallest.profile) :]
    throughput = {InstanceType(A100.name, profile): SPEED[profile] for profile in profiles}
    return replace(demand, throughput=throughput)


def _sim_service(demand: ServiceDemand, wanted: Counter[str], *, is_mixed: bool) -> SimService:
    reference = min(wanted, key=lambda profile: SPEED[profile])
    return SimService(
        demand.name,
        reference,
        wanted[reference],
        SPEED[reference] * min(demand.min_replicas, wanted.total()),
        # As in the operator, no replica stands for several of minReplicas.
        {profile: min(speed, SPEED[reference]) for profile, speed in SPEED.items()}
        if is_mixed
        else SPEED,
        others={profile: count for profile, count in wanted.items() if profile != reference},
    )


def _service(
    rng: random.Random, name: str, slices: Sequence[tuple[str, int, SlicePlacement]]
) -> ServiceDemand:
    """Build about the demand that its slices serve, sometimes on another profile."""
    profile = slices[0][2].profile
    if rng.random() < 0.3:
        profile = rng.choice(PROFILES[:4])
    has = sum(SPEED[placement.profile] for _, _, placement in slices)
    demand = has * rng.choice([0.5, 0.75, 1, 1, 1.25])
    min_replicas = rng.choice([1, 1, 2])
    return ServiceDemand(
        name=name,
        demand=demand,
        min_replicas=min_replicas,
        throughput={InstanceType(A100.name, profile): SPEED[profile]},
    )


def _gpu(
    node: str,
    index: int,
    layout: Layout,
    slices_by_service: dict[str, list[tuple[str, int, SlicePlacement]]],
) -> FleetGpu:
    holder = {
        (used_slice[0], used_slice[1], used_slice[2]): name
        for name, slices in slices_by_service.items()
        for used_slice in slices
    }
    return FleetGpu(
        name=f"{node}-{index}",
        gpu_model=A100.name,
        slices=tuple(
            FleetSlice(placement.start, placement.profile, holder.get((node, index, placement)))
            for placement in layout
        ),
    )
