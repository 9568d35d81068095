"""Random pools with a bad start and a planned layout."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tessera.domain.mig.plan import plan_layouts
from tessera.domain.mig_backends.backend import GeometryBackend
from tests.domain.repartition.pool_simulation import FarEnd, Pinned, SimService, Whole, World, shown
from tests.mig_builders import A100
from tests.mig_oracles import maximal_layouts

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
SPEED = {"1g.10gb": 1.0, "2g.20gb": 2.0, "3g.40gb": 3.0, "4g.40gb": 3.5, "7g.80gb": 7.0}
LAYOUTS = maximal_layouts(A100, PROFILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything by which a world is made anew."""

    nodes: dict[str, list[Layout]]
    seats: dict[str, list[tuple[str, int, SlicePlacement]]]
    services: dict[str, SimService]
    target: dict[str, list[list[str]]]

    def world(self, backend: GeometryBackend, far_end: FarEnd, seed: int = 0) -> World:
        made = World(self.nodes, backend, far_end, seed=seed)
        for name, service in self.services.items():
            made.serve(service, self.seats.get(name, []))
        made.plan(self.target)
        return made


BACKENDS: dict[str, Callable[[], Pinned | Whole]] = {
    "pinned": Pinned,
    "whole": Whole,
    "whole, with an agent": lambda: Whole(knows_pods=True),
}


def a_case(
    seed: int, *, nodes: int = 3, gpus: int = 2, idle: int = 1, room: bool = False
) -> Case | None:
    """Services on slices by chance; what they should have is planned.

    So many GPUs are unused; with `room` those of a whole node.
    """
    lot = random.Random(seed)  # noqa: S311 - no secret
    names = [f"n{at}" for at in range(nodes)]
    cut = {name: [lot.choice(LAYOUTS) for _ in range(gpus)] for name in names}
    unused = (
        {("n0", at) for at in range(gpus)}
        if room
        else set(lot.sample([(name, at) for name in names for at in range(gpus)], idle))
    )
    seats = [
        (name, at, spot)
        for name in names
        for at in range(gpus)
        if (name, at) not in unused
        for spot in cut[name][at]
        if lot.random() < 0.75
    ]
    held: dict[str, list[tuple[str, int, SlicePlacement]]] = {}
    for seat in seats:
        held.setdefault(f"{seat[2].profile[0]}{lot.choice('ab')}", []).append(seat)
    asked = [_service(lot, name, held[name]) for name in sorted(held)]
    current = [
        _gpu(name, at, layout, held) for name in names for at, layout in enumerate(cut[name])
    ]
    plan = plan_layouts(asked, [GpuOffer(gpu_model=A100, price=1, max_gpus=nodes * gpus)], current)
    planned = {gpu.name: gpu for gpu in plan.gpus}
    if plan.unmet or not planned.keys() <= {gpu.name for gpu in current}:
        return None
    wanted = Counter[str]()
    for gpu in planned.values():
        wanted.update(one.service for one in gpu.slices if one.service)
    profile = {
        one.service: one.profile for gpu in planned.values() for one in gpu.slices if one.service
    }
    services = {
        one.name: SimService(
            one.name,
            profile[one.name],
            wanted[one.name],
            SPEED[profile[one.name]] * min(one.min_replicas, wanted[one.name]),
            SPEED,
        )
        for one in asked
    }
    target = {
        name: [
            shown(planned[f"{name}-{at}"].layout if f"{name}-{at}" in planned else layout)
            for at, layout in enumerate(cut[name])
        ]
        for name in names
    }
    return Case(nodes=cut, seats=held, services=services, target=target)


def _service(
    lot: random.Random, name: str, seats: Sequence[tuple[str, int, SlicePlacement]]
) -> ServiceDemand:
    """As much as it has or a little else; sometimes on slices of another profile."""
    profile = seats[0][2].profile
    if lot.random() < 0.3:
        profile = lot.choice(PROFILES[:4])
    has = sum(SPEED[spot.profile] for _, _, spot in seats)
    demand = has * lot.choice([0.5, 0.75, 1, 1, 1.25])
    floor = lot.choice([1, 1, 2])
    return ServiceDemand(
        name=name,
        demand=demand,
        min_replicas=floor,
        throughput={InstanceType(A100.name, profile): SPEED[profile]},
    )


def _gpu(
    node: str, at: int, layout: Layout, held: dict[str, list[tuple[str, int, SlicePlacement]]]
) -> FleetGpu:
    holder = {(seat[0], seat[1], seat[2]): name for name, seats in held.items() for seat in seats}
    return FleetGpu(
        name=f"{node}-{at}",
        gpu_model=A100.name,
        slices=tuple(
            FleetSlice(spot.start, spot.profile, holder.get((node, at, spot))) for spot in layout
        ),
    )
