"""Build one immutable snapshot from the store, the readings and the probe results."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias, TypeVar, cast

from tessera.api.api_resource import ApiResource
from tessera.domain.budget.meter import SpendRecord
from tessera.domain.incremental import Incremental, reused
from tessera.domain.kinds import kinds
from tessera.domain.kinds.kind import Process
from tessera.domain.layout.problem import LayoutSolution
from tessera.domain.observed.batches import Batch, BatchJob, PodRefusal, ProgressSample, VolumeClaim
from tessera.domain.observed.demand import GatewayReport, fleet_charges, fleet_demand
from tessera.domain.observed.energy import EnergyReadings
from tessera.domain.observed.gates import GateJob, ObservedGate, ServiceRevision
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.node_layout import (
    MAX_HEARTBEAT_AGE,
    ObservedNodeLayout,
    silenced,
)
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.setback import counted_as_now, pod_since_setback
from tessera.domain.observed.snapshot import (
    Budget,
    InFlight,
    ListedAutoscalers,
    Node,
    ObservedService,
    Pod,
    PodEvent,
    Pool,
    ProbeResult,
    Readings,
    Ref,
    Resolution,
    RevisionQuery,
    ServiceEndpoint,
    Snapshot,
    Workload,
)
from tessera.domain.observed.taints import with_taints_named
from tessera.domain.scaling.state import ScalingHistory
from tessera.reconcile.store import Store
from tessera.resources import api_resources

T = TypeVar("T")
Job: TypeAlias = BatchJob | ObservedModelJob | GateJob
ObservedT = TypeVar("ObservedT", ObservedService, Pool)
RefusedJobT = TypeVar("RefusedJobT", ObservedModelJob, GateJob)


@dataclass(slots=True)
class ProbeAnswers:
    """What engines, runners and hubs answered last; written by the Prober alone."""

    probe_results: dict[Ref, ProbeResult] = field(default_factory=dict)
    in_flight: dict[Ref, InFlight] = field(default_factory=dict)
    runner_answers: dict[str, ProgressSample] = field(default_factory=dict)
    silent_runners: dict[str, datetime] = field(default_factory=dict)
    pod_refusals: dict[str, PodRefusal] = field(default_factory=dict)
    pod_events: dict[str, tuple[PodEvent, ...]] = field(default_factory=dict)
    autoscalers: dict[str, ListedAutoscalers] = field(default_factory=dict)
    fetch_progress: dict[Ref, FetchProgress] = field(default_factory=dict)
    resolutions: dict[RevisionQuery, Resolution] | None = None
    """The resolved revisions; None where no hub is queried."""

    def forget_measurements(self) -> None:
        """Forget what is dated by a clock that was set back since; it is asked again."""
        for answers in (self.probe_results, self.in_flight, self.autoscalers):
            answers.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredHistory:
    """What Prometheus knows of the time before this process led."""

    scaling: Mapping[Ref, ScalingHistory] = field(default_factory=dict)
    spend_records: Mapping[str, SpendRecord] = field(default_factory=dict)
    last_seen: Mapping[str, datetime] = field(default_factory=dict)
    """When pods, by namespace/name, were last seen that went while no operator ran."""
    billed_until: datetime | None = None
    energy: EnergyReadings | None = None
    """Samples of GPUs at which the last leader's windows ended."""


@dataclass(frozen=True, slots=True)
class SolvedLayouts:
    """The last solution of a layout problem, and why there is no newer one."""

    solution: LayoutSolution | None = None
    error: str | None = None


@dataclass(slots=True)
class Observations:
    """Everything that the operator observed besides the objects; each part has one writer."""

    readings: Readings | None = None
    """Written by the MetricsReader."""
    history: RestoredHistory = field(default_factory=RestoredHistory)
    """Written by the MetricsReader before the first cycle."""
    answers: ProbeAnswers = field(default_factory=ProbeAnswers)
    layouts: SolvedLayouts = field(default_factory=SolvedLayouts)
    """Written by the BackgroundPlanner."""
    gateway_reports: Mapping[str, GatewayReport] = field(default_factory=dict)
    """The last report of each gateway, by its pod; written by the DemandReceiver."""
    monitored: bool = False
    """Whether the cluster has PodMonitors; written by the Reflector."""
    incremental: Incremental = field(default_factory=Incremental)
    set_back_at: datetime | None = None
    """The first cycle of the process, or after the clock was set back.

    Until nothing has a moment in the future; written by the FleetReconciler and `observe`.
    """


@reused
def _nodes_of_pools(pools: tuple[Pool, ...], nodes: tuple[Node, ...]) -> frozenset[str]:
    selectors = [pool.spec.node_selector.items() for pool in pools if pool.spec is not None]
    return frozenset(
        node.name
        for node in nodes
        if any(selector <= node.labels.items() for selector in selectors)
    )


@reused
def _pods_on(pods: tuple[Pod, ...], nodes: frozenset[str]) -> tuple[Pod, ...]:
    return tuple(pod for pod in pods if not pod.unmanaged or pod.node in nodes)


@reused
def _split_deleting(
    services: tuple[ObservedService, ...],
) -> tuple[tuple[ObservedService, ...], ...]:
    """Return the services to plan for, and those that are being deleted."""
    return (
        tuple(service for service in services if not service.deleting),
        tuple(service for service in services if service.deleting),
    )


@reused
def _batch_jobs(jobs: tuple[Job, ...]) -> tuple[BatchJob, ...]:
    return tuple(job for job in jobs if isinstance(job, BatchJob))


@reused
def _model_jobs(jobs: tuple[Job, ...]) -> tuple[ObservedModelJob, ...]:
    return tuple(job for job in jobs if isinstance(job, ObservedModelJob))


@reused
def _gate_jobs(jobs: tuple[Job, ...]) -> tuple[GateJob, ...]:
    return tuple(job for job in jobs if isinstance(job, GateJob))


def _with_refusals(
    jobs: tuple[RefusedJobT, ...], refusals: Mapping[str, PodRefusal]
) -> tuple[RefusedJobT, ...]:
    if not any(job.uid in refusals for job in jobs):
        return jobs
    return tuple(
        replace(job, refusal=refusals[job.uid].message) if job.uid in refusals else job
        for job in jobs
    )


@reused
def _addresses(endpoints: tuple[ServiceEndpoint, ...]) -> Mapping[Ref, str]:
    return {endpoint.service: endpoint.address for endpoint in endpoints if endpoint.address}


@reused
def _layouts_with_age(
    layouts: tuple[ObservedNodeLayout, ...], silent: Mapping[str, datetime]
) -> tuple[ObservedNodeLayout, ...]:
    return tuple(
        silenced(layout, silent[layout.name]) if layout.name in silent else layout
        for layout in layouts
    )


def observe(store: Store, observations: Observations, at: datetime) -> Snapshot:
    """Return the fleet at one moment; unchanged parts are the same objects as before."""
    snapshot = observations.incremental.run(_observe, store, observations, at)
    if (set_back_at := observations.set_back_at) is None:
        return snapshot
    services = tuple([_written_again(service, at) for service in snapshot.services])
    pools = tuple([_written_again(pool, at) for pool in snapshot.pools])
    pods = tuple([pod_since_setback(pod, at, set_back_at) for pod in snapshot.pods])
    if (services, pools, pods) == (snapshot.services, snapshot.pools, snapshot.pods):
        observations.set_back_at = None
        return snapshot
    return replace(snapshot, services=services, pools=pools, pods=pods)


def _written_again(observed: ObservedT, at: datetime) -> ObservedT:
    """Return an object whose status says nothing of the future, and is written again if it did."""
    status = counted_as_now(observed.status, at)
    if status is observed.status:
        return observed
    return replace(observed, status=status.model_copy(update={"observed_generation": 0}))


def _observe(store: Store, observations: Observations, at: datetime) -> Snapshot:
    answers = observations.answers
    jobs = cast(tuple[Job, ...], store.plan_inputs(api_resources.JOBS))
    services, deleting_services = _split_deleting(
        plan_inputs(store, kinds.INFERENCE_SERVICES, ObservedService)
    )
    pools = plan_inputs(store, kinds.ACCELERATOR_POOLS, Pool)
    nodes = plan_inputs(store, api_resources.NODES, Node)
    # Heartbeats are no input of the plan: every agent renews its own each minute.
    silent = {
        key.name: observed.heartbeat
        for key, observed in store.all(kinds.NODE_LAYOUTS).items()
        if observed.heartbeat and abs(at - observed.heartbeat) > MAX_HEARTBEAT_AGE
    }
    return Snapshot(
        at=at,
        services=services,
        deleting_services=deleting_services,
        pools=pools,
        nodes=nodes,
        layouts=_layouts_with_age(
            plan_inputs(store, kinds.NODE_LAYOUTS, ObservedNodeLayout), silent
        ),
        pods=with_taints_named(
            _pods_on(plan_inputs(store, api_resources.PODS, Pod), _nodes_of_pools(pools, nodes)),
            nodes,
            pools,
        ),
        workloads=plan_inputs(store, api_resources.DEPLOYMENTS, Workload),
        addresses=_addresses(plan_inputs(store, api_resources.SERVICES, ServiceEndpoint)),
        readings=observations.readings,
        demand=fleet_demand(observations.gateway_reports.values(), at),
        charges=fleet_charges(observations.gateway_reports.values(), at),
        probe_results=dict(answers.probe_results),
        in_flight=dict(answers.in_flight),
        batches=plan_inputs(store, kinds.BATCH_INFERENCES, Batch),
        batch_jobs=_batch_jobs(jobs),
        model_jobs=_with_refusals(_model_jobs(jobs), answers.pod_refusals),
        gates=plan_inputs(store, kinds.QUALITY_GATES, ObservedGate),
        revisions=plan_inputs(store, api_resources.CONTROLLER_REVISIONS, ServiceRevision),
        gate_jobs=_with_refusals(_gate_jobs(jobs), answers.pod_refusals),
        fetch_progress=dict(answers.fetch_progress),
        claims={
            Ref(key.namespace, key.name): observed.plan_input
            for key, observed in store.all(api_resources.CLAIMS).items()
            if isinstance(observed.plan_input, VolumeClaim)
        },
        pod_refusals=dict(answers.pod_refusals),
        pod_events=dict(answers.pod_events),
        autoscalers=dict(answers.autoscalers),
        runner_answers=dict(answers.runner_answers),
        silent_runners=dict(answers.silent_runners),
        budgets=plan_inputs(store, kinds.TENANT_BUDGETS, Budget),
        providers=plan_inputs(store, kinds.MODEL_PROVIDERS, ObservedProvider),
        others={
            kind.plural: plan_inputs(store, kind, kind.observed)
            for kind in kinds.USER_KINDS
            if Process.OPERATOR in kind.watched_by and not kind.field
        },
        resolutions=None if answers.resolutions is None else dict(answers.resolutions),
    )


def plan_inputs(store: Store, kind: ApiResource, read_as: type[T]) -> tuple[T, ...]:
    """Return what the plan reads of a kind."""
    del read_as  # only for the type checker: the parser of a kind always returns one type
    return cast(tuple[T, ...], store.plan_inputs(kind))
