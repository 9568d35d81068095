"""The layout plan: the slices of every GPU, their services, the moves and the optimality gap."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tessera.domain.mig.demand import GpuOffer, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.fleet_repair import (
    MigFleet,
    name_gpus,
    rearrange_gpus,
    repair_fleet,
    serves_all_demand,
    unmet_services,
)
from tessera.domain.mig.gpu_building import build_gpus
from tessera.domain.mig.mix import Mix
from tessera.domain.mig.service_selection import select_services, sunk_capacities

# GPUs that are rearranged in one program.
_REARRANGE_LIMIT = 24
# The same where GPUs are limited, so that a plan cannot start with new ones.
_LARGE_FLEET = 256
# Share of the cost by which a large fleet may miss the optimum before more replicas move.
_ACCEPTED_GAP = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """The planned layouts of used and of existing idle GPUs, by name."""

    gpus: tuple[FleetGpu, ...]
    cost: int
    bound: int
    """Lower bound of the cost of any layouts that serve the same services."""
    unmet: tuple[str, ...]
    """Services that the available GPUs do not serve, or only in part."""

    @property
    def gpus_in_use(self) -> int:
        """Return the number of GPUs that services run on."""
        return sum(gpu.used for gpu in self.gpus)

    @property
    def gap(self) -> float:
        """Return the largest possible distance from the optimum, as a share of the cost."""
        return (self.cost - self.bound) / self.cost if self.cost else 0.0


def plan_layouts(
    services: Iterable[ServiceDemand],
    offers: Iterable[GpuOffer],
    current: Iterable[FleetGpu] = (),
    *,
    moves_per_gpu: float | None = None,
) -> LayoutPlan:
    """Plan layouts at the least cost, then with the fewest moves.

    `moves_per_gpu` limits the moves for which a GPU of the most expensive model is given up; a
    saving that takes more is skipped until the demand changes further. None allows any number.
    Equal input in any order gives equal plans.
    """
    sorted_offers = sorted(offers, key=lambda offer: offer.gpu_model.name)
    wanted = sorted(services, key=lambda service: service.name)
    existing = tuple(sorted(current, key=lambda gpu: gpu.name))
    sunk = sunk_capacities(existing, sorted_offers, wanted)
    selection = select_services(
        wanted, sorted_offers, sunk, replicas_by_service(existing), moves_per_gpu
    )
    mix = selection.mix
    fleet = MigFleet(services=selection.services, offers=sorted_offers, gpus=existing)
    meets_all = bool(existing) and serves_all_demand(fleet)
    gpus = existing
    if not (meets_all and fleet.cost(existing) <= mix.cost):
        gpus = _replan(fleet, mix, moves_per_gpu)
        # A new plan that saves nothing moves nothing.
        if meets_all and fleet.cost(gpus) >= fleet.cost(existing):
            gpus = existing
    cost = fleet.cost(gpus)
    return LayoutPlan(
        gpus=gpus,
        cost=cost,
        bound=min(selection.bound, cost),
        unmet=unmet_services(wanted, gpus),
    )


def _replan(fleet: MigFleet, mix: Mix, moves_per_gpu: float | None) -> tuple[FleetGpu, ...]:
    offers = fleet.offers
    gpu_models = {offer.gpu_model.name: offer.gpu_model for offer in offers}
    if not fleet.gpus:
        return build_gpus(mix, gpu_models)
    if any(gpu.sunk for gpu in fleet.gpus) or any(offer.max_gpus is not None for offer in offers):
        return _replan_existing(fleet, mix, moves_per_gpu)
    if len(fleet.gpus) <= _REARRANGE_LIMIT:
        max_cost = mix.cost if moves_per_gpu is None else None
        rearranged_gpus = rearrange_gpus(
            fleet, fleet.gpus, max_cost=max_cost, moves_per_gpu=moves_per_gpu
        )
        if rearranged_gpus is not None:
            return rearranged_gpus
    accepted_cost = math.floor(mix.cost * (1 + _ACCEPTED_GAP))
    repaired_gpus = repair_fleet(fleet, accepted_cost)
    return (
        repaired_gpus
        if fleet.cost(repaired_gpus) <= accepted_cost
        else _replan_from_scratch(fleet, mix)
    )


def _replan_existing(
    fleet: MigFleet, mix: Mix, moves_per_gpu: float | None
) -> tuple[FleetGpu, ...]:
    """Return the existing GPUs rearranged, since GPUs cannot be added at will.

    They stay as they are when no arrangement is possible.
    """
    cost = mix.cost
    if len(fleet.gpus) > _LARGE_FLEET:
        repaired_gpus = repair_fleet(fleet, math.floor(cost * (1 + _ACCEPTED_GAP)))
        if serves_all_demand(replace(fleet, gpus=repaired_gpus)):
            return repaired_gpus
    rearranged_gpus = (
        rearrange_gpus(fleet, fleet.gpus, max_cost=cost) if moves_per_gpu is None else None
    )
    return (
        rearranged_gpus
        or rearrange_gpus(fleet, fleet.gpus, moves_per_gpu=moves_per_gpu)
        or fleet.gpus
    )


def _replan_from_scratch(fleet: MigFleet, mix: Mix) -> tuple[FleetGpu, ...]:
    """Return the whole mix, on the existing GPUs that resemble it most.

    GPUs that the mix does not need keep their slices without services.
    """
    unused = {gpu.name: gpu for gpu in fleet.gpus}
    gpus_of_service: dict[tuple[str, str], list[str]] = {}
    for gpu in fleet.gpus:
        for service in sorted(
            {mig_slice.service for mig_slice in gpu.slices if mig_slice.service is not None}
        ):
            gpus_of_service.setdefault((gpu.gpu_model, service), []).append(gpu.name)
    planned = []
    for gpu in build_gpus(mix, {offer.gpu_model.name: offer.gpu_model for offer in fleet.offers}):
        shared_replicas = Counter(
            name
            for mig_slice in gpu.slices
            for name in gpus_of_service.get((gpu.gpu_model, mig_slice.service or ""), ())
            if name in unused
        )
        spare_names = (name for name, other in unused.items() if other.gpu_model == gpu.gpu_model)
        name = (
            max(shared_replicas, key=lambda candidate: (shared_replicas[candidate], candidate))
            if shared_replicas
            else next(spare_names, "")
        )
        unused.pop(name, None)
        planned.append(replace(gpu, name=name))
    idle = (
        replace(gpu, slices=tuple(mig_slice._replace(service=None) for mig_slice in gpu.slices))
        for gpu in unused.values()
    )
    return name_gpus([*planned, *idle])
