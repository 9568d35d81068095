"""`tessera top`: services by what they cost, pools by what is free."""

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tessera.adapters.clock import now
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.api.inference_service import InferenceServiceStatus
from tessera.cli.cluster import Json, reach
from tessera.cli.fleet import fleet_of, prometheus_of
from tessera.cli.text import table
from tessera.cli.told import Told
from tessera.domain.explain.hardware import free
from tessera.domain.load import load_of
from tessera.domain.money import money, per_million_tokens
from tessera.domain.pools import discover
from tessera.domain.snapshot import Ref, Service, Snapshot
from tessera.ports import MetricsError

_NONE = "-"
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
    per_million: Decimal | None
    """Of the measured tokens, else of the expected ones."""
    where: str
    why: str


def run(arguments: argparse.Namespace) -> Told:
    """Both tables."""
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> Told:
    url = prometheus_of(arguments)
    async with reach(arguments) as reader:
        fleet = await fleet_of(reader, url)
    tokens, problem = await _tokens(url)
    namespace = None if arguments.all_namespaces else arguments.namespace
    snapshot = fleet.snapshot
    rows = ranked(snapshot, tokens, namespace)
    notes = [*fleet.unread, *([problem] if problem else [])]
    if arguments.output == "json":
        fields = {"services": [_fields(row) for row in rows], "pools": pools(snapshot)}
        return Told(json.dumps({**fields, "notes": notes}, indent=2) + "\n")
    return Told("\n".join(_lines(rows, pools(snapshot), notes)) + "\n")


async def _tokens(url: str | None) -> tuple[Mapping[Ref, float], str]:
    if url is None:
        return {}, "queue, activity and measured tokens need --prometheus URL"
    try:
        return await PrometheusMetrics(url, now).tokens(), ""
    except MetricsError as error:
        return {}, str(error)


def ranked(snapshot: Snapshot, tokens: Mapping[Ref, float], namespace: str | None) -> Sequence[Row]:
    """The services, of each currency what costs most first."""
    rows = [
        _row(snapshot, service, tokens.get(service.ref))
        for service in snapshot.services
        if namespace in (None, service.ref.namespace)
    ]
    return sorted(rows, key=lambda row: (row.currency, -(row.per_hour or 0), row.ref))


def _row(snapshot: Snapshot, service: Service, measured: float | None) -> Row:
    status = service.status
    pods = [pod for pod in snapshot.pods if pod.service == service.ref and pod.run is None]
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
        per_million=per_million,
        where=status.variant.name if status.variant else _NONE,
        why=_why(status),
    )


def _why(status: InferenceServiceStatus) -> str:
    """What keeps a service from answering, or from being whole; else why so many replicas."""
    for kind in ("Accepted", "Placed", "Ready"):
        for one in status.conditions:
            if one.type == kind and one.status == "False":
                return one.reason
    return status.scaling.reason if status.scaling is not None else _NONE


def pools(snapshot: Snapshot) -> list[Json]:
    """Every pool with its devices: how many no engine of Tessera holds, of how many."""
    told = []
    for view in discover(snapshot.pools, snapshot.nodes, snapshot.at.date()):
        smallest = [one for one in view.offers if one.hardware.devices == 1]
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
                        "free": free(snapshot, view, one),
                        "all": one.replicas,
                    }
                    for one in smallest
                },
            }
        )
    return told


def _lines(rows: Sequence[Row], found: Sequence[Json], notes: Sequence[str]) -> Iterator[str]:
    head = ("SERVICE", "$/H", "REPLICAS", "TOKENS/S", "QUEUE", "ACTIVITY", "$/MTOK", "WHERE", "WHY")
    if rows:
        yield from table(head, [_cells(row) for row in rows])
    else:
        yield "no services"
    if found:
        yield ""
        columns = ("POOL", "PRODUCT", "TIER", "$/GPU/H", "NODES", "FREE DEVICES")
        yield from table(columns, [_pool_cells(pool) for pool in found])
    yield from ["", *(f"Note: {note}" for note in notes)] if notes else []


def _cells(row: Row) -> list[str]:
    tokens = _NONE
    if row.measured is not None:
        tokens = f"{row.measured:.0f}"
    elif row.expected is not None:
        tokens = f"~{row.expected:.0f}"
    wanted = _NONE if row.wanted is None else str(row.wanted)
    return [
        str(row.ref),
        _NONE if row.per_hour is None else f"{row.per_hour} {row.currency}",
        f"{row.ready}/{wanted}",
        tokens,
        _NONE if row.waiting is None else f"{row.waiting:.0f}",
        _NONE if row.activity is None else f"{row.activity:.2f}",
        _NONE if row.per_million is None else str(row.per_million),
        row.where,
        row.why,
    ]


def _pool_cells(pool: Json) -> list[str]:
    devices = ", ".join(
        f"{count['free']} of {count['all']} {name}" for name, count in pool["devices"].items()
    )
    price = f"{pool['perGPUHour']} {pool['currency']}" if pool["perGPUHour"] else _NONE
    nodes = f"{pool['readyNodes']}/{pool['nodes']}"
    product, tier = pool["product"] or _NONE, pool["tier"] or _NONE
    return [pool["name"], product, tier, price, nodes, devices or _NONE]


def _fields(row: Row) -> Json:
    return {
        "namespace": row.ref.namespace,
        "service": row.ref.name,
        "perHour": None if row.per_hour is None else str(row.per_hour),
        "currency": row.currency or None,
        "readyReplicas": row.ready,
        "wantedReplicas": row.wanted,
        "tokensPerSecond": row.measured,
        "expectedTokensPerSecond": row.expected,
        "waiting": row.waiting,
        "activity": row.activity,
        "perMillionTokens": None if row.per_million is None else str(row.per_million),
        "variant": None if row.where == _NONE else row.where,
        "reason": row.why,
    }
