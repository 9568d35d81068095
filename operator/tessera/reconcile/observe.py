"""Store, readings and answers -> one immutable snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias, TypeVar, cast

from tessera.api.recipe import Platform
from tessera.domain.billing.bill import Bill
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.cache import LastCallCache
from tessera.domain.layout.problem import LayoutSolution
from tessera.domain.mig_backends.nodes import ObservedNodeLayout
from tessera.domain.observed.batches import Batch, BatchJob, ProgressSample, VolumeClaim
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.snapshot import (
    STALL_TIMEOUT,
    Budget,
    EngineProgress,
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
from tessera.domain.scaling.autoscale import ScalingHistory
from tessera.reconcile.store import Store
from tessera.resources.api_resources import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    CLAIMS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    JOBS,
    NODE_LAYOUTS,
    NODES,
    PODS,
    SERVICES,
    TENANT_BUDGETS,
    ApiResource,
)

T = TypeVar("T")
Job: TypeAlias = BatchJob | ObservedModelJob


@dataclass(slots=True)
class Observations:
    """What reached the operator besides the objects; kept between turns."""

    readings: Readings | None = None
    probe_results: dict[Ref, ProbeResult] = field(default_factory=dict)
    in_flight: dict[Ref, InFlight] = field(default_factory=dict)
    runner_answers: dict[str, ProgressSample] = field(default_factory=dict)
    job_creation_errors: dict[str, str] = field(default_factory=dict)
    fetch_progress: dict[Ref, FetchProgress] = field(default_factory=dict)
    scaling_history: dict[Ref, ScalingHistory] = field(default_factory=dict)
    engine_progress: dict[Ref, EngineProgress] = field(default_factory=dict)
    stall_timeout: timedelta = STALL_TIMEOUT
    """How long an engine may hold requests without a step; given, not sensed."""
    meters: dict[str, SpendMeter] = field(default_factory=dict)
    last_seen: dict[str, datetime] = field(default_factory=dict)
    """Filled at the start, and used by the first turn alone."""
    bill: Bill = field(default_factory=Bill)
    mig_backends: frozenset[str] = frozenset()
    """Given, not sensed."""
    blocked_evictions: dict[Ref, str] = field(default_factory=dict)
    layout_write_errors: tuple[str, ...] = ()
    builder_version: int = 1
    platform: Platform = field(default_factory=Platform)
    resolutions: dict[RevisionQuery, Resolution] | None = None
    """None where no hub is asked."""
    layout_solution: LayoutSolution | None = None
    """The last layouts that were planned."""
    solver_error: str | None = None
    """Why there are no newer ones."""
    monitored: bool = False
    """The cluster knows PodMonitors."""
    addresses_of: LastCallCache[[tuple[ServiceEndpoint, ...]], Mapping[Ref, str]] = field(
        default_factory=lambda: LastCallCache(_addresses)
    )
    batch_jobs_of: LastCallCache[[tuple[Job, ...]], tuple[BatchJob, ...]] = field(
        default_factory=lambda: LastCallCache(_batch_jobs)
    )
    model_jobs_of: LastCallCache[[tuple[Job, ...]], tuple[ObservedModelJob, ...]] = field(
        default_factory=lambda: LastCallCache(_model_jobs)
    )


def _batch_jobs(jobs: tuple[Job, ...]) -> tuple[BatchJob, ...]:
    return tuple(job for job in jobs if isinstance(job, BatchJob))


def _model_jobs(jobs: tuple[Job, ...]) -> tuple[ObservedModelJob, ...]:
    return tuple(job for job in jobs if isinstance(job, ObservedModelJob))


def _addresses(endpoints: tuple[ServiceEndpoint, ...]) -> Mapping[Ref, str]:
    return {endpoint.service: endpoint.address for endpoint in endpoints if endpoint.address}


def observe(store: Store, observations: Observations, at: datetime) -> Snapshot:
    """The fleet at one moment; what did not change is the same object as before."""
    jobs = cast(tuple[Job, ...], store.values(JOBS))
    return Snapshot(
        at=at,
        services=_values(store, INFERENCE_SERVICES, ObservedService),
        pools=_values(store, ACCELERATOR_POOLS, Pool),
        nodes=_values(store, NODES, Node),
        layouts=_values(store, NODE_LAYOUTS, ObservedNodeLayout),
        pods=_values(store, PODS, Pod),
        workloads=_values(store, DEPLOYMENTS, Workload),
        addresses=observations.addresses_of(_values(store, SERVICES, ServiceEndpoint)),
        readings=observations.readings,
        probe_results=dict(observations.probe_results),
        in_flight=dict(observations.in_flight),
        scaling_history=dict(observations.scaling_history),
        engine_progress=dict(observations.engine_progress),
        stall_timeout=observations.stall_timeout,
        batches=_values(store, BATCH_INFERENCES, Batch),
        batch_jobs=observations.batch_jobs_of(jobs),
        model_jobs=observations.model_jobs_of(jobs),
        fetch_progress=dict(observations.fetch_progress),
        claims={
            Ref(key.namespace, key.name): observed.value
            for key, observed in store.all(CLAIMS).items()
            if isinstance(observed.value, VolumeClaim)
        },
        runner_answers=dict(observations.runner_answers),
        job_creation_errors=dict(observations.job_creation_errors),
        budgets=_values(store, TENANT_BUDGETS, Budget),
        meters=dict(observations.meters),
        last_seen=dict(observations.last_seen),
        mig_backends=observations.mig_backends,
        blocked_evictions=dict(observations.blocked_evictions),
        layout_write_errors=observations.layout_write_errors,
        builder_version=observations.builder_version,
        platform=observations.platform,
        layout_solution=observations.layout_solution,
        solver_error=observations.solver_error,
        resolutions=None if observations.resolutions is None else dict(observations.resolutions),
    )


def _values(store: Store, kind: ApiResource, read_as: type[T]) -> tuple[T, ...]:
    del read_as  # what the border makes of a kind is always of one type
    return cast(tuple[T, ...], store.values(kind))
