"""The decision for the whole fleet: settings, one snapshot and the memory in, one plan out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.pool_reasons import PoolAccepted
from tessera.api.service_status import ModelStatus, ReplicaConflict
from tessera.api.template_version import PodTemplateVersion
from tessera.domain.aspects.aspect import Measurements, energy_of, measured_at
from tessera.domain.batch import batches
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import billing_ref
from tessera.domain.budget.actions import LimitState
from tessera.domain.budget.budgets import (
    BudgetView,
    acceptance,
    build_budget_views,
    by_namespace,
    closed_views,
    grants_in_force,
    meter_budget,
)
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.budget.meter import SpendMeter, SpendRecord
from tessera.domain.budget.metering import MeteringInputs, metering_inputs
from tessera.domain.budget.outside import lend_outside, lend_to_gateways
from tessera.domain.budget.state import BudgetState, Grant
from tessera.domain.config import Config
from tessera.domain.gateway.name_conflicts import NameConflicts, find_name_conflicts, name_verdicts
from tessera.domain.gateway.name_rights import name_rights
from tessera.domain.hardware.pools import PoolView, discover, pool_view
from tessera.domain.health.readiness import must_probe
from tessera.domain.health.stall import (
    EngineProgress,
    EngineWatch,
    Inspection,
    Suspect,
    inspect_engines,
)
from tessera.domain.incremental import FOREVER, Until, reused, reused_until
from tessera.domain.layout.demand import node_gpus_of, slice_demand
from tessera.domain.layout.shares import TenantShare, paid_replicas, tenant_shares
from tessera.domain.mig_backends.discovery import mig_node_of
from tessera.domain.observed.batches import Batch, BatchJob
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.placement.preemptions import with_preemptions
from tessera.domain.placement.provisioning import provisioned_view, with_provisioning
from tessera.domain.planning.budget_actions import charged, on_spot_alone, with_cause
from tessera.domain.planning.candidates import (
    candidate_device,
    candidate_devices,
    joined_plan,
    proposals_in_force,
    wanted_devices,
    with_candidates,
)
from tessera.domain.planning.funding import PaidService, budget_refusals, pool_refusal
from tessera.domain.planning.grants import claims_of, grant_replicas, grant_tenant
from tessera.domain.planning.inputs import KnownConflicts, ServicePlanInputs
from tessera.domain.planning.observations import with_observations
from tessera.domain.planning.service_decision import (
    held_plan,
    plan_service,
    set_aside_plan,
    with_surge_capacity,
)
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.planning.storage import StorageRoom, within_storage
from tessera.domain.planning.trials import (
    change_trial,
    plan_gates,
    planned_gate,
    with_trial,
)
from tessera.domain.quality.candidates import aimed, split_candidates, tried_jobs
from tessera.domain.quality.gates import GatePlan
from tessera.domain.quality.lost_revision import RevisionMissingError
from tessera.domain.quality.rollout_state import is_gated
from tessera.domain.quality.split_service import split_service
from tessera.domain.repartition.cycle import (
    FundedProposals,
    LayoutMemory,
    Repartitions,
    pool_actions,
    repartition,
)
from tessera.domain.repartition.displacement import displaced_pods
from tessera.domain.repartition.services import pool_service_of
from tessera.domain.rollout.drain import NO_DISPLACEMENT, Displacement
from tessera.domain.scaling.load import ServiceReadings
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service.device_shares import share_devices
from tessera.domain.service.preparation.claims import ClaimUsers, claim_users, recorded_claims
from tessera.domain.service.preparation.shape import with_known_shape, with_known_shapes
from tessera.domain.service.proposal import (
    Proposal,
    allocate,
    guaranteed_replicas,
    propose,
)
from tessera.domain.service.proposals import (
    free_for,
    free_in_pool,
    held_devices,
    propose_all,
    readings_of,
)
from tessera.domain.service.removed import RemovedWorkload, drain_removed, removed_workload
from tessera.domain.service.unclaimed import unclaimed_pods
from tessera.domain.service.variant_counts import Devices, reclaimed_pods
from tessera.domain.speed.measurements import measured_speed
from tessera.domain.steps import Step

_NO_INSPECTION = Inspection({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The desired state of the fleet."""

    pools: tuple[PoolView, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    closed: tuple[BudgetView, ...] = ()
    """Namespaces without a budget in force that get nothing new."""
    budgets_by_namespace: Mapping[str, BudgetView] = field(default_factory=dict)
    """The budget that decides in each namespace."""
    service_plans: Mapping[Ref, ServicePlan] = field(default_factory=dict)
    gates: Mapping[Ref, GatePlan] = field(default_factory=dict)
    """What QualityGates do and say."""
    batches: Mapping[Ref, BatchPlan] = field(default_factory=dict)
    outdated_batches: tuple[Batch, ...] = ()
    """Batches that ended longer ago than their `spec.ttlAfterFinished`; they are deleted."""
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
    def versions(self) -> Sequence[ServicePlan]:
        """The plans of all services, and of the versions that are tried beside them."""
        plans = self.service_plans.values()
        return [*plans, *(each.candidate for each in plans if each.candidate is not None)]

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
    def limits(self) -> Mapping[str, Sequence[LimitState]]:
        """What the limits of each budget were charged, for the next cycle."""
        return {view.budget.name: view.limits for view in self.budgets}


def _revision_in_force(
    service_plan: ServicePlan, last: ServiceRevision | None
) -> ServiceRevision | None:
    """Return the version in force of a gated service; the last one while it is set aside."""
    gated = service_plan.gated
    if gated is None:
        return last if is_gated(service_plan.service) else None
    return gated.state.stable


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMemory:
    """What earlier cycles decided or learned, and the next one needs."""

    scaling_history: Mapping[Ref, ScalingHistory] = field(default_factory=dict)
    replica_conflicts: Mapping[Ref, ReplicaConflict] = field(default_factory=dict)
    """Who else writes the replicas of which Deployments."""
    pins: Mapping[str, ModelStatus] = field(default_factory=dict)
    """Pinned revisions that are not in a status yet, by the services' uids."""
    withdrawn: Mapping[Ref, frozenset[str]] = field(default_factory=dict)
    """Digests of withdrawn templates, which are not in a status yet."""
    engine_progress: Mapping[Ref, EngineProgress] = field(default_factory=dict)
    """What the last cycle knew of each replica that takes requests."""
    pools: tuple[PoolView, ...] = ()
    """The pools with their devices and starts of nodes, which a status may not have yet."""
    meters: Mapping[str, SpendMeter] = field(default_factory=dict)
    """What the budgets' tenants have spent, by the budgets' names."""
    spend_records: Mapping[str, SpendRecord] = field(default_factory=dict)
    """The same without replicas, also of budgets that do not exist now."""
    limits: Mapping[str, Sequence[LimitState]] = field(default_factory=dict)
    """The last state of the limits of each budget, which a status may not have yet."""
    last_seen: Mapping[str, datetime] = field(default_factory=dict)
    """When pods, by namespace/name, were last seen that may have gone while no operator ran."""
    revisions: Mapping[Ref, ServiceRevision] = field(default_factory=dict)
    """The versions in force of gated services."""
    job_creation_errors: Mapping[str, str] = field(default_factory=dict)
    """What the API server said when it refused the Job of an attempt, by the batches' uids."""
    layouts: LayoutMemory = field(default_factory=LayoutMemory)

    def without_moments(self) -> "PlanMemory":
        """Return the memory without what a clock dated that was set back since.

        A new process has none of it either; spend has a rule of its own.
        """
        return replace(self, scaling_history={}, replica_conflicts={}, engine_progress={})

    def after(self, plan: Plan) -> "PlanMemory":
        """Return the memory with what a plan adds to it; the first plan uses up `last_seen`."""
        service_plans = plan.service_plans
        spend_records = {
            view.budget.name: SpendRecord(
                currency=view.spec.currency,
                meter=replace(view.meter, running={}, names_replicas=False),
            )
            for view in plan.budgets
            if view.spec is not None and view.meter.as_of is not None
        }
        return replace(
            self,
            scaling_history=plan.scaling_history,
            replica_conflicts={
                each.workload.ref: each.conflict
                for service_plan in service_plans.values()
                for each in service_plan.contested
            },
            revisions={
                ref: revision
                for ref, service_plan in service_plans.items()
                if (revision := _revision_in_force(service_plan, self.revisions.get(ref)))
            },
            pins={
                service_plan.service.uid: pin
                for service_plan in service_plans.values()
                if (pin := service_plan.pinned_revision.status) is not None
                and pin is not service_plan.service.status.model
            },
            withdrawn={
                ref: frozenset(digests)
                for ref, service_plan in service_plans.items()
                if (
                    digests := [
                        each.template.digest for each in service_plan.variants if each.is_withdrawn
                    ]
                )
            },
            engine_progress=plan.engine_progress,
            pools=plan.pools,
            meters=plan.meters,
            limits=plan.limits,
            spend_records={**self.spend_records, **spend_records},
            last_seen={},
            layouts=replace(self.layouts, repartitions=plan.repartitions),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ServiceContext:
    """What all services of a cycle are planned with: also the decisions across services."""

    config: Config
    snapshot: Snapshot
    memory: PlanMemory
    readings: Mapping[Ref, ServiceReadings]
    newest_template: PodTemplateVersion
    name_conflicts: NameConflicts
    views: Sequence[PoolView]
    grants: Mapping[Ref, Grant | Exception]
    shares: Mapping[Ref, TenantShare]
    storage: StorageRoom
    budget_states: Mapping[str, BudgetState]
    """What the budget that decides in each namespace has left."""
    allocated: Mapping[tuple[str, str], int]
    layouts: Repartitions
    watch: EngineWatch
    claim_users: ClaimUsers


class _PlannedService(NamedTuple):
    service_plan: ServicePlan
    inspection: Inspection = _NO_INSPECTION


def _services_to_probe(
    snapshot: Snapshot, service_plans: Mapping[Ref, ServicePlan]
) -> frozenset[Ref]:
    return frozenset(ref for ref, each in service_plans.items() if is_probe_due(snapshot, each))


def _budget_views(
    snapshot: Snapshot, metering: MeteringInputs, memory: PlanMemory
) -> tuple[BudgetView, ...]:
    return build_budget_views(
        snapshot,
        metering,
        memory.meters,
        memory.last_seen,
        memory.spend_records,
        memory.limits,
    )


def plan(config: Config, observed: Snapshot, memory: PlanMemory) -> Plan:
    """Decide for every service; the order of the input does not matter.

    Running services keep their hardware before new ones choose; beyond that names decide. A
    service whose planning raises is set aside, and the rest is planned.
    """
    fleet = split_candidates(
        observed, config.builder_version, config.demands_gate, memory.revisions
    )
    snapshot = replace(fleet.snapshot, services=with_known_shapes(fleet.snapshot.services))
    views = _offered_views(snapshot, memory.pools)
    metering = metering_inputs(observed.pods, views)
    budgets = _budget_views(snapshot, metering, memory)
    snapshot = replace(snapshot, batches=on_spot_alone(observed.batches, by_namespace(budgets)))
    closed = closed_views(snapshot, budgets, require_budget=config.require_budget)
    deciding = (*budgets, *closed)
    unclaimed = unclaimed_pods(
        snapshot.pods, snapshot.services, snapshot.batches, snapshot.nodes, views
    )
    allocated = Devices(unclaimed.allocated)
    forecast = _grant_forecast(snapshot, deciding, metering)
    proposals, readings = propose_all(
        snapshot, memory.scaling_history, views, allocated, forecast, gateways=config.gateways
    )
    services = snapshot.services[: len(observed.services)]
    users = claim_users(services, snapshot.batches, snapshot.claims)
    batch_proposals = batches.propose_batches(
        snapshot, views, allocated, forecast, memory.job_creation_errors, users
    )
    grants, deciding = grant_replicas(
        proposals, batch_proposals, unclaimed.by_namespace, deciding, memory.scaling_history
    )
    budgets, closed = deciding[: len(budgets)], deciding[len(budgets) :]
    budgets = lend_to_gateways(budgets, snapshot, has_providers=config.providers)
    deciding = (*budgets, *closed)
    # What is tried takes what others leave: no share of devices, and no layout is made for it.
    in_force = proposals_in_force(fleet, proposals)
    shares = tenant_shares(in_force, grants, deciding)
    shared = share_devices(in_force, grants, deciding, views, snapshot.pods)
    devices = candidate_devices(fleet, proposals, shared, allocated)
    funded = FundedProposals(in_force, shares)
    layouts = repartition(config, snapshot, memory.layouts, views, funded)
    storage = StorageRoom(deciding, snapshot)
    context = _ServiceContext(
        config=config,
        snapshot=snapshot,
        memory=memory,
        readings=readings,
        newest_template=_newest_template(config),
        name_conflicts=_name_conflicts(config, services, budgets),
        views=views,
        grants=devices.grants,
        shares=shares,
        storage=storage,
        budget_states={name: view.state for name, view in by_namespace(deciding).items()},
        allocated=allocated,
        layouts=layouts,
        watch=_engine_watch(config, snapshot, memory),
        claim_users=users,
    )
    all_plans, inspection = _plan_services(context, devices.proposals)
    gates = plan_gates(observed, with_candidates(fleet, devices, all_plans), storage)
    service_plans = _service_plans(gates.service_plans)
    return Plan(
        pools=views,
        budgets=budgets,
        closed=closed,
        budgets_by_namespace=by_namespace((*closed, *budgets)),
        service_plans=service_plans,
        gates=gates.gates,
        outdated_batches=batches.outdated_batches(snapshot),
        orphaned_jobs=batches.orphaned_jobs(snapshot),
        removed_workloads=drain_removed(snapshot),
        repartitions=layouts,
        services_to_probe=_services_to_probe(snapshot, service_plans),
        engine_progress=inspection.engine_progress,
        suspects=inspection.suspects,
        batches=_final_batches(observed, batch_proposals, grants, deciding, views, storage),
    )


def _final_batches(
    observed: Snapshot,
    proposals: Mapping[Ref, batches.ProposedBatch],
    grants: Mapping[Ref, Grant | Exception],
    budgets: Sequence[BudgetView],
    views: Sequence[PoolView],
    storage: StorageRoom,
) -> Mapping[Ref, BatchPlan]:
    """Return the plans of all batches, after what their budgets grant."""
    budget_views = by_namespace(budgets)
    as_written = {batch.ref: batch for batch in observed.batches}

    def refuse_jobs(batch: Batch) -> str | None:
        view = budget_views.get(batch.ref.namespace)
        if view is None or batch.spec is None:
            return None
        return pool_refusal(batch.ref.namespace, batch.spec.placement.pools, view.state, views)

    return {
        ref: charged(
            with_cause(
                batches.final_plan(
                    proposals[ref], grants.get(billing_ref(ref)), storage.refuse, refuse_jobs
                ),
                as_written[ref],
                budget_views,
            ),
            budget_views,
        )
        for ref in sorted(proposals)
    }


def _name_conflicts(
    config: Config, services: Sequence[ObservedService], budgets: Sequence[BudgetView]
) -> NameConflicts:
    if not config.gateways:
        return {}
    tenants = {view.budget.name: view.namespaces for view in budgets if view.spec is not None}
    rights = name_rights(grants_in_force(budgets))
    return find_name_conflicts(services, tenants, rights)


def _offered_views(snapshot: Snapshot, last_views: tuple[PoolView, ...]) -> tuple[PoolView, ...]:
    """Return the pools as they are offered, by what the last cycle knew of them."""
    discovered = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
    views = _with_last_good_views(discovered, last_views)
    views = with_provisioning(views, snapshot, last_views)
    return with_preemptions(views, snapshot, last_views)


def _with_last_good_views(
    views: tuple[PoolView, ...], last_views: tuple[PoolView, ...]
) -> tuple[PoolView, ...]:
    """Return every pool; one that is set aside goes on with the devices last discovered."""
    if all(view.accepted.reason is not PoolAccepted.PLANNER_ERROR for view in views):
        return views
    last_by_name = {view.pool.name: view for view in last_views}
    return tuple(
        replace(last, pool=replace(view.pool, spec=last.pool.spec), accepted=view.accepted)
        if view.accepted.reason is PoolAccepted.PLANNER_ERROR
        and (last := last_by_name.get(view.pool.name)) is not None
        else view
        for view in views
    )


@reused
def _service_plans(service_plans: Mapping[Ref, ServicePlan]) -> Mapping[Ref, ServicePlan]:
    """Return the plans, as the same object while none of them changed."""
    return service_plans


def _grant_forecast(
    snapshot: Snapshot, budgets: Sequence[BudgetView], metering: MeteringInputs
) -> GrantForecast:
    specs: dict[Ref, InferenceServiceSpec | None] = {}

    def min_replicas(ref: Ref) -> int:
        if not specs:  # only needed where something is added
            specs.update({service.ref: service.spec for service in snapshot.services})
        spec = specs.get(ref)
        return guaranteed_replicas(spec) if spec is not None else 0

    return GrantForecast(budgets, metering.pods, min_replicas)


@reused
def _newest_template(config: Config) -> PodTemplateVersion:
    return config.newest_template


def _plan_services(
    context: _ServiceContext, proposals: Mapping[Ref, Proposal]
) -> tuple[Mapping[Ref, ServicePlan], Inspection]:
    """Return the plans of all services, and what was seen of all of their engines."""
    planned = {ref: plan_one_service(context, ref, proposals[ref]) for ref in proposals}
    inspections = [service.inspection for service in planned.values()]
    progress = {pod: engine for each in inspections for pod, engine in each.engine_progress.items()}
    service_plans = {ref: service.service_plan for ref, service in planned.items()}
    return (
        within_storage(service_plans, context.storage),
        Inspection(progress, tuple(suspect for each in inspections for suspect in each.suspects)),
    )


def _engine_watch(config: Config, snapshot: Snapshot, memory: PlanMemory) -> EngineWatch:
    return EngineWatch(
        at=snapshot.at,
        readings=snapshot.readings.engines if snapshot.readings is not None else {},
        in_flight=snapshot.in_flight,
        progress=memory.engine_progress,
        stall_timeout=config.stall_timeout,
    )


def _plan_one_service(context: _ServiceContext, ref: Ref, proposal: Proposal) -> _PlannedService:
    snapshot, memory = context.snapshot, context.memory
    if isinstance(grant := context.grants.get(ref), RevisionMissingError):
        return _PlannedService(held_plan(proposal, grant))
    if isinstance(grant, Exception):
        raise grant
    displacement, surge_replicas = NO_DISPLACEMENT, 0
    if actions := context.layouts.actions:
        displacement = displaced_pods(actions.values(), proposal.objects.pods)
        surge_replicas = sum(pool.surge_replicas.get(ref, 0) for pool in actions.values())
    if lost := reclaimed_pods((each.choice for each in proposal.counts), proposal.objects):
        displacement = Displacement(displacement.displaced | lost, displacement.draining | lost)
    spec, conflicts = proposal.service.spec, context.name_conflicts
    budget_state = context.budget_states.get(ref.namespace)
    reported = {each.deployment: each for each in proposal.service.status.replica_conflicts}
    replica_conflicts = tuple(
        [
            memory.replica_conflicts.get(workload.ref) or reported.get(workload.ref.name)
            for workload in proposal.objects.workloads
        ]
    )
    with_capacity = with_surge_capacity(proposal, grant, context.allocated)
    refused = budget_refusals(
        ref,
        PaidService(
            proposal, grant, budget_state, with_capacity, context.shares.get(ref), context.views
        ),
    )
    inputs = ServicePlanInputs(
        proposal,
        grant,
        displacement,
        surge_replicas,
        context.newest_template,
        with_capacity,
        refused.surges,
        refused.start,
        refused.preparation,
        context.config.autoscalers,
        name_verdicts(ref, spec, conflicts) if spec is not None and ref in conflicts else (),
        KnownConflicts(
            replica_conflicts,
            snapshot.autoscalers.get(ref.namespace) if any(replica_conflicts) else None,
        ),
        memory.pins.get(proposal.service.uid),
        memory.withdrawn.get(ref, frozenset()),
        recorded_claims(snapshot, context.claim_users, proposal.service),
    )
    service_plan = plan_service(
        ref, inputs, at=snapshot.at, snapshot=snapshot, users=context.claim_users
    )
    inspection = _NO_INSPECTION
    if not context.watch.is_empty:
        watch = context.watch
        seen = [watch.seen(pod.ref) for pod in service_plan.pods]
        progress = watch.progress_of(service_plan.pods)
        inspection = inspect_service(
            ref, service_plan, seen, at=watch.at, memory=progress, watch=watch
        )
    measurements = Measurements(
        context.readings[ref], *measured_at(snapshot.readings), energy_of(ref, snapshot.readings)
    )
    service_plan = with_observations(
        ref, service_plan, inspection.stall, measurements, at=snapshot.at
    )
    return _PlannedService(service_plan, inspection)


plan_one_service = Step(
    _plan_one_service,
    lambda error, _context, _ref, proposal: _PlannedService(set_aside_plan(proposal, error)),
)


def _read_probe_due(snapshot: Snapshot, service_plan: ServicePlan) -> bool:
    """Return whether a completion is due; what is not placed serves with the replicas it has."""
    return must_probe(snapshot, service_plan.service, service_plan.pods)


is_probe_due = Step(_read_probe_due, lambda *_: False)


@reused_until
def inspect_service(
    _ref: Ref,
    service_plan: ServicePlan,
    _seen: Sequence[object],
    *,
    at: datetime,
    memory: Mapping[Ref, EngineProgress],
    watch: EngineWatch,
) -> Until[Inspection]:
    if not service_plan.placement.choices or service_plan.service.spec is None:
        return Until(_NO_INSPECTION, FOREVER, {})
    return inspect_engines(
        replace(watch, at=at, progress=memory),
        service_plan.service,
        {choice.variant: choice.fit for choice in service_plan.placement.choices},
        service_plan.pods,
        draining=service_plan.drain.draining,
        disruptions=service_plan.disruptions,
    )


# Whatever a plan does for one object, in this order.
STEPS: tuple[Step[..., Any], ...] = (
    split_service,
    aimed,
    tried_jobs,
    with_known_shape,
    pool_view,
    provisioned_view,
    acceptance,
    meter_budget,
    readings_of,
    held_devices,
    free_in_pool,
    free_for,
    propose,
    allocate,
    measured_speed,
    batches.is_outdated,
    batches.written_files,
    batches.proposed_batch,
    batches.allocate,
    grant_tenant,
    claims_of,
    lend_outside,
    share_devices,
    wanted_devices,
    candidate_device,
    mig_node_of,
    paid_replicas,
    slice_demand,
    node_gpus_of,
    pool_service_of,
    pool_actions,
    plan_one_service,
    joined_plan,
    change_trial,
    planned_gate,
    with_trial,
    is_probe_due,
    removed_workload,
    batches.final_plan,
)
