"""The decision for the whole fleet: settings, one snapshot and the memory in, one plan out."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import PoolAccepted
from tessera.domain.batch import batches
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import billing_ref
from tessera.domain.budget.budgets import (
    BudgetView,
    acceptance,
    build_budget_views,
    by_namespace,
    closed_views,
    meter_budget,
)
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.budget.meter import SpendMeter, SpendRecord
from tessera.domain.budget.metering import MeteringInputs, metering_inputs
from tessera.domain.budget.state import Grant
from tessera.domain.cache import LastCallCache
from tessera.domain.config import Config
from tessera.domain.grants import claims_of, grant_replicas, grant_tenant
from tessera.domain.hardware.pools import PoolView, discover, pool_view
from tessera.domain.health.readiness import must_probe, next_probe_at
from tessera.domain.health.stall import (
    EngineProgress,
    EngineWatch,
    Inspection,
    Suspect,
    inspect_engines,
)
from tessera.domain.layout.demand import node_gpus_of, slice_demand
from tessera.domain.layout.shares import paid_replicas
from tessera.domain.mig_backends.discovery import mig_node_of
from tessera.domain.observed.batches import BatchJob
from tessera.domain.observed.snapshot import (
    Node,
    ObservedService,
    Pod,
    Pool,
    ProbeResult,
    Ref,
    Snapshot,
    SpeedReading,
)
from tessera.domain.repartition.cycle import (
    FundedProposals,
    LayoutCache,
    LayoutMemory,
    Repartitions,
    pool_actions,
    repartition,
)
from tessera.domain.repartition.displacement import displaced_pods
from tessera.domain.repartition.services import pool_service_of
from tessera.domain.scaling.autoscale import ScalingHistory
from tessera.domain.scaling.drain import NO_DISPLACEMENT
from tessera.domain.service.device_shares import share_devices
from tessera.domain.service.model_files import claim_ref, with_known_shape
from tessera.domain.service.proposal import (
    AllocatedDevices,
    Proposal,
    allocate,
    guaranteed_replicas,
    min_replicas_of,
    pods_of_variant,
    propose,
)
from tessera.domain.service.proposals import (
    ProposalCache,
    history_of,
    propose_all,
    valid_until_of,
)
from tessera.domain.service.removed import RemovedWorkload, drain_removed, removed_workload
from tessera.domain.service.unclaimed import unclaimed_pods
from tessera.domain.service_plan import (
    ServicePlan,
    ServicePlanInputs,
    is_reusable,
    is_time_independent,
    plan_service,
    set_aside_plan,
    with_speed,
    with_surge_and_stall,
)
from tessera.domain.speed.measurements import measured_speed
from tessera.domain.steps import Step

_NO_INSPECTION = Inspection()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The desired state of the fleet."""

    pools: tuple[PoolView, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    closed: tuple[BudgetView, ...] = ()
    """Namespaces without a budget in force that get nothing new."""
    service_plans: Mapping[Ref, ServicePlan] = field(default_factory=dict)
    batches: Mapping[Ref, BatchPlan] = field(default_factory=dict)
    orphaned_jobs: tuple[BatchJob, ...] = ()
    """Jobs of batches that are not known; they are deleted if these do not exist."""
    removed_workloads: tuple[RemovedWorkload, ...] = ()
    """Deployments of deleted services, which are drained."""
    repartitions: Repartitions = field(default_factory=Repartitions)
    """Actions on the layouts of MIG pools."""
    engine_progress: Mapping[Ref, EngineProgress] = field(default_factory=dict)
    """Progress of the engines, for the next cycle."""
    services_to_probe: frozenset[Ref] = frozenset()
    """Services of which a completion is due."""
    suspects: tuple[Suspect, ...] = ()
    """Replicas to ask for their requests in flight."""

    @property
    def scaling_history(self) -> Mapping[Ref, ScalingHistory]:
        """The history that the autoscaler needs in the next cycle."""
        return {ref: service_plan.scale.history for ref, service_plan in self.service_plans.items()}

    @property
    def active_batches(self) -> Mapping[Ref, BatchPlan]:
        """Batches that have not ended, or whose pods have not."""
        return {ref: batch for ref, batch in self.batches.items() if batch.active}

    @property
    def meters(self) -> Mapping[str, SpendMeter]:
        """What each budget spent, for the next cycle."""
        return {
            view.budget.name: view.meter
            for view in self.budgets
            # What was never metered is restored from the record once a spec is in force.
            if view.meter.as_of is not None
        }

    @property
    def spend_records(self) -> Mapping[str, SpendRecord]:
        """The record of each budget's spend outside its object."""
        return {
            view.budget.name: SpendRecord(
                currency=view.spec.currency,
                meter=replace(view.meter, running={}, names_replicas=False),
            )
            for view in self.budgets
            if view.spec is not None and view.meter.as_of is not None
        }

    @property
    def budgets_by_namespace(self) -> Mapping[str, BudgetView]:
        """The budget that decides in each namespace."""
        return by_namespace((*self.closed, *self.budgets))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMemory:
    """What earlier cycles decided or learned, and the next one needs."""

    scaling_history: Mapping[Ref, ScalingHistory] = field(default_factory=dict)
    engine_progress: Mapping[Ref, EngineProgress] = field(default_factory=dict)
    """What the last cycle knew of each replica that takes requests."""
    meters: Mapping[str, SpendMeter] = field(default_factory=dict)
    """What the budgets' tenants have spent, by the budgets' names."""
    spend_records: Mapping[str, SpendRecord] = field(default_factory=dict)
    """The same without replicas, also of budgets that do not exist now."""
    last_seen: Mapping[str, datetime] = field(default_factory=dict)
    """When pods, by namespace/name, were last seen that may have gone while no operator ran."""
    job_creation_errors: Mapping[str, str] = field(default_factory=dict)
    """What the API server said when it refused the Job of an attempt, by the batches' uids."""
    layouts: LayoutMemory = field(default_factory=LayoutMemory)

    def after(self, plan: Plan) -> "PlanMemory":
        """Return the memory with what a plan adds to it; the first plan uses up `last_seen`."""
        return replace(
            self,
            scaling_history=plan.scaling_history,
            engine_progress=plan.engine_progress,
            meters=plan.meters,
            spend_records={**self.spend_records, **plan.spend_records},
            last_seen={},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FleetDecisions:
    """Decisions across services, taken before each is planned."""

    proposals: Mapping[Ref, Proposal]
    grants: Mapping[Ref, Grant | Exception]
    allocated: Mapping[tuple[str, str], int]
    layouts: Repartitions


@dataclass(frozen=True, slots=True, kw_only=True)
class _ServiceContext:
    """What all services of a cycle are planned with."""

    config: Config
    snapshot: Snapshot
    decisions: _FleetDecisions
    watch: EngineWatch
    cache: "PlanCache"
    same_allocation: bool
    same_speeds: bool


class _PlannedService(NamedTuple):
    service_plan: ServicePlan
    inputs: ServicePlanInputs | None
    """None for a service that was set aside, which the next cycle plans again."""
    inspection: Inspection = _NO_INSPECTION


@dataclass(frozen=True, slots=True)
class _ProbeDeferral:
    """A service without a due completion, the inputs of that, and until when."""

    service: ObservedService
    pods: tuple[Pod, ...]
    probe_result: ProbeResult | None
    until: datetime


class PlanCache:
    """Results of earlier cycles by the identity of their inputs.

    With it a cycle costs what changed, not the size of the fleet. The plan is the same without it,
    but for times in the autoscaler's history, which are updated when they matter.
    """

    def __init__(self) -> None:
        self.views = LastCallCache(self._discover)
        self.metering = LastCallCache(metering_inputs)
        self.unclaimed = LastCallCache(unclaimed_pods)
        self.proposals = ProposalCache()
        self.layouts = LayoutCache()
        self.batch_proposals: Mapping[Ref, batches.ProposedBatch] = {}
        self.service_plans: Mapping[Ref, ServicePlan] = {}
        self.inputs: dict[Ref, ServicePlanInputs] = {}
        self.probe_deferrals: dict[Ref, _ProbeDeferral] = {}
        self.allocated: Mapping[tuple[str, str], int] = {}
        self.speeds: Mapping[Ref, tuple[SpeedReading, ...]] | None = None
        self._day = date.min
        self._last_views: Mapping[str, PoolView] = {}

    def _discover(
        self, pools: Sequence[Pool], nodes: Sequence[Node], today: date
    ) -> tuple[PoolView, ...]:
        """Return every pool; one that is set aside goes on with the devices last discovered."""
        views = tuple(
            _last_good_view(view, self._last_views.get(view.pool.name))
            for view in discover(pools, nodes, today)
        )
        self._last_views = {view.pool.name: view for view in views}
        return views

    def date_of(self, at: datetime) -> date:
        """Return the date of a moment, the same object for a whole day."""
        if at.date() != self._day:
            self._day = at.date()
        return self._day


def _last_good_view(view: PoolView, last: PoolView | None) -> PoolView:
    if view.accepted.reason is not PoolAccepted.PLANNER_ERROR or last is None:
        return view
    return replace(last, pool=replace(view.pool, spec=last.pool.spec), accepted=view.accepted)


def plan(
    config: Config, observed: Snapshot, memory: PlanMemory, cache: PlanCache | None = None
) -> Plan:
    """Decide for every service; the order of the input does not matter.

    Running services keep their hardware before new ones choose; beyond that names decide. A
    service whose planning raises is set aside, and the rest is planned.
    """
    cache = cache or PlanCache()
    snapshot = replace(observed, services=cache.proposals.with_known_shapes(observed.services))
    views = cache.views(snapshot.pools, snapshot.nodes, cache.date_of(snapshot.at))
    metering = cache.metering(snapshot.pods, views)
    budgets = build_budget_views(
        snapshot, metering, memory.meters, memory.last_seen, memory.spend_records
    )
    closed = closed_views(snapshot, budgets, require_budget=config.require_budget)
    deciding = (*budgets, *closed)
    unclaimed = cache.unclaimed(
        snapshot.pods, snapshot.services, snapshot.batches, snapshot.nodes, views
    )
    allocated: AllocatedDevices = Counter(unclaimed.allocated)
    forecast = _grant_forecast(snapshot, deciding, metering)
    proposals = propose_all(
        snapshot, memory.scaling_history, views, allocated, forecast, cache.proposals
    )
    batch_proposals = batches.propose_batches(
        snapshot, views, allocated, forecast, memory.job_creation_errors, cache.batch_proposals
    )
    cache.batch_proposals = batch_proposals
    grants = grant_replicas(
        proposals, batch_proposals, unclaimed.by_namespace, deciding, memory.scaling_history
    )
    funded = FundedProposals(proposals, grants, deciding)
    shared = share_devices(proposals, grants, deciding, views, snapshot.pods)
    layouts = repartition(config, snapshot, memory.layouts, views, funded, cache.layouts)
    decisions = _FleetDecisions(
        proposals=proposals, grants=shared, allocated=allocated, layouts=layouts
    )
    cache.service_plans, inspections = _plan_services(config, snapshot, memory, decisions, cache)
    services_to_probe = (
        ref
        for ref, service_plan in cache.service_plans.items()
        if is_probe_due(snapshot, service_plan, cache)
    )
    return Plan(
        pools=views,
        budgets=budgets,
        closed=closed,
        service_plans=cache.service_plans,
        orphaned_jobs=batches.orphaned_jobs(snapshot),
        removed_workloads=drain_removed(snapshot),
        repartitions=layouts,
        services_to_probe=frozenset(services_to_probe),
        engine_progress={
            pod: progress
            for inspection in inspections
            for pod, progress in inspection.engine_progress.items()
        },
        suspects=tuple(suspect for inspection in inspections for suspect in inspection.suspects),
        batches={
            ref: batches.final_plan(batch_proposals[ref], grants.get(billing_ref(ref)))
            for ref in sorted(batch_proposals)
        },
    )


def _grant_forecast(
    snapshot: Snapshot, budgets: Sequence[BudgetView], metering: MeteringInputs
) -> GrantForecast:
    @functools.cache  # only needed where something is added
    def specs() -> Mapping[Ref, InferenceServiceSpec | None]:
        return {service.ref: service.spec for service in snapshot.services}

    def min_replicas(ref: Ref) -> int:
        spec = specs().get(ref)
        return guaranteed_replicas(spec) if spec is not None else 0

    return GrantForecast(budgets, metering.pods, min_replicas)


def _plan_services(
    config: Config,
    snapshot: Snapshot,
    memory: PlanMemory,
    decisions: _FleetDecisions,
    cache: PlanCache,
) -> tuple[Mapping[Ref, ServicePlan], Sequence[Inspection]]:
    """Plan every service; return the previous mapping if nothing in it changed."""
    allocated, readings, previous = decisions.allocated, snapshot.readings, cache.service_plans
    same_allocation, cache.allocated = cache.allocated == allocated, dict(allocated)
    speeds = readings.speeds if readings is not None and readings.speeds_at is not None else None
    same_speeds, cache.speeds = cache.speeds is speeds, speeds
    context = _ServiceContext(
        config=config,
        snapshot=snapshot,
        decisions=decisions,
        watch=EngineWatch(
            at=snapshot.at,
            readings=readings.engines if readings is not None else {},
            in_flight=snapshot.in_flight,
            progress=memory.engine_progress,
            stall_timeout=config.stall_timeout,
        ),
        cache=cache,
        same_allocation=same_allocation,
        same_speeds=same_speeds,
    )
    planned = {
        ref: plan_one_service(context, ref, proposal)
        for ref, proposal in decisions.proposals.items()
    }
    service_plans = {ref: service.service_plan for ref, service in planned.items()}
    inspections = [service.inspection for service in planned.values()]
    cache.inputs = {ref: service.inputs for ref, service in planned.items() if service.inputs}
    for ref in cache.probe_deferrals.keys() - planned.keys():
        del cache.probe_deferrals[ref]
    if len(service_plans) == len(previous) and all(
        previous.get(ref) is current for ref, current in service_plans.items()
    ):
        return previous, inspections
    return service_plans, inspections


def _plan_or_reuse(context: _ServiceContext, ref: Ref, proposal: Proposal) -> _PlannedService:
    """Plan one service; what is unchanged since the last cycle is reused."""
    snapshot, decisions, cache = context.snapshot, context.decisions, context.cache
    claim = snapshot.claims.get(claim_ref(ref)) if snapshot.claims else None
    actions = decisions.layouts.actions
    displacement = (
        displaced_pods(actions.values(), proposal.objects.pods) if actions else NO_DISPLACEMENT
    )
    surge_replicas = sum(pool_orders.surge_replicas.get(ref, 0) for pool_orders in actions.values())
    if isinstance(grant := decisions.grants.get(ref), Exception):
        raise grant
    inputs = ServicePlanInputs(proposal, grant, claim, displacement, surge_replicas)
    service_plan, previous_inputs = cache.service_plans.get(ref), cache.inputs.get(ref)
    reused = (
        service_plan is not None
        and previous_inputs is not None
        and service_plan.pinned_revision.query not in (snapshot.resolutions or {})
        and is_reusable(service_plan, inputs, previous_inputs)
    )
    if service_plan is None or not reused:
        service_plan = plan_service(context.config.newest_template, snapshot, inputs)
    inspection = _NO_INSPECTION
    if not context.watch.is_empty:
        inspection = _inspect_service(context.watch, service_plan)
    if not (
        reused and context.same_allocation and is_time_independent(service_plan, inspection.stall)
    ):
        service_plan = with_surge_and_stall(
            snapshot, service_plan, proposal, decisions.allocated, inspection.stall
        )
    if not (reused and context.same_speeds):
        service_plan = with_speed(snapshot.readings, service_plan)
    return _PlannedService(service_plan, inputs, inspection)


plan_one_service = Step(
    _plan_or_reuse,
    lambda error, _context, _ref, proposal: _PlannedService(set_aside_plan(proposal, error), None),
)


def _read_probe_due(snapshot: Snapshot, service_plan: ServicePlan, cache: PlanCache) -> bool:
    """Return whether a completion of a placed service is due."""
    if service_plan.choice is None:
        return False
    service, probe_result = (
        service_plan.service,
        snapshot.probe_results.get(service_plan.service.ref),
    )
    deferral = cache.probe_deferrals.get(service.ref)
    pods = service_plan.pods
    if (
        deferral is not None
        and deferral.service is service
        and deferral.pods is pods
        and deferral.probe_result is probe_result
        and snapshot.at < deferral.until
    ):
        return False
    if must_probe(snapshot, service, pods):
        cache.probe_deferrals.pop(service.ref, None)
        return True
    until = next_probe_at(snapshot, service)
    cache.probe_deferrals[service.ref] = _ProbeDeferral(service, pods, probe_result, until)
    return False


is_probe_due = Step(_read_probe_due, lambda *_: False)


def _inspect_service(watch: EngineWatch, service_plan: ServicePlan) -> Inspection:
    choice, spec = service_plan.choice, service_plan.service.spec
    if choice is None or spec is None:
        return _NO_INSPECTION
    return inspect_engines(
        watch,
        service_plan.service,
        choice.fit,
        pods_of_variant(service_plan.pods, choice),
        draining=service_plan.drain.draining,
        min_replicas=min(min_replicas_of(spec), service_plan.scale.replicas),
    )


# Whatever a plan does for one object, in this order.
STEPS: tuple[Step[..., Any], ...] = (
    with_known_shape,
    pool_view,
    acceptance,
    meter_budget,
    history_of,
    propose,
    valid_until_of,
    allocate,
    measured_speed,
    batches.written_files,
    batches.proposed_batch,
    batches.allocate,
    grant_tenant,
    claims_of,
    share_devices,
    mig_node_of,
    paid_replicas,
    slice_demand,
    node_gpus_of,
    pool_service_of,
    pool_actions,
    plan_one_service,
    is_probe_due,
    removed_workload,
    batches.final_plan,
)
