"""Store, readings and answers -> one immutable snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias, TypeVar, cast

from tessera.api.recipe import Platform
from tessera.domain.autoscale import ScalingHistory
from tessera.domain.batch.facts import Asked, Batch, BatchJob, VolumeClaim
from tessera.domain.bill import Bill
from tessera.domain.budget.meter import Meter
from tessera.domain.kept import LastCallCache
from tessera.domain.model.facts import ObservedModelJob
from tessera.domain.model.reports import FetchProgress
from tessera.domain.repartition.facts import NodeLayout
from tessera.domain.repartition.question import Solved
from tessera.domain.snapshot import (
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
from tessera.reconcile.store import Store
from tessera.resources.kinds import (
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
    Kind,
)

T = TypeVar("T")
Job: TypeAlias = BatchJob | ObservedModelJob


@dataclass(slots=True)
class Senses:
    """What reached the operator besides the objects; kept between turns."""

    readings: Readings | None = None
    answers: dict[Ref, ProbeResult] = field(default_factory=dict)
    in_flight: dict[Ref, InFlight] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    fetched: dict[Ref, FetchProgress] = field(default_factory=dict)
    memory: dict[Ref, ScalingHistory] = field(default_factory=dict)
    watches: dict[Ref, EngineProgress] = field(default_factory=dict)
    patience: timedelta = STALL_TIMEOUT
    """How long an engine may hold requests without a step; given, not sensed."""
    meters: dict[str, Meter] = field(default_factory=dict)
    last_seen: dict[str, datetime] = field(default_factory=dict)
    """Filled at the start, and used by the first turn alone."""
    bill: Bill = field(default_factory=Bill)
    cutters: frozenset[str] = frozenset()
    """Given, not sensed."""
    held: dict[Ref, str] = field(default_factory=dict)
    unwritten: tuple[str, ...] = ()
    builder: int = 1
    platform: Platform = field(default_factory=Platform)
    resolutions: dict[RevisionQuery, Resolution] | None = None
    """None where no hub is asked."""
    solved: Solved | None = None
    """The last layouts that were planned."""
    unsolved: str | None = None
    """Why there are no newer ones."""
    monitored: bool = False
    """The cluster knows PodMonitors."""
    addresses_of: LastCallCache[[tuple[ServiceEndpoint, ...]], Mapping[Ref, str]] = field(
        default_factory=lambda: LastCallCache(_addresses)
    )
    jobs_of: LastCallCache[[tuple[Job, ...]], tuple[BatchJob, ...]] = field(
        default_factory=lambda: LastCallCache(_jobs)
    )
    errands_of: LastCallCache[[tuple[Job, ...]], tuple[ObservedModelJob, ...]] = field(
        default_factory=lambda: LastCallCache(_errands)
    )


def _jobs(found: tuple[Job, ...]) -> tuple[BatchJob, ...]:
    return tuple(one for one in found if isinstance(one, BatchJob))


def _errands(found: tuple[Job, ...]) -> tuple[ObservedModelJob, ...]:
    return tuple(one for one in found if isinstance(one, ObservedModelJob))


def _addresses(fronts: tuple[ServiceEndpoint, ...]) -> Mapping[Ref, str]:
    return {front.service: front.address for front in fronts if front.address}


def observe(store: Store, senses: Senses, at: datetime) -> Snapshot:
    """The fleet at one moment; what did not change is the same object as before."""
    jobs = cast(tuple[Job, ...], store.values(JOBS))
    return Snapshot(
        at=at,
        services=_values(store, INFERENCE_SERVICES, ObservedService),
        pools=_values(store, ACCELERATOR_POOLS, Pool),
        nodes=_values(store, NODES, Node),
        layouts=_values(store, NODE_LAYOUTS, NodeLayout),
        pods=_values(store, PODS, Pod),
        workloads=_values(store, DEPLOYMENTS, Workload),
        addresses=senses.addresses_of(_values(store, SERVICES, ServiceEndpoint)),
        readings=senses.readings,
        probe_results=dict(senses.answers),
        in_flight=dict(senses.in_flight),
        scaling_history=dict(senses.memory),
        engine_progress=dict(senses.watches),
        stall_timeout=senses.patience,
        batches=_values(store, BATCH_INFERENCES, Batch),
        batch_jobs=senses.jobs_of(jobs),
        model_jobs=senses.errands_of(jobs),
        fetch_progress=dict(senses.fetched),
        claims={
            Ref(key.namespace, key.name): seen.value
            for key, seen in store.all(CLAIMS).items()
            if isinstance(seen.value, VolumeClaim)
        },
        runner_answers=dict(senses.asked),
        job_creation_errors=dict(senses.refused),
        budgets=_values(store, TENANT_BUDGETS, Budget),
        meters=dict(senses.meters),
        last_seen=dict(senses.last_seen),
        mig_backends=senses.cutters,
        blocked_evictions=dict(senses.held),
        layout_write_errors=senses.unwritten,
        builder_version=senses.builder,
        platform=senses.platform,
        layout_solution=senses.solved,
        solver_error=senses.unsolved,
        resolutions=None if senses.resolutions is None else dict(senses.resolutions),
    )


def _values(store: Store, kind: Kind, read_as: type[T]) -> tuple[T, ...]:
    del read_as  # what the border makes of a kind is always of one type
    return cast(tuple[T, ...], store.values(kind))
