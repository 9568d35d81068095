"""Who is served, and services that stay of one kind on which: before anybody has a seat.

What does not fit is served as far as it goes: floors first, the largest before others, then the
whole demand in the same order.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.mig.demand import (
    GpuOffer,
    InstanceType,
    ServiceDemand,
    SunkCapacity,
    replicas_needed,
)
from tessera.domain.mig.fleet import FleetGpu
from tessera.domain.mig.geometries import maximal_fillings
from tessera.domain.mig.layouts import Geometry, geometry
from tessera.domain.mig.mix import Mix, cheapest_mix, feasible_mix, restrict_to_offers

# Services of which it is asked whether they had better keep their kind.
_MAX_TYPE_CHECKS = 24
# Services behind the first one that does not fit of which it is asked whether they do.
_MAX_FIT_CHECKS = 16
# A demand that does not fit is lowered in so many steps.
_DEMAND_STEPS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSelection:
    """Services as they are served."""

    services: tuple[ServiceDemand, ...]
    mix: Mix
    bound: int
    """No mix that serves them on any kinds costs less."""


MixSolver = Callable[[Iterable[ServiceDemand]], Mix]


def sunk_capacities(
    gpus: Iterable[FleetGpu], offers: Sequence[GpuOffer], services: Iterable[ServiceDemand]
) -> list[SunkCapacity]:
    """What GPUs that are paid anyway can hold besides what is fixed there."""
    offer_by_model = {offer.gpu_model.name: offer for offer in offers}
    instance_types = {instance_type for service in services for instance_type in service.throughput}
    profiles = {
        name: tuple(
            sorted(
                instance_type.profile
                for instance_type in instance_types
                if instance_type.gpu_model == name
            )
        )
        for name in offer_by_model
    }
    counts = Counter(
        (
            gpu.gpu_model,
            _sunk_geometries(gpu, offer_by_model[gpu.gpu_model], profiles[gpu.gpu_model]),
        )
        for gpu in gpus
        if gpu.sunk and gpu.gpu_model in offer_by_model
    )
    return [
        SunkCapacity(gpu_model, geometries, count)
        for (gpu_model, geometries), count in sorted(counts.items())
    ]


def _sunk_geometries(
    gpu: FleetGpu, offer: GpuOffer, profiles: tuple[str, ...]
) -> tuple[Geometry, ...]:
    current_geometry = geometry(
        placement for placement in gpu.layout if placement not in gpu.foreign_slices
    )
    if gpu.locked or not offer.sibling_safe:
        return (current_geometry,)
    return maximal_fillings(offer.gpu_model, profiles, gpu.foreign_slices)


def select_services(
    services: Sequence[ServiceDemand],
    offers: Sequence[GpuOffer],
    sunk: Sequence[SunkCapacity],
    current: Mapping[str, Counter[InstanceType]],
    moves_per_gpu: float | None,
) -> ServiceSelection:
    """At least cost; a service of one kind that has instances keeps its kind unless another saves
    enough for all of them to move (`worth` moves for the dearest GPU)."""

    def solve_mix(demands: Iterable[ServiceDemand]) -> Mix:
        return cheapest_mix(demands, offers, sunk)

    wanted = [restrict_to_offers(service, offers) for service in services]
    mix = solve_mix(wanted)
    if any(service.throughput for service in wanted if service.name in mix.unmet):
        wanted = _reduce_to_capacity(
            wanted, solve_mix, lambda demands: feasible_mix(demands, offers, sunk)
        )
        mix = solve_mix(wanted)
        if mix.unmet:
            mix = feasible_mix(wanted, offers, sunk) or mix
    served = [service for service in wanted if service.name in mix.replicas]
    bound = mix.bound
    if any(service.single_type for service in served):
        highest_price = max(offer.price for offer in offers)
        moves_per_cost = math.inf if moves_per_gpu is None else moves_per_gpu / highest_price
        mix, served = _fix_instance_types(served, mix, solve_mix, current, moves_per_cost)
    return ServiceSelection(services=tuple(served), mix=mix, bound=min(bound, mix.cost))


def _reduce_to_capacity(
    services: Sequence[ServiceDemand],
    solve_mix: MixSolver,
    find_mix: Callable[[Iterable[ServiceDemand]], Mix | None],
) -> list[ServiceDemand]:
    """Those for whose floors there is room, with as much of their demand as there is room for."""
    minimums = {
        service.name: _minimum_demand(service) for service in services if service.required_replicas
    }
    placed = solve_mix(minimums.values()).replicas
    order = sorted(
        (service for service in services if service.name in placed),
        key=lambda service: (-service.min_replicas, service.name),
    )
    chosen = {service.name: minimums[service.name] for service in order}
    unplaced = sorted(
        (
            service
            for service in minimums.values()
            if service.name not in placed and service.throughput
        ),
        key=lambda service: (-service.min_replicas, service.name),
    )

    def fits(raised: Iterable[ServiceDemand]) -> bool:
        demands = chosen | {service.name: service for service in raised}
        return find_mix(demands.values()) is not None

    for trial_service in unplaced[:_MAX_FIT_CHECKS]:
        candidates = (
            replace(trial_service, min_replicas=count)
            for count in range(trial_service.min_replicas - 1, 0, -1)
        )
        if (
            reduced := next((candidate for candidate in candidates if fits([candidate])), None)
        ) is not None:
            chosen[trial_service.name] = reduced
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(order[:middle]) else (low, middle - 1)
    chosen |= {service.name: service for service in order[:low]}
    for trial_service in order[low : low + _MAX_FIT_CHECKS]:
        parts = [
            replace(trial_service, demand=trial_service.demand * part / _DEMAND_STEPS)
            for part in range(_DEMAND_STEPS + 1)
        ]
        low, high = 0, _DEMAND_STEPS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits([parts[middle]]) else (low, middle - 1)
        chosen[trial_service.name] = parts[low] if low else minimums[trial_service.name]
    return [chosen[service.name] for service in services if service.name in chosen]


def _minimum_demand(service: ServiceDemand) -> ServiceDemand:
    return replace(service, demand=0.0, min_replicas=service.required_replicas)


def _fix_instance_types(
    services: Sequence[ServiceDemand],
    mix: Mix,
    solve_mix: MixSolver,
    current: Mapping[str, Counter[InstanceType]],
    moves_per_cost: float,
) -> tuple[Mix, list[ServiceDemand]]:
    """Every service that is alike with its kind alone.

    All of them may keep the kinds that they have if that costs nothing. Otherwise one after the
    other, those with the most instances first, is asked to; it may change where what that saves is
    worth the moves of all.
    """
    best, checked = mix, set[str]()
    restricted = {
        candidate.name: _restrict_to_type(candidate, instance_type)
        for candidate, instance_type, _ in _current_types(services, current)
    }
    trial_mix = solve_mix([restricted.get(candidate.name, candidate) for candidate in services])
    if not trial_mix.unmet and trial_mix.cost <= mix.cost:
        best = trial_mix
    else:
        restricted = {}
    while len(checked) < _MAX_TYPE_CHECKS:
        movable = [
            (-count, service.name, service, instance_type)
            for service, instance_type, count in _current_types(services, current)
            if service.name not in checked and best.replicas[service.name][0][0] != instance_type
        ]
        if not movable:
            break
        negated_count, name, service, instance_type = min(movable)
        checked.add(name)
        trial = restricted | {name: _restrict_to_type(service, instance_type)}
        trial_mix = solve_mix([trial.get(candidate.name, candidate) for candidate in services])
        if not trial_mix.unmet and (trial_mix.cost - best.cost) * moves_per_cost < -negated_count:
            restricted, best = trial, trial_mix
    by_name = {
        candidate.name: _restrict_to_type(candidate, best.replicas[candidate.name][0][0])
        for candidate in services
        if candidate.single_type
    }
    return best, [by_name.get(candidate.name, candidate) for candidate in services]


def _current_types(
    services: Sequence[ServiceDemand], current: Mapping[str, Counter[InstanceType]]
) -> Iterator[tuple[ServiceDemand, InstanceType, int]]:
    """Services that are alike with the kind that most of their instances have, and with how many
    of these are needed: the others go anyway."""
    for service in services:
        counts = current.get(service.name, Counter[InstanceType]())
        usable = [
            (-count, instance_type)
            for instance_type, count in counts.items()
            if instance_type in service.throughput
        ]
        if service.single_type and usable:
            negated_count, instance_type = min(usable)
            yield (
                service,
                instance_type,
                min(-negated_count, replicas_needed(service, service.throughput[instance_type])),
            )


def _restrict_to_type(service: ServiceDemand, instance_type: InstanceType) -> ServiceDemand:
    return replace(service, throughput={instance_type: service.throughput[instance_type]})
