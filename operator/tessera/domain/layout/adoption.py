"""Which layout plan a pool carries out: its status has that plan, and the proposed next one."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, NodeTarget
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted, first_names
from tessera.domain.hardware.gpu_layouts import geometry, geometry_problem, place_geometry
from tessera.domain.hardware.pools import PoolView
from tessera.domain.layout.demand import gpu_name, planned_type
from tessera.domain.layout.problem import LayoutProblem, LayoutSolution, PoolLayout, PoolTerms
from tessera.domain.layout.solution import plan_name
from tessera.domain.mig.demand import (
    DEMAND_TOLERANCE,
    InstanceType,
    ServiceDemand,
    meets_demand,
    replicas_needed,
    served_demand,
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
    pool_layout = _usable_layout(solution, problem, view.pool.name, status.target)
    if pool_layout is None:
        verdict = None if status.target else _planning_verdict(view, nodes)
        return PlanAdoption(status=status, verdict=verdict)
    return _adopt_layout(view, spec.mig, problem, pool_layout, at)


def _usable_layout(
    solution: LayoutSolution | None, problem: LayoutProblem, pool: str, target: MigPlan | None
) -> PoolLayout | None:
    """Return the solution for the pool, unless it is older and no better than the present plan."""
    pool_layout = solution.pools.get(pool) if solution is not None else None
    if solution is None or pool_layout is None:
        return None
    if solution.problem is problem or solution.problem == problem:
        return pool_layout
    same_gpus = _gpus_of(solution.problem, pool) == _gpus_of(problem, pool)
    served = _served_services(pool_layout.plan, problem, pool)
    better = target is None or served > _served_services(target, problem, pool)
    return pool_layout if same_gpus and better else None


def _gpus_of(problem: LayoutProblem, pool: str) -> tuple[PoolTerms | None, frozenset[str]]:
    terms = next((pool_terms for pool_terms in problem.terms if pool_terms.pool == pool), None)
    return terms, frozenset(gpu.name for gpu in problem.gpus if gpu.gpu_model == pool)


def _served_services(plan: MigPlan, problem: LayoutProblem, pool: str) -> float:
    """Return how many services the plan serves; one that gets a part of its demand counts as that.

    A service that changed since the plan was made counts as far as its slices still serve it.
    """
    served = 0.0
    for service, replicas in _assigned_replicas(plan, problem, pool):
        shares = (
            count / replicas_needed(service, service.throughput[instance_type])
            for instance_type, count in replicas.items()
        )
        served += min(1.0, sum(shares))
    return served


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
    view: PoolView, mig: Mig, problem: LayoutProblem, pool_layout: PoolLayout, at: datetime
) -> PlanAdoption:
    status, unmet = view.pool.status.mig or MigStatus(), _unmet_demand(pool_layout)
    plan, target, proposed = pool_layout.plan, status.target, status.proposed

    def adoption(**changes: MigPlan | None) -> PlanAdoption:
        return PlanAdoption(status=status.model_copy(update=changes), verdict=unmet)

    # Equal names mean equal layouts and profiles: nothing to adopt.
    if target is not None and target.name == plan.name:
        return replace(adoption(proposed=None), crowded_gpus=pool_layout.crowded_gpus)
    sufficient = target is not None and _meets_demand(target, plan, problem, view.pool.name)
    if proposed is not None and not _goes_on(proposed, plan, target, mig):
        proposed = None
    # A rollout under way is finished first, unless its plan leaves demand unmet.
    if sufficient and status.units:
        return adoption(proposed=proposed)
    since = proposed.at if proposed is not None else at
    proposal = adoption(proposed=plan.model_copy(update={"at": since}))
    # With `propose`, a person decides whether the plan is worth it.
    stable = at - since >= STABILIZATION_WINDOW or mig.mode == "Propose"
    if sufficient and not stable:
        return proposal
    repartitioned_gpus = pool_layout.repartitioned_gpus
    # A plan that only changes which service runs on which slice repartitions nothing and needs no
    # approval.
    needs_approval = (
        mig.mode == "Propose" and repartitioned_gpus and view.pool.approved_plan != plan.name
    )
    if not needs_approval:
        return adoption(target=plan.model_copy(update={"at": at}), proposed=None)
    currency = f" {view.price.currency}" if view.price else ""
    verdict = StatusVerdict(
        LayoutReady.AWAITING_APPROVAL,
        f"plan {plan.name} repartitions {counted(repartitioned_gpus, 'GPU')}"
        f"{_deletions(problem, view.pool.name, plan)} and moves "
        f"{counted(plan.moves, 'replica')}, for {plan.per_hour_after:f}{currency} per "
        f"hour instead of {plan.per_hour_before:f}{currency}; approve it with: kubectl "
        f"annotate acceleratorpool {view.pool.name} {APPROVAL}={plan.name} --overwrite",
    )
    return replace(proposal, verdict=verdict)


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


def _goes_on(proposed: MigPlan, plan: MigPlan, target: MigPlan | None, mig: Mig) -> bool:
    """Return whether a proposal's time counts for the plan: both are one plan, or both save.

    Under a demand that fluctuates, each solution may differ from the one before, and yet each of
    them saves. An approval is of one plan.
    """
    if proposed.name == plan.name:
        return True
    if target is None or mig.mode == "Propose":
        return False
    return max(proposed.per_hour_after, plan.per_hour_after) < target.per_hour_after


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
        f"{shortfall.service} {shortfall.provided:.0f} of {shortfall.demanded:.0f} tokens/s"
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
