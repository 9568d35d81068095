"""Store, readings and answers -> one immutable snapshot."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from tessera.api.recipe import Platform
from tessera.domain.autoscale import Memory
from tessera.domain.batch.facts import Asked, Batch, BatchJob, VolumeClaim
from tessera.domain.bill import Bill
from tessera.domain.budget.meter import Meter
from tessera.domain.model.facts import ErrandJob
from tessera.domain.model.reports import Fetched
from tessera.domain.snapshot import (
    Answer,
    Budget,
    Front,
    InFlight,
    Node,
    Pod,
    Pool,
    Readings,
    Ref,
    Service,
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
    NODES,
    PODS,
    SERVICES,
    TENANT_BUDGETS,
    Kind,
)

T = TypeVar("T")


@dataclass(slots=True)
class Senses:
    """What reached the operator besides the objects; kept between turns."""

    platform: Platform = field(default_factory=Platform)
    readings: Readings | None = None
    answers: dict[Ref, Answer] = field(default_factory=dict)
    in_flight: dict[Ref, InFlight] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    fetched: dict[Ref, Fetched] = field(default_factory=dict)
    memory: dict[Ref, Memory] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    last_seen: dict[str, datetime] = field(default_factory=dict)
    """Filled at the start, and used by the first turn alone."""
    bill: Bill = field(default_factory=Bill)
    monitored: bool = False
    """The cluster knows PodMonitors."""


def observe(store: Store, senses: Senses, at: datetime) -> Snapshot:
    """The fleet at one moment."""
    return Snapshot(
        at=at,
        platform=senses.platform,
        services=tuple(_values(store, INFERENCE_SERVICES, Service)),
        pools=tuple(_values(store, ACCELERATOR_POOLS, Pool)),
        nodes=tuple(_values(store, NODES, Node)),
        pods=tuple(_values(store, PODS, Pod)),
        workloads=tuple(_values(store, DEPLOYMENTS, Workload)),
        addresses={
            front.service: front.address
            for front in _values(store, SERVICES, Front)
            if front.address
        },
        readings=senses.readings,
        answers=dict(senses.answers),
        in_flight=dict(senses.in_flight),
        memory=dict(senses.memory),
        batches=tuple(_values(store, BATCH_INFERENCES, Batch)),
        jobs=tuple(_values(store, JOBS, BatchJob)),
        errands=tuple(_values(store, JOBS, ErrandJob)),
        fetched=dict(senses.fetched),
        claims={
            Ref(key.namespace, key.name): seen.value
            for key, seen in store.all(CLAIMS).items()
            if isinstance(seen.value, VolumeClaim)
        },
        asked=dict(senses.asked),
        refused=dict(senses.refused),
        budgets=tuple(_values(store, TENANT_BUDGETS, Budget)),
        meters=dict(senses.meters),
        last_seen=dict(senses.last_seen),
    )


def _values(store: Store, kind: Kind, wanted: type[T]) -> Iterator[T]:
    for seen in store.all(kind).values():
        if isinstance(seen.value, wanted):
            yield seen.value
