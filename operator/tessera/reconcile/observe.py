"""Store, readings and answers -> one immutable snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias, TypeVar, cast

from tessera.api.recipe import Platform
from tessera.domain.autoscale import Memory
from tessera.domain.batch.facts import Asked, Batch, BatchJob, VolumeClaim
from tessera.domain.bill import Bill
from tessera.domain.budget.meter import Meter
from tessera.domain.kept import Last
from tessera.domain.model.facts import ErrandJob
from tessera.domain.model.reports import Fetched
from tessera.domain.repartition.facts import NodeLayout
from tessera.domain.repartition.question import Solved
from tessera.domain.snapshot import (
    PATIENCE,
    Answer,
    Budget,
    Front,
    InFlight,
    Node,
    Pod,
    Pool,
    Question,
    Readings,
    Ref,
    Resolution,
    Service,
    Snapshot,
    Watch,
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
Job: TypeAlias = BatchJob | ErrandJob


@dataclass(slots=True)
class Senses:
    """What reached the operator besides the objects; kept between turns."""

    readings: Readings | None = None
    answers: dict[Ref, Answer] = field(default_factory=dict)
    in_flight: dict[Ref, InFlight] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    fetched: dict[Ref, Fetched] = field(default_factory=dict)
    memory: dict[Ref, Memory] = field(default_factory=dict)
    watches: dict[Ref, Watch] = field(default_factory=dict)
    patience: timedelta = PATIENCE
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
    resolutions: dict[Question, Resolution] | None = None
    """None where no hub is asked."""
    solved: Solved | None = None
    """The last layouts that were planned."""
    unsolved: str | None = None
    """Why there are no newer ones."""
    monitored: bool = False
    """The cluster knows PodMonitors."""
    addresses_of: Last[[tuple[Front, ...]], Mapping[Ref, str]] = field(
        default_factory=lambda: Last(_addresses)
    )
    jobs_of: Last[[tuple[Job, ...]], tuple[BatchJob, ...]] = field(
        default_factory=lambda: Last(_jobs)
    )
    errands_of: Last[[tuple[Job, ...]], tuple[ErrandJob, ...]] = field(
        default_factory=lambda: Last(_errands)
    )


def _jobs(found: tuple[Job, ...]) -> tuple[BatchJob, ...]:
    return tuple(one for one in found if isinstance(one, BatchJob))


def _errands(found: tuple[Job, ...]) -> tuple[ErrandJob, ...]:
    return tuple(one for one in found if isinstance(one, ErrandJob))


def _addresses(fronts: tuple[Front, ...]) -> Mapping[Ref, str]:
    return {front.service: front.address for front in fronts if front.address}


def observe(store: Store, senses: Senses, at: datetime) -> Snapshot:
    """The fleet at one moment; what did not change is the same object as before."""
    jobs = cast(tuple[Job, ...], store.values(JOBS))
    return Snapshot(
        at=at,
        services=_values(store, INFERENCE_SERVICES, Service),
        pools=_values(store, ACCELERATOR_POOLS, Pool),
        nodes=_values(store, NODES, Node),
        layouts=_values(store, NODE_LAYOUTS, NodeLayout),
        pods=_values(store, PODS, Pod),
        workloads=_values(store, DEPLOYMENTS, Workload),
        addresses=senses.addresses_of(_values(store, SERVICES, Front)),
        readings=senses.readings,
        answers=dict(senses.answers),
        in_flight=dict(senses.in_flight),
        memory=dict(senses.memory),
        watches=dict(senses.watches),
        patience=senses.patience,
        batches=_values(store, BATCH_INFERENCES, Batch),
        jobs=senses.jobs_of(jobs),
        errands=senses.errands_of(jobs),
        fetched=dict(senses.fetched),
        claims={
            Ref(key.namespace, key.name): seen.value
            for key, seen in store.all(CLAIMS).items()
            if isinstance(seen.value, VolumeClaim)
        },
        asked=dict(senses.asked),
        refused=dict(senses.refused),
        budgets=_values(store, TENANT_BUDGETS, Budget),
        meters=dict(senses.meters),
        last_seen=dict(senses.last_seen),
        cutters=senses.cutters,
        held=dict(senses.held),
        unwritten=senses.unwritten,
        builder=senses.builder,
        platform=senses.platform,
        solved=senses.solved,
        unsolved=senses.unsolved,
        resolutions=None if senses.resolutions is None else dict(senses.resolutions),
    )


def _values(store: Store, kind: Kind, read_as: type[T]) -> tuple[T, ...]:
    del read_as  # what the border makes of a kind is always of one type
    return cast(tuple[T, ...], store.values(kind))
