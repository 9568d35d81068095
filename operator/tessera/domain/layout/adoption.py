"""Which layout plan a pool carries out: its status has that plan, and the proposed next one."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, NodeTarget
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted, first_names
from tessera.domain.hardware.gpu_layouts import (
    Layout,
    geometry,
    geometry_problem,
    place_geometry,
)
from tessera.domain.hardware.pools import PoolView
from tessera.domain.layout.demand import gpu_name, planned_type
from tessera.domain.layout.pool_layout import plan_name
from tessera.domain.layout.problem import LayoutProblem, LayoutSolution, PoolLayout, PoolTerms
from tessera.domain.mig.demand import (
    DEMAND_TOLERANCE,
    InstanceType,
    ServiceDemand,
    meets_demand,
    served_demand,
    served_share,
)
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.mig_backends.format import format_slice
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.node_layout import APPROVAL

# A plan that only saves cost replaces a sufficient one after solutions saved for this long.
STABILIZATION_WINDOW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAdoption:
    """The status of a pool with the plan to carry out."""

    status: MigStatus
    verdict: StatusVerdict[LayoutReady] | None = None
    """What the plan lacks; None leaves the verdict to the rollout."""
    crowded_gpus: int = 0
    """GPUs whose layout stays as it is, since too few slices are free to empty them."""


def adopt(
    view: PoolView,
    solution: LayoutSolution | None,
    problem: LayoutProblem,
    nodes: Sequence[MigNode],
    capabilities: Capabilities,
    at: datetime,
) -> PlanAdoption:
    """Return which plan the pool carries out from now on.

    The solution of an older problem is adopted where it serves more of the present demand than the
    present plan: otherwise a service that changes faster than problems are solved would keep the
    pool from any plan. While units of a plan are under way, another plan replaces it only if it
    cannot meet the demand any more.
    """
    spec = view.pool.spec
    status = view.pool.status.mig or MigStatus()
    if spec is None or spec.mig is None:
        return PlanAdoption(status=MigStatus(), verdict=None)
    if spec.mig.mode == "Static":
        return _static_layout(view, spec.mig, status, nodes, capabilities, at)
    pool_layouts = _usable_layouts(solution, problem, view.pool.name, status.target)
    # Before an agent reports, its layouts are assumed: nobody has approved to make them so.
    is_assumed = (
        spec.mig.mode == "Propose"
        and status.target is None
        and capabilities.pinned_starts
        and any(node.gpus and not node.reports_pods for node in nodes)
    )
    if pool_layouts is None or is_assumed:
        verdict = None if status.target else _planning_verdict(view, nodes)
        return PlanAdoption(status=status, verdict=verdict)
    return _adopt_layout(view, spec.mig, problem, pool_layouts, at)


class _PoolLayouts(NamedTuple):
    best: PoolLayout
    staying: PoolLayout | None
    """The layout in which nobody moves, where a person approves the other one."""


def _usable_layouts(
    solution: LayoutSolution | None, problem: LayoutProblem, pool: str, target: MigPlan | None
) -> _PoolLayouts | None:
    """Return the solution for the pool, unless it is older and no better than the present plan."""
    best = solution.pools.get(pool) if solution is not None else None
    if solution is None or best is None:
        return None
    layouts = _PoolLayouts(best, solution.staying.get(pool))
    if solution.problem is problem or solution.problem == problem:
        return layouts
    if _gpus_of(solution.problem, pool) != _gpus_of(problem, pool):
        return None
    # What repartitioned nothing then may repartition something now, and nobody approved that.
    is_approved_alone = layouts.staying is not None
    if is_approved_alone and solution.problem.observed_layouts != problem.observed_layouts:
        return None
    served = _served_services(best.plan, problem, pool)
    better = target is None or served > _served_services(target, problem, pool)
    return layouts if better and not _raises_price(best.plan, problem, pool) else None


def _raises_price(plan: MigPlan, problem: LayoutProblem, pool: str) -> bool:
    """Return whether a service that is unchanged by now costs more by a plan."""
    limits = {demand.service.name: demand for demand in problem.demands}
    return any(
        (limit := limits[service.name].max_hourly_nanos) is not None
        and limits[service.name].hourly_nanos(replicas) > limit
        for service, replicas in _assigned_replicas(plan, problem, pool)
    )


def _gpus_of(problem: LayoutProblem, pool: str) -> tuple[PoolTerms | None, frozenset[str]]:
    terms = next((pool_terms for pool_terms in problem.terms if pool_terms.pool == pool), None)
    return terms, frozenset(gpu.name for gpu in problem.gpus if gpu.gpu_model == pool)


def _served_services(plan: MigPlan, problem: LayoutProblem, pool: str) -> float:
    """Return how many services the plan serves; one that gets a part of its demand counts as that.

    A service that changed since the plan was made counts as far as its slices still serve it.
    """
    assigned = _assigned_replicas(plan, problem, pool)
    return sum(served_share(service, replicas) for service, replicas in assigned)


def _assigned_replicas(
    plan: MigPlan, problem: LayoutProblem, pool: str
) -> Iterator[tuple[ServiceDemand, Mapping[InstanceType, int]]]:
    """Yield the services that need slices, with their replicas in the plan by instance type."""
    replicas = defaultdict[str, dict[InstanceType, int]](dict)
    for assignment in plan.services:
        instance_type = planned_type(pool, assignment.profile)
        replicas[assignment.service][instance_type] = assignment.replicas
    for demand in problem.demands:
        service, assigned = demand.service, replicas[demand.service.name]
        yield service, {each: assigned[each] for each in assigned if each in service.throughput}


def _planning_verdict(view: PoolView, nodes: Sequence[MigNode]) -> StatusVerdict[LayoutReady]:
    gpus = sum(len(node.gpus) for node in nodes)
    return StatusVerdict(
        LayoutReady.PLANNING,
        f"planning layouts for {counted(gpus, 'GPU')} in MIG mode on {counted(view.nodes, 'node')}",
    )


def _adopt_layout(
    view: PoolView, mig: Mig, problem: LayoutProblem, pool_layouts: _PoolLayouts, at: datetime
) -> PlanAdoption:
    status, pool_layout = view.pool.status.mig or MigStatus(), pool_layouts.best
    plan, target, proposed = pool_layout.plan, status.target, status.proposed
    unmet = _unmet_demand(pool_layout)

    def adoption(**changes: MigPlan | None) -> PlanAdoption:
        return PlanAdoption(status=status.model_copy(update=changes), verdict=unmet)

    # Equal names mean equal layouts and profiles: nothing to adopt.
    if target is not None and target.name == plan.name:
        return replace(adoption(proposed=None), crowded_gpus=pool_layout.crowded_gpus)
    sufficient = target is not None and _meets_demand(target, plan, problem, view.pool.name)
    if proposed is not None and not _goes_on(proposed, plan, target, mig, problem, view.pool.name):
        proposed = None
    # A rollout under way is finished first, unless its plan leaves demand unmet.
    if sufficient and status.units:
        return adoption(proposed=proposed)
    since = proposed.at if proposed is not None else at
    # With `Propose`, a person decides whether the plan is worth it.
    stable = at - since >= STABILIZATION_WINDOW or mig.mode == "Propose"
    if sufficient and not stable:
        return adoption(proposed=plan.model_copy(update={"at": since}))
    name = plan.name
    if mig.mode == "Propose" and (plan.moves or pool_layout.repartitioned_gpus):
        name = proposed.name if proposed is not None else name
        if view.pool.approved_plan != name:
            proposal = plan.model_copy(update={"at": since, "name": name})
            # A GPU that is being repartitioned gets its layout first.
            staying = pool_layouts.staying if not status.busy_nodes else None
            next_target = _staying_target(target, staying, problem, view.pool.name, at)
            verdict = _awaiting_approval(view, problem, pool_layout, proposal)
            return replace(adoption(target=next_target, proposed=proposal), verdict=verdict)
    return adoption(target=plan.model_copy(update={"at": at}), proposed=None)


def _staying_target(
    target: MigPlan | None,
    staying: PoolLayout | None,
    problem: LayoutProblem,
    pool: str,
    at: datetime,
) -> MigPlan | None:
    """Return the plan to carry out while another one waits for its approval.

    Where the present one serves less than a plan that moves nobody and repartitions nothing, it is
    that one.
    """
    if staying is None or (target is not None and target.name == staying.plan.name):
        return target
    served = _served_services(staying.plan, problem, pool)
    present = _served_services(target, problem, pool) if target is not None else 0.0
    return staying.plan.model_copy(update={"at": at}) if served > present else target


def _awaiting_approval(
    view: PoolView, problem: LayoutProblem, pool_layout: PoolLayout, plan: MigPlan
) -> StatusVerdict[LayoutReady]:
    currency, pool = f" {view.price.currency}" if view.price else "", view.pool.name
    repartitions = ""
    if gpus := pool_layout.repartitioned_gpus:
        deleted = _deletions(problem, pool, plan)
        repartitions = f"repartitions {counted(gpus, 'GPU')}{deleted} and "
    moved = [
        f"{change.service} {counted(change.moves, 'replica')}, {change.per_hour_before:.2f} -> "
        f"{change.per_hour_after:.2f}{currency} per hour"
        for change in plan.changes
        if change.moves
    ]
    of_services = f" ({first_names(moved, 5)})" if moved else ""
    return StatusVerdict(
        LayoutReady.AWAITING_APPROVAL,
        f"plan {plan.name} {repartitions}moves {counted(plan.moves, 'replica')}{of_services}, for "
        f"{plan.per_hour_after:f}{currency} per hour of GPUs instead of "
        f"{plan.per_hour_before:f}{currency}; until it is approved, replicas that run stay and new "
        f"ones take free slices; approve it with: kubectl annotate acceleratorpool {pool} "
        f"{APPROVAL}={plan.name} --overwrite",
    )


def _deletions(problem: LayoutProblem, pool: str, plan: MigPlan) -> str:
    """Return which slices a plan deletes, as a clause; empty for none."""
    deleted: Counter[str] = Counter()
    for node in plan.nodes:
        for gpu in node.gpus:
            layout = problem.observed_layouts.get(gpu_name(pool, node.node, gpu.gpu), ())
            planned = Counter(text.partition("@")[0] for text in gpu.slices)
            deleted += Counter(placement.profile for placement in layout) - planned
    slices = ", ".join(f"{count}x {profile}" for profile, count in sorted(deleted.items()))
    return f", deletes {slices}" if slices else ""


def _goes_on(
    proposed: MigPlan,
    plan: MigPlan,
    target: MigPlan | None,
    mig: Mig,
    problem: LayoutProblem,
    pool: str,
) -> bool:
    """Return whether a proposal's time counts for the plan: both are one plan, or both save.

    Under a demand that fluctuates, each solution may differ from the one before, and yet each of
    them saves. An approval is of what a plan moves and repartitions.
    """
    if proposed.name == plan.name:
        return True
    if mig.mode == "Propose":
        return _approved_content(proposed, problem, pool) == _approved_content(plan, problem, pool)
    if target is None:
        return False
    return max(proposed.per_hour_after, plan.per_hour_after) < target.per_hour_after


def _approved_content(plan: MigPlan, problem: LayoutProblem, pool: str) -> object:
    """Return what a person approves of a plan: the layouts that change, and who moves where."""
    layouts = [
        (node.node, gpu.gpu, gpu.slices)
        for node in plan.nodes
        for gpu in node.gpus
        if _changes_layout(
            gpu, problem.observed_layouts.get(gpu_name(pool, node.node, gpu.gpu), ())
        )
    ]
    moving = {change.service: change.moves for change in plan.changes if change.moves}
    places = [
        (each.service, each.profile, each.replicas)
        for each in plan.services
        if each.service in moving
    ]
    return layouts, moving, places


def _changes_layout(target: GpuTarget, layout: Layout) -> bool:
    planned = sorted(text.partition("@")[0] for text in target.slices)
    if planned != sorted(placement.profile for placement in layout):
        return True
    starts = {format_slice(placement, pinned=True) for placement in layout}
    return any("@" in text and text not in starts for text in target.slices)


def _meets_demand(target: MigPlan, plan: MigPlan, problem: LayoutProblem, pool: str) -> bool:
    """Return whether the target meets the demand of every service that the plan has in the pool.

    A service that other pools may serve too needs as much here as the plan has.
    """
    names = {assignment.service for assignment in plan.services}
    planned = {
        service.name: served_demand(service, replicas)
        for service, replicas in _assigned_replicas(plan, problem, pool)
    }
    return all(
        meets_demand(service, replicas)
        or (
            service.may_mix
            and served_demand(service, replicas) >= planned[service.name] * (1 - DEMAND_TOLERANCE)
        )
        for service, replicas in _assigned_replicas(target, problem, pool)
        if service.name in names
    )


def _unmet_demand(pool_layout: PoolLayout) -> StatusVerdict[LayoutReady] | None:
    if not pool_layout.shortfalls:
        return None
    shortfalls = [
        f"{shortfall.service} {shortfall.provided_replicas} of "
        f"{counted(shortfall.demanded_replicas, 'replica')}"
        if shortfall.provided >= shortfall.demanded
        else f"{shortfall.service} {shortfall.provided:.0f} of {shortfall.demanded:.0f} tokens/s"
        for shortfall in pool_layout.shortfalls
    ]
    return StatusVerdict(
        LayoutReady.INSUFFICIENT_CAPACITY,
        f"unmet demand of {counted(len(shortfalls), 'service')}: {first_names(shortfalls, 5)}; "
        "add nodes, or lower spec.scaling.minReplicas or maxReplicas of other services",
    )


def _static_layout(
    view: PoolView,
    mig: Mig,
    status: MigStatus,
    mig_nodes: Sequence[MigNode],
    capabilities: Capabilities,
    at: datetime,
) -> PlanAdoption:
    """Return a plan with the layout of `spec.mig.layout` for every GPU."""
    if not mig.layout:
        return PlanAdoption(
            status=MigStatus(),
            verdict=StatusVerdict(
                LayoutReady.NOT_MANAGED, "spec.mig.layout is empty, so slices stay as they are"
            ),
        )
    counts = tuple(sorted(mig.layout.items()))
    for mig_node in mig_nodes:
        if problem := geometry_problem(mig_node.gpu_model, mig.layout):
            is_unknown, message = problem
            reason = LayoutReady.UNKNOWN_PROFILE if is_unknown else LayoutReady.INVALID_LAYOUT
            return PlanAdoption(status=status, verdict=StatusVerdict(reason, message))
    nodes = tuple(
        NodeTarget(
            node=mig_node.name,
            gpus=tuple(
                GpuTarget(
                    gpu=gpu.index,
                    slices=tuple(
                        format_slice(placement, pinned=capabilities.pinned_starts)
                        for placement in (
                            # The right slices stay wherever they start.
                            gpu.layout
                            if geometry(gpu.layout) == counts
                            else place_geometry(mig_node.gpu_model, counts) or ()
                        )
                    ),
                )
                for gpu in sorted(mig_node.gpus, key=lambda gpu: gpu.index)
            ),
        )
        for mig_node in sorted(mig_nodes, key=lambda mig_node: mig_node.name)
        if mig_node.gpus
    )
    if status.target is not None and (status.target.nodes == nodes or status.units):
        return PlanAdoption(status=status.model_copy(update={"proposed": None}))
    gpus = sum(len(node.gpus) for node in nodes)
    price = view.price.per_gpu_hour * gpus if view.price else Decimal(0)
    plan = MigPlan(
        name=plan_name(nodes, ()),
        at=at,
        gpus_before=gpus,
        gpus_after=gpus,
        per_hour_before=price,
        per_hour_after=price,
        lower_bound=price,
        gap=Decimal(0),
        nodes=nodes,
    )
    return PlanAdoption(status=status.model_copy(update={"target": plan, "proposed": None}))
