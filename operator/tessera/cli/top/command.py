"""`tessera top`: services by cost, routes, pools by free devices; requests at a gateway."""

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

from tessera.api.text import counted, first_names
from tessera.cli.cluster import Json, Reader, cluster_command
from tessera.cli.fleet import open_prometheus, prometheus_url, read_fleet, read_routes
from tessera.cli.output import Output
from tessera.cli.text import cell, table
from tessera.cli.top import requests
from tessera.cli.top.rows import (
    UNKNOWN_CELL,
    TopRoute,
    TopRow,
    pools_json,
    route_rows,
    service_rows,
)
from tessera.domain.observed.snapshot import Ref
from tessera.ports import MetricsError


def run(arguments: SimpleNamespace) -> Output:
    """Print the tables of a view."""
    return requests.run(arguments) if arguments.view == "requests" else _services(arguments)


@cluster_command
async def _services(reader: Reader, arguments: SimpleNamespace) -> Output:
    url = prometheus_url(arguments)
    fleet = await read_fleet(reader, url)
    token_rates, cached_shares, problem = await _read_tokens(url)
    # Without a Prometheus the note on tokens says enough.
    uses = {} if problem else (await read_routes(url))[0]
    namespace = None if arguments.all_namespaces else arguments.namespace
    snapshot = fleet.snapshot
    plan = fleet.compute_plan(snapshot)
    rows = service_rows(snapshot, plan, token_rates, namespace, cached_shares)
    notes = [*fleet.read_errors, *([problem] if problem else [])]
    pools = pools_json(snapshot)
    unmanaged = [
        f"AcceleratorPool/{pool['name']}: devices are held by "
        f"{counted(len(pods), 'pod')} that Tessera did not create: {first_names(pods, 5)}"
        for pool in pools
        if (pods := pool["unmanagedPods"])
    ]
    services = [row.model_dump(mode="json", by_alias=True) for row in rows]
    routes = route_rows(uses, namespace)
    route_bodies = [route.model_dump(mode="json", by_alias=True) for route in routes]
    body = {"services": services, "routes": route_bodies, "pools": pools, "notes": notes}
    lines = report_lines(rows, routes, pools, [*notes, *unmanaged])
    return Output.of(arguments.output, lines, lambda: body)


async def _read_tokens(
    url: str | None,
) -> tuple[Mapping[Ref, float], Mapping[Ref, float], str]:
    """Return output tokens per second, cached shares of the input, and why they are missing."""
    if url is None:
        return {}, {}, "queue, activity and measured tokens need --prometheus URL"
    metrics = open_prometheus(url)
    try:
        return (*await metrics.tokens(), "")
    except MetricsError as error:
        return {}, {}, str(error)


_HEADERS = (
    *("SERVICE", "$/H", "REPLICAS", "TOKENS/S", "CACHED", "ITL-PREDICTED", "ITL", "SLO-NOW"),
    *("WAITING", "ACTIVITY", "$/MTOK", "J/TOKEN", "INSTANCE", "REASON"),
)


def report_lines(
    rows: Sequence[TopRow],
    routes: Sequence[TopRoute],
    pool_rows: Sequence[Json],
    notes: Sequence[str],
) -> Iterator[str]:
    """Yield the tables, and what is missing in them."""
    if rows:
        yield from table(_HEADERS, [_service_cells(row) for row in rows])
    else:
        yield "no services"
    if routes:
        yield ""
        columns = ("ROUTE", "TARGETS", "FALLBACK", "$/MTOK", "AT THE LAST TARGET", "SAVED")
        yield from table(columns, [_route_cells(route) for route in routes])
    if pool_rows:
        yield ""
        columns = ("POOL", "PRODUCT", "TIER", "$/GPU/H", "NODES", "FREE DEVICES")
        yield from table(columns, [_pool_cells(pool) for pool in pool_rows])
    yield from ["", *(f"Note: {note}" for note in notes)] if notes else []


def _service_cells(row: TopRow) -> list[str]:
    tokens = cell(row.predicted_tokens_per_second, "~{:.0f}")
    if row.tokens_per_second is not None:
        tokens = f"{row.tokens_per_second:.0f}"
    return [
        str(row.ref),
        UNKNOWN_CELL if row.per_hour is None else f"{row.per_hour} {row.currency or ''}",
        f"{row.ready_replicas}/{cell(row.desired_replicas)}",
        tokens,
        cell(row.cached_share, "{:.0%}"),
        cell(row.predicted_itl_ms, "{:.1f}"),
        cell(row.itl_ms, "{:.1f}"),
        row.slo or UNKNOWN_CELL,
        cell(row.waiting_requests, "{:.0f}"),
        cell(row.activity, "{:.2f}"),
        cell(row.per_million_tokens),
        cell(row.joules_per_token, "{:.3g}"),
        _instance_cell(row),
        row.reason,
    ]


def _route_cells(route: TopRoute) -> list[str]:
    currency = route.currency or ""
    return [
        f"{route.namespace}/{route.route}",
        ", ".join(f"{name} {share:.0%}" for name, share in route.shares.items()),
        f"{route.fallback_share:.1%}",
        cell(route.per_million_tokens, f"{{}} {currency}"),
        cell(route.last_per_million_tokens, f"{{}} {currency}"),
        cell(route.saved, "{:.1%}"),
    ]


def _instance_cell(row: TopRow) -> str:
    """Return the instance; of several variants each with its ready and desired replicas."""
    if row.variants is None:
        return row.variant or UNKNOWN_CELL
    used = [each for each in row.variants if each.desired_replicas or each.ready_replicas]
    counts = (f"{each.name} {each.ready_replicas}/{each.desired_replicas}" for each in used)
    return ", ".join(counts) or row.variant or UNKNOWN_CELL


def _pool_cells(pool: Json) -> list[str]:
    devices = ", ".join(
        f"{count['free']} of {count['allocatable']} {name}"
        + (f" (+{count['startable']} on new nodes)" if "startable" in count else "")
        for name, count in pool["devices"].items()
    )
    price = f"{pool['perGPUHour']} {pool['currency']}" if pool["perGPUHour"] else UNKNOWN_CELL
    nodes = f"{pool['readyNodes']}/{pool['nodes']}"
    product, tier = pool["product"] or UNKNOWN_CELL, pool["tier"] or UNKNOWN_CELL
    return [pool["name"], product, tier, price, nodes, devices or UNKNOWN_CELL]
