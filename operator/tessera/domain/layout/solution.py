"""Solve the layout problem of all pools: whom a better layout moves, and what stays meanwhile."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from tessera.domain.layout.crowded import crowded_gpus, lock, with_counted_gpus
from tessera.domain.layout.demand import whole_gpu_model
from tessera.domain.layout.pool_layout import pool_layout
from tessera.domain.layout.price_limits import with_limit
from tessera.domain.layout.problem import (
    LayoutProblem,
    LayoutSolution,
    PoolLayout,
    PoolTerms,
    SliceDemand,
)
from tessera.domain.layout.staying import staying_gpus
from tessera.domain.mig.demand import InstanceType, meets_demand, served_demand, served_share
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.fleet_repair import unmet_services
from tessera.domain.mig.plan import LayoutPlan, plan_layouts

# How long a demand is assumed to last: savings are counted up to this horizon.
HORIZON = timedelta(minutes=30)
# GPU time that moving one replica costs: the replacement loads its model while the old replica
# finishes its requests, and a GPU serves nothing while it is partitioned.
MOVE_COST = timedelta(minutes=10)
# Moves that are worth it for every GPU saved.
MOVES_PER_SAVED_GPU = HORIZON / MOVE_COST


def solve(problem: LayoutProblem) -> LayoutSolution:
    """Return the plans of all pools."""
    pools, staying = dict[str, PoolLayout](), dict[str, PoolLayout]()
    # Pools of one currency are planned together, so that a service gets the cheapest of them.
    for currency in sorted({pool_terms.currency for pool_terms in problem.terms}):
        terms = [pool_terms for pool_terms in problem.terms if pool_terms.currency == currency]
        part = _part_of(problem, terms)
        if any(pool_terms.asks_approval for pool_terms in terms):
            stay = _staying_plan(part)
            part = _within_staying(part, stay)
            best, crowded = _best_plan(part)
            stay = replace(stay, bound=min(best.bound, stay.cost))
            staying |= {each.pool: pool_layout(part, each, stay, ()) for each in terms}
            if not _is_better(part, best, stay):
                best, crowded = stay, frozenset()
        else:
            best, crowded = _best_plan(part)
        pools |= {each.pool: pool_layout(part, each, best, crowded) for each in terms}
    return LayoutSolution(problem=problem, pools=pools, staying=staying)


def _part_of(problem: LayoutProblem, terms: Sequence[PoolTerms]) -> LayoutProblem:
    """Return the problem of these pools, with the services that fit on no others."""
    model_names = {
        name for pool_terms in terms for name in (pool_terms.pool, whole_gpu_model(pool_terms.pool))
    }
    return replace(
        problem,
        terms=tuple(terms),
        demands=tuple(
            demand
            for demand in problem.demands
            if {instance_type.gpu_model for instance_type in demand.service.throughput}
            <= model_names
        ),
        offers=tuple(offer for offer in problem.offers if offer.gpu_model.name in model_names),
        gpus=tuple(gpu for gpu in problem.gpus if gpu.gpu_model in model_names),
    )


def _best_plan(problem: LayoutProblem) -> tuple[LayoutPlan, frozenset[str]]:
    """Return the plan of all services, and the GPUs that it keeps as they are.

    Services that sleep get what the others leave, if their places would cost these anything.
    """
    plan, crowded = _plan_within_limits(problem)
    awake = tuple(demand for demand in problem.demands if not demand.is_asleep)
    if len(awake) == len(problem.demands):
        return plan, crowded
    plan_of_awake, crowded_by_awake = _plan_within_limits(replace(problem, demands=awake))
    counts, without = replicas_by_service(plan.gpus), replicas_by_service(plan_of_awake.gpus)
    names = [demand.service.name for demand in awake]
    if all(_serves_alike(demand, counts, without) for demand in awake) and not (
        set(plan.unmet) - set(plan_of_awake.unmet)
    ) & set(names):
        return plan, crowded
    asleep = [demand for demand in problem.demands if demand.is_asleep]
    gpus = staying_gpus(asleep, plan_of_awake.gpus, problem)
    return _with_gpus(problem, plan_of_awake, gpus), crowded_by_awake


def _serves_alike(
    demand: SliceDemand,
    counts: Mapping[str, Mapping[InstanceType, int]],
    others: Mapping[str, Mapping[InstanceType, int]],
) -> bool:
    """Return whether a service costs no more by these counts than by the others."""
    name = demand.service.name
    return demand.hourly_nanos(counts.get(name, {})) <= demand.hourly_nanos(others.get(name, {}))


def _plan_within_limits(problem: LayoutProblem) -> tuple[LayoutPlan, frozenset[str]]:
    """Return a plan by which no unchanged service costs more.

    A service on two instance types may get other counts of both that do: its replicas stay then.
    """
    plan, crowded = _plan_that_begins(problem)
    fixed = set[str]()
    while dearer := dearer_services(problem, plan.gpus) - fixed:
        fixed |= dearer
        plan, crowded = _plan_that_begins(_with_fixed(problem, fixed))
        plan = _with_gpus(problem, plan, _with_services_of(problem.gpus, plan.gpus, fixed))
    return plan, crowded


def dearer_services(problem: LayoutProblem, gpus: Sequence[FleetGpu]) -> set[str]:
    """Return the unchanged services that cost more on these GPUs than they do now."""
    counts = replicas_by_service(gpus)
    return {
        demand.service.name
        for demand in problem.demands
        if demand.max_hourly_nanos is not None
        and demand.hourly_nanos(counts.get(demand.service.name, {})) > demand.max_hourly_nanos
    }


def _with_fixed(problem: LayoutProblem, fixed: Collection[str]) -> LayoutProblem:
    """Return the problem in which the running replicas of these services stay."""
    running = replicas_by_service(problem.gpus)
    demands = []
    for demand in problem.demands:
        service, own = demand.service, running.get(demand.service.name, Counter())
        if service.name not in fixed:
            demands.append(demand)
        elif not meets_demand(service, own):
            missing = replace(
                service,
                demand=max(0.0, service.demand - served_demand(service, own)),
                min_replicas=max(0, service.min_replicas - own.total()),
                throughput={
                    each: speed
                    for each, speed in service.throughput.items()
                    if each in demand.assigned or each in demand.current
                },
                may_mix=False,
                max_types=1,
            )
            demands.append(replace(demand, service=missing, max_hourly_nanos=None))
    gpus = tuple(
        replace(
            gpu,
            slices=tuple(
                part._replace(service=None) if part.service in fixed else part
                for part in gpu.slices
            ),
            foreign_slices=tuple(
                part.placement
                for part in gpu.slices
                if part.service in fixed or part.placement in gpu.foreign_slices
            ),
        )
        for gpu in problem.gpus
    )
    return with_counted_gpus(replace(problem, demands=tuple(demands), gpus=gpus))


def _with_services_of(
    before: Sequence[FleetGpu], after: Sequence[FleetGpu], fixed: Collection[str]
) -> tuple[FleetGpu, ...]:
    """Return the later GPUs with the replicas of these services where they were."""
    old = {gpu.name: gpu for gpu in before}
    holders = {
        (gpu.name, part.placement): part.service
        for gpu in before
        for part in gpu.slices
        if part.service in fixed
    }
    return tuple(
        replace(
            gpu,
            slices=tuple(
                part._replace(service=holders.get((gpu.name, part.placement), part.service))
                for part in gpu.slices
            ),
            foreign_slices=old[gpu.name].foreign_slices if gpu.name in old else (),
        )
        for gpu in after
    )


def _with_gpus(problem: LayoutProblem, plan: LayoutPlan, gpus: tuple[FleetGpu, ...]) -> LayoutPlan:
    """Return the plan with other GPUs; its bound holds, unless these cost less."""
    other = _plan_of(problem, gpus)
    return replace(other, bound=min(plan.bound, other.cost))


def _plan_of(problem: LayoutProblem, gpus: tuple[FleetGpu, ...]) -> LayoutPlan:
    """Return a plan with these GPUs, which claims nothing of cheaper ones."""
    prices = {offer.gpu_model.name: offer.price for offer in problem.offers}
    cost = sum(prices[gpu.gpu_model] for gpu in gpus if gpu.paid)
    services = [demand.service for demand in problem.demands]
    return LayoutPlan(gpus=gpus, cost=cost, bound=0, unmet=unmet_services(services, gpus))


def _staying_plan(problem: LayoutProblem) -> LayoutPlan:
    """Return the plan in which every running replica stays; services that sleep come last."""
    gpus = problem.gpus
    for asleep in (False, True):
        demands = [demand for demand in problem.demands if demand.is_asleep is asleep]
        gpus = staying_gpus(demands, gpus, problem)
    return _plan_of(problem, gpus)


def _within_staying(problem: LayoutProblem, staying: LayoutPlan) -> LayoutProblem:
    """Return the problem in which nobody gets a dearer place than where everybody stays."""
    counts = replicas_by_service(staying.gpus)
    return replace(
        problem,
        demands=tuple(
            with_limit(demand, own, own)
            if demand.max_hourly_nanos is None
            and (own := counts.get(demand.service.name))
            and meets_demand(demand.service, own)
            else demand
            for demand in problem.demands
        ),
    )


def _is_better(problem: LayoutProblem, best: LayoutPlan, staying: LayoutPlan) -> bool:
    """Return whether a plan that moves somebody serves more than the other, or costs less."""
    served, served_by_staying = (_served(problem, plan) for plan in (best, staying))
    if served != served_by_staying:
        return served > served_by_staying
    return best.cost < staying.cost


def _served(problem: LayoutProblem, plan: LayoutPlan) -> float:
    """Return how many services the plan serves; one served in part counts as that part."""
    counts = replicas_by_service(plan.gpus)
    return round(
        sum(
            served_share(demand.service, counts.get(demand.service.name, {}))
            for demand in problem.demands
        ),
        6,
    )


def _plan_that_begins(problem: LayoutProblem) -> tuple[LayoutPlan, frozenset[str]]:
    """Return a plan and the GPUs that it keeps as they are, since they cannot be emptied.

    A plan of which no GPU can be emptied first would never begin: another one without them is made.
    """
    crowded = crowded_gpus(problem, grows=True)
    plan = _plan(lock(problem, crowded))
    layouts = {gpu.name: gpu.layout for gpu in problem.gpus}
    changed = {gpu.name for gpu in plan.gpus if gpu.layout != layouts.get(gpu.name)}
    blocked = crowded_gpus(problem, grows=False) if changed else crowded
    if changed and changed <= blocked:
        return _plan(lock(problem, blocked)), blocked
    return plan, crowded


def _plan(problem: LayoutProblem) -> LayoutPlan:
    return plan_layouts(
        [demand.service for demand in problem.demands],
        problem.offers,
        problem.gpus,
        moves_per_gpu=MOVES_PER_SAVED_GPU,
    )
