"""Selection of the services that are served, and of their instance types where these are limited.

Where GPUs are too few, tenants share them: see `fair_shares`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.hardware.gpu_layouts import Geometry, geometry
from tessera.domain.mig.demand import (
    GpuOffer,
    InstanceType,
    ServiceDemand,
    SunkCapacity,
    instance_types_of,
    profiles_of,
    replicas_needed,
)
from tessera.domain.mig.fair_shares import ReplicaStep, fair_steps
from tessera.domain.mig.fleet import FleetGpu
from tessera.domain.mig.geometries import maximal_fillings
from tessera.domain.mig.mix import Mix, cheapest_mix, feasible_mix, restrict_to_offers

# Services for which keeping their instance type is evaluated.
_MAX_TYPE_CHECKS = 24
# Services of one tenant after which no more of them are tried that do not fit.
_MAX_FIT_CHECKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSelection:
    """The served services with as much of their demand as fits, and their mix."""

    services: tuple[ServiceDemand, ...]
    mix: Mix
    bound: int
    """Lower bound of the cost of serving them on any instance types."""


MixSolver = Callable[[Iterable[ServiceDemand]], Mix]
Demands = Iterable[ServiceDemand]


def sunk_capacities(
    gpus: Iterable[FleetGpu], offers: Sequence[GpuOffer], services: Iterable[ServiceDemand]
) -> list[SunkCapacity]:
    """Return the geometries of GPUs that are paid in any case, beside their fixed slices."""
    offer_by_model = {offer.gpu_model.name: offer for offer in offers}
    instance_types = instance_types_of(services)
    gpu_counts = Counter(
        (gpu.gpu_model, _sunk_geometries(gpu, offer, profiles_of(gpu.gpu_model, instance_types)))
        for gpu in gpus
        if gpu.sunk and (offer := offer_by_model.get(gpu.gpu_model))
    )
    return [
        SunkCapacity(gpu_model, geometries, count)
        for (gpu_model, geometries), count in sorted(gpu_counts.items())
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
    """Select the served services and their mix at the least cost.

    A running service of at most 1 or 2 instance types keeps them unless others save enough to move
    all of its replicas; `moves_per_gpu` moves are worth a GPU of the most expensive model.
    """

    def solve_mix(demands: Iterable[ServiceDemand]) -> Mix:
        return cheapest_mix(demands, offers, sunk)

    wanted = [restrict_to_offers(service, offers) for service in services]
    mix = solve_mix(wanted)
    if any(service.throughput for service in wanted if service.name in mix.unmet):
        wanted = _reduce_to_capacity(
            wanted,
            fair_steps(wanted, offers, sunk),
            lambda demands: feasible_mix(demands, offers, sunk) is not None,
        )
        mix = solve_mix(wanted)
        if mix.unmet:
            # The reduced demand fits, so a mix that leaves out a service is a limit of the search.
            mix = feasible_mix(wanted, offers, sunk) or mix
    served = [service for service in wanted if service.name in mix.replicas]
    bound = mix.bound
    if any(service.max_types is not None for service in served):
        highest_price = max(offer.price for offer in offers)
        moves_per_cost = math.inf if moves_per_gpu is None else moves_per_gpu / highest_price
        mix, served = _fix_instance_types(served, mix, solve_mix, current, moves_per_cost)
    return ServiceSelection(services=tuple(served), mix=mix, bound=min(bound, mix.cost))


def _reduce_to_capacity(
    services: Sequence[ServiceDemand], steps: list[ReplicaStep], fits: Callable[[Demands], bool]
) -> list[ServiceDemand]:
    """Return the services with as much of their demand as fits, replica by replica in fair order.

    A service of which one more replica does not fit may mix instance types, or gets none of its
    later ones.
    """
    chosen: dict[str, ServiceDemand] = {}
    checks = Counter[str]()
    while steps and checks.total() < _MAX_FIT_CHECKS * 4:
        low, high = 0, len(steps)
        # Most often the very next step does not fit.
        middle = 1
        while low < high:
            trial = chosen | {step.service.name: step.demand for step in steps[:middle]}
            low, high = (middle, high) if fits(trial.values()) else (low, middle - 1)
            middle = (low + high + 1) // 2
        chosen |= {step.service.name: step.demand for step in steps[:low]}
        if low == len(steps):
            break
        full = steps[low].service
        if full.may_mix:
            mixed = replace(full, max_types=2, may_mix=False, kept_types=full.kept_types[:1])
            steps = [
                replace(step, service=mixed) if step.service is full else step
                for step in steps[low:]
            ]
            continue
        checks[full.tenant] += 1
        # A tenant with many services that do not fit has only some of them tried.
        given_up = checks[full.tenant] >= _MAX_FIT_CHECKS
        steps = [
            step
            for step in steps[low:]
            if step.service is not full and not (given_up and step.service.tenant == full.tenant)
        ]
    return [chosen[service.name] for service in services if service.name in chosen]


def _fix_instance_types(
    services: Sequence[ServiceDemand],
    mix: Mix,
    solve_mix: MixSolver,
    current: Mapping[str, Counter[InstanceType]],
    moves_per_cost: float,
) -> tuple[Mix, list[ServiceDemand]]:
    """Return the mix and the services, restricted to their types where these are limited.

    All of them keep their current types if that costs nothing. Otherwise they are evaluated one by
    one, those with the most replicas first: a service changes its types only where the saving is
    worth moving all of its replicas.
    """
    best, checked = mix, set[str]()
    restricted = {
        candidate.name: _restrict_to_types(candidate, instance_types)
        for candidate, instance_types, _ in _current_types(services, current)
    }
    trial_mix = solve_mix([restricted.get(candidate.name, candidate) for candidate in services])
    if not trial_mix.unmet and trial_mix.cost <= mix.cost:
        best = trial_mix
    else:
        restricted = {}
    while len(checked) < _MAX_TYPE_CHECKS:
        movable = [
            (-count, service.name, service, instance_types)
            for service, instance_types, count in _current_types(services, current)
            if service.name not in checked
            and not {each for each, _ in best.replicas[service.name]} <= instance_types
        ]
        if not movable:
            break
        negated_count, name, service, instance_types = min(movable)
        checked.add(name)
        trial = restricted | {name: _restrict_to_types(service, instance_types)}
        trial_mix = solve_mix([trial.get(candidate.name, candidate) for candidate in services])
        if not trial_mix.unmet and (trial_mix.cost - best.cost) * moves_per_cost < -negated_count:
            restricted, best = trial, trial_mix
    by_name = {
        candidate.name: _restrict_to_types(candidate, dict(best.replicas[candidate.name]))
        for candidate in services
        if candidate.max_types is not None
    } | restricted
    return best, [by_name.get(candidate.name, candidate) for candidate in services]


def _current_types(
    services: Sequence[ServiceDemand], current: Mapping[str, Counter[InstanceType]]
) -> Iterator[tuple[ServiceDemand, frozenset[InstanceType], int]]:
    """Yield services with their most frequent types and how many replicas would move.

    These types are as many as the service may have. Replicas beyond those needed stop in any case,
    so they do not count.
    """
    for service in services:
        counts = current.get(service.name, Counter[InstanceType]())
        usable = [
            (-count, instance_type)
            for instance_type, count in counts.items()
            if instance_type in service.throughput
        ]
        most_frequent = sorted(usable)[: service.max_types or 0]
        if most_frequent and len(most_frequent) == service.max_types:
            needed = max(
                replicas_needed(service, service.throughput[each]) for _, each in most_frequent
            )
            moved = min(-sum(negated_count for negated_count, _ in most_frequent), needed)
            yield service, frozenset(each for _, each in most_frequent), moved


def _restrict_to_types(
    service: ServiceDemand, instance_types: Iterable[InstanceType]
) -> ServiceDemand:
    return replace(
        service, throughput={each: service.throughput[each] for each in sorted(instance_types)}
    )
