"""Build one immutable snapshot from the store, the readings and the probe results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias, TypeVar, cast

from tessera.domain.billing.bill import Bill
from tessera.domain.cache import KeyedCache, LastCallCache, StableTupleCache
from tessera.domain.observed.batches import Batch, BatchJob, PodRefusal, ProgressSample, VolumeClaim
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.node_layout import (
    MAX_HEARTBEAT_AGE,
    ObservedNodeLayout,
    silenced,
)
from tessera.domain.observed.snapshot import (
    Budget,
    InFlight,
    Node,
    ObservedService,
    Pod,
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
from tessera.domain.plan import PlanMemory
from tessera.reconcile.store import Store
from tessera.resources import api_resources

T = TypeVar("T")
Job: TypeAlias = BatchJob | ObservedModelJob


class _PodsOfPools:
    """Tessera's pods and all others on nodes of pools; the same tuple while none of them changed.

    The selectors of pools are matched once for each set of nodes and pools.
    """

    def __init__(self) -> None:
        self._nodes = LastCallCache(_nodes_of_pools)
        self._pods = LastCallCache(_pods_on)
        self._stable = StableTupleCache[Pod]()

    def __call__(
        self, pods: tuple[Pod, ...], pools: tuple[Pool, ...], nodes: tuple[Node, ...]
    ) -> tuple[Pod, ...]:
        return self._stable(self._pods(pods, self._nodes(pools, nodes)))


class _LayoutsWithAge:
    """The NodeLayouts, with the time since which an agent is silent; unchanged ones are the same.

    Heartbeats are no input of the plan: every agent renews its own each minute.
    """

    def __init__(self) -> None:
        self._silenced = KeyedCache[str, [ObservedNodeLayout, datetime], ObservedNodeLayout](
            silenced
        )
        self._stable = StableTupleCache[ObservedNodeLayout]()

    def __call__(self, store: Store, at: datetime) -> tuple[ObservedNodeLayout, ...]:
        silent = {
            key.name: observed.heartbeat
            for key, observed in store.all(api_resources.NODE_LAYOUTS).items()
            if observed.heartbeat and abs(at - observed.heartbeat) > MAX_HEARTBEAT_AGE
        }
        self._silenced.retain(silent)
        return self._stable(
            tuple(
                self._silenced(layout.name, layout, silent[layout.name])
                if layout.name in silent
                else layout
                for layout in plan_inputs(store, api_resources.NODE_LAYOUTS, ObservedNodeLayout)
            )
        )


@dataclass(slots=True)
class Observations:
    """Everything that the operator observed besides the objects; kept between cycles."""

    readings: Readings | None = None
    probe_results: dict[Ref, ProbeResult] = field(default_factory=dict)
    in_flight: dict[Ref, InFlight] = field(default_factory=dict)
    runner_answers: dict[str, ProgressSample] = field(default_factory=dict)
    pod_refusals: dict[str, PodRefusal] = field(default_factory=dict)
    fetch_progress: dict[Ref, FetchProgress] = field(default_factory=dict)
    memory: PlanMemory = field(default_factory=PlanMemory)
    """What the next plan needs to know of earlier cycles; every writer replaces its own fields."""
    bill: Bill = field(default_factory=Bill)
    resolutions: dict[RevisionQuery, Resolution] | None = None
    """The resolved revisions; None where no hub is queried."""
    monitored: bool = False
    """Whether the cluster has PodMonitors."""
    addresses_of: LastCallCache[[tuple[ServiceEndpoint, ...]], Mapping[Ref, str]] = field(
        default_factory=lambda: LastCallCache(_addresses)
    )
    services_of: LastCallCache[
        [tuple[ObservedService, ...]], tuple[tuple[ObservedService, ...], ...]
    ] = field(default_factory=lambda: LastCallCache(_split_deleting))
    pods_of: _PodsOfPools = field(default_factory=_PodsOfPools)
    layouts_of: _LayoutsWithAge = field(default_factory=_LayoutsWithAge)
    batch_jobs_of: LastCallCache[[tuple[Job, ...]], tuple[BatchJob, ...]] = field(
        default_factory=lambda: LastCallCache(_batch_jobs)
    )
    model_jobs_of: LastCallCache[[tuple[Job, ...]], tuple[ObservedModelJob, ...]] = field(
        default_factory=lambda: LastCallCache(_model_jobs)
    )


def _nodes_of_pools(pools: tuple[Pool, ...], nodes: tuple[Node, ...]) -> frozenset[str]:
    selectors = [pool.spec.node_selector.items() for pool in pools if pool.spec is not None]
    return frozenset(
        node.name
        for node in nodes
        if any(selector <= node.labels.items() for selector in selectors)
    )


def _pods_on(pods: tuple[Pod, ...], nodes: frozenset[str]) -> tuple[Pod, ...]:
    return tuple(pod for pod in pods if not pod.unmanaged or pod.node in nodes)


def _split_deleting(
    services: tuple[ObservedService, ...],
) -> tuple[tuple[ObservedService, ...], ...]:
    """Return the services to plan for, and those that are being deleted."""
    return (
        tuple(service for service in services if not service.deleting),
        tuple(service for service in services if service.deleting),
    )


def _batch_jobs(jobs: tuple[Job, ...]) -> tuple[BatchJob, ...]:
    return tuple(job for job in jobs if isinstance(job, BatchJob))


def _model_jobs(jobs: tuple[Job, ...]) -> tuple[ObservedModelJob, ...]:
    return tuple(job for job in jobs if isinstance(job, ObservedModelJob))


def _addresses(endpoints: tuple[ServiceEndpoint, ...]) -> Mapping[Ref, str]:
    return {endpoint.service: endpoint.address for endpoint in endpoints if endpoint.address}


def observe(store: Store, observations: Observations, at: datetime) -> Snapshot:
    """Return the fleet at one moment; unchanged parts are the same objects as before."""
    jobs = cast(tuple[Job, ...], store.plan_inputs(api_resources.JOBS))
    services, deleting_services = observations.services_of(
        plan_inputs(store, api_resources.INFERENCE_SERVICES, ObservedService)
    )
    pools = plan_inputs(store, api_resources.ACCELERATOR_POOLS, Pool)
    nodes = plan_inputs(store, api_resources.NODES, Node)
    return Snapshot(
        at=at,
        services=services,
        deleting_services=deleting_services,
        pools=pools,
        nodes=nodes,
        layouts=observations.layouts_of(store, at),
        pods=observations.pods_of(plan_inputs(store, api_resources.PODS, Pod), pools, nodes),
        workloads=plan_inputs(store, api_resources.DEPLOYMENTS, Workload),
        addresses=observations.addresses_of(
            plan_inputs(store, api_resources.SERVICES, ServiceEndpoint)
        ),
        readings=observations.readings,
        probe_results=dict(observations.probe_results),
        in_flight=dict(observations.in_flight),
        batches=plan_inputs(store, api_resources.BATCH_INFERENCES, Batch),
        batch_jobs=observations.batch_jobs_of(jobs),
        model_jobs=observations.model_jobs_of(jobs),
        fetch_progress=dict(observations.fetch_progress),
        claims={
            Ref(key.namespace, key.name): observed.plan_input
            for key, observed in store.all(api_resources.CLAIMS).items()
            if isinstance(observed.plan_input, VolumeClaim)
        },
        pod_refusals=dict(observations.pod_refusals),
        runner_answers=dict(observations.runner_answers),
        budgets=plan_inputs(store, api_resources.TENANT_BUDGETS, Budget),
        resolutions=None if observations.resolutions is None else dict(observations.resolutions),
    )


def plan_inputs(store: Store, kind: api_resources.ApiResource, read_as: type[T]) -> tuple[T, ...]:
    """Return what the plan reads of a kind."""
    del read_as  # only for the type checker: the parser of a kind always returns one type
    return cast(tuple[T, ...], store.plan_inputs(kind))
