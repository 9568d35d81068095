"""What is shown of a service and of a pool at one moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tessera.api.inference_service import InferenceServiceStatus
from tessera.cli.cluster import Json
from tessera.domain.allotment import ServicePlan
from tessera.domain.explain.room import free_replicas
from tessera.domain.load import load_of
from tessera.domain.money import money, per_million_tokens
from tessera.domain.plan import Plan
from tessera.domain.pools import discover
from tessera.domain.snapshot import ObservedService, Ref, Snapshot

NONE = "-"
_BUSY = 1.0
"""Tokens a second from which on a measured price of a token says something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One service now. None is "not known"."""

    ref: Ref
    per_hour: Decimal | None
    currency: str
    ready: int
    wanted: int | None
    measured: float | None
    """Output tokens a second."""
    expected: float | None
    """The same, of all ready replicas at their planned load."""
    waiting: float | None
    activity: float | None
    gap_ms: float | None
    """Measured time between two tokens."""
    expected_gap_ms: float | None
    """The same, for the load that was seen."""
    per_million: Decimal | None
    """Of the measured tokens, else of the expected ones."""
    where: str
    why: str


def ranked(
    snapshot: Snapshot, plan: Plan | None, tokens: Mapping[Ref, float], namespace: str | None
) -> Sequence[Row]:
    """The services, of each currency what costs most first; without a plan some is not known."""
    allotments = plan.service_plans if plan is not None else {}
    rows = [
        _row(snapshot, service, allotments.get(service.ref), tokens.get(service.ref))
        for service in snapshot.services
        if namespace in (None, service.ref.namespace)
    ]
    return sorted(rows, key=lambda row: (row.currency, -(row.per_hour or 0), row.ref))


def _row(
    snapshot: Snapshot,
    service: ObservedService,
    allotment: ServicePlan | None,
    measured: float | None,
) -> Row:
    status = service.status
    speed = allotment.observed_speed(snapshot.readings) if allotment is not None else None
    pods = [pod for pod in snapshot.pods if pod.service == service.ref and pod.batch_run is None]
    load = load_of(pods, snapshot.readings, status.replicas, snapshot.at)
    cost, scaling = status.cost, status.scaling
    per_million = cost.per_million_tokens if cost else None
    if cost is not None and measured is not None and measured >= _BUSY:
        hourly = money(cost.per_hour, cost.currency)
        per_million = per_million_tokens(hourly, measured).rounded(4)
    return Row(
        ref=service.ref,
        per_hour=cost.per_hour if cost else None,
        currency=cost.currency if cost else "",
        ready=status.ready_replicas,
        wanted=scaling.desired_replicas if scaling else None,
        measured=measured,
        expected=float(status.variant.tokens_per_second * status.ready_replicas)
        if status.variant
        else None,
        waiting=load.waiting,
        activity=load.activity,
        gap_ms=speed.measured_mean * 1e3 if speed and speed.measured_mean else None,
        expected_gap_ms=speed.predicted.mean * 1e3 if speed and speed.predicted else None,
        per_million=per_million,
        where=status.variant.name if status.variant else NONE,
        why=_why(status),
    )


def _why(status: InferenceServiceStatus) -> str:
    """What keeps a service from answering, or from being whole; else why so many replicas."""
    for kind in ("Accepted", "Placed", "Ready"):
        for one in status.conditions:
            if one.type == kind and one.status == "False":
                return one.reason
    return status.scaling.reason if status.scaling is not None else NONE


def pools(snapshot: Snapshot) -> list[Json]:
    """Every pool with its devices: how many no engine of Tessera holds, of how many."""
    told = []
    for view in discover(snapshot.pools, snapshot.nodes, snapshot.at.date()):
        smallest = [
            one for one in view.offers if one.hardware.devices == 1 and not one.needs_repartition
        ]
        told.append(
            {
                "name": view.pool.name,
                "product": view.product,
                "tier": view.pool.spec.tier if view.pool.spec else None,
                "perGPUHour": str(view.price.per_gpu_hour) if view.price else None,
                "currency": view.price.currency if view.price else None,
                "readyNodes": view.ready_nodes,
                "nodes": view.nodes,
                "devices": {
                    one.hardware.profile or "whole": {
                        "free": free_replicas(snapshot, view, one),
                        "all": one.replicas,
                    }
                    for one in smallest
                },
            }
        )
    return told
