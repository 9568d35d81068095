"""`tessera top`: services by what they cost, pools by what is free."""

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence

from tessera.adapters.clock import now
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.cli.cluster import Json, reach
from tessera.cli.fleet import fleet_of, prometheus_of
from tessera.cli.text import table
from tessera.cli.told import Told
from tessera.cli.top_rows import NONE, Row, pools, ranked
from tessera.domain.snapshot import Ref
from tessera.ports import MetricsError


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
    rows = ranked(snapshot, fleet.planned(snapshot), tokens, namespace)
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


_HEAD = (
    *("SERVICE", "$/H", "REPLICAS", "TOKENS/S", "~MS/TOK", "MS/TOK", "QUEUE", "ACTIVITY"),
    *("$/MTOK", "WHERE", "WHY"),
)


def _lines(rows: Sequence[Row], found: Sequence[Json], notes: Sequence[str]) -> Iterator[str]:
    if rows:
        yield from table(_HEAD, [_cells(row) for row in rows])
    else:
        yield "no services"
    if found:
        yield ""
        columns = ("POOL", "PRODUCT", "TIER", "$/GPU/H", "NODES", "FREE DEVICES")
        yield from table(columns, [_pool_cells(pool) for pool in found])
    yield from ["", *(f"Note: {note}" for note in notes)] if notes else []


def _cells(row: Row) -> list[str]:
    tokens = NONE
    if row.measured is not None:
        tokens = f"{row.measured:.0f}"
    elif row.expected is not None:
        tokens = f"~{row.expected:.0f}"
    wanted = NONE if row.wanted is None else str(row.wanted)
    return [
        str(row.ref),
        NONE if row.per_hour is None else f"{row.per_hour} {row.currency}",
        f"{row.ready}/{wanted}",
        tokens,
        NONE if row.expected_gap_ms is None else f"{row.expected_gap_ms:.1f}",
        NONE if row.gap_ms is None else f"{row.gap_ms:.1f}",
        NONE if row.waiting is None else f"{row.waiting:.0f}",
        NONE if row.activity is None else f"{row.activity:.2f}",
        NONE if row.per_million is None else str(row.per_million),
        row.where,
        row.why,
    ]


def _pool_cells(pool: Json) -> list[str]:
    devices = ", ".join(
        f"{count['free']} of {count['all']} {name}" for name, count in pool["devices"].items()
    )
    price = f"{pool['perGPUHour']} {pool['currency']}" if pool["perGPUHour"] else NONE
    nodes = f"{pool['readyNodes']}/{pool['nodes']}"
    product, tier = pool["product"] or NONE, pool["tier"] or NONE
    return [pool["name"], product, tier, price, nodes, devices or NONE]


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
        "interTokenMs": _rounded(row.gap_ms),
        "expectedInterTokenMs": _rounded(row.expected_gap_ms),
        "waiting": row.waiting,
        "activity": row.activity,
        "perMillionTokens": None if row.per_million is None else str(row.per_million),
        "variant": None if row.where == NONE else row.where,
        "reason": row.why,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
