"""The Prometheus query for latency histograms, by service and variant.

One query reads all services. It reads the edges alone by which some service is judged, since all of
them would be forty rows for each variant.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tessera.adapters.prometheus.queries import (
    GATEWAY_LABELS,
    SERVICE,
    SERVICE_LABELS,
    VARIANT,
    BoundedQuery,
    Bounds,
    Queries,
    each_engine,
    each_gateway,
)
from tessera.adapters.prometheus.rows import (
    KeyT,
    QueryRow,
    gateway_key,
    service_ref,
    values_by,
    variant_key,
)
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.observed.snapshot import Ref
from tessera.domain.slo.measurement import PREFILL_METRIC, LatencyEdges, Objective, edge_label

_GROUP_BY = f"by (namespace, {SERVICE}, {VARIANT})"
_WAITING = "avg_over_time(vllm:num_requests_waiting{%s}[1m])"
_WAITING_BEFORE = "avg_over_time(vllm:num_requests_waiting{%s}[1m] offset 4m)"
_GATEWAY_HISTOGRAMS = {
    Objective.TTFT: "tessera_gateway_time_to_first_token_seconds",
    Objective.ITL: "tessera_gateway_inter_token_latency_seconds",
}

# More than any fleet counts, and small enough that sums stay finite.
_MAX_COUNT = 1e12
_ENGINE_BUCKETS = Bounds((*SERVICE_LABELS, "le"), _MAX_COUNT)
_GATEWAY_BUCKETS = Bounds((*GATEWAY_LABELS, "le"), _MAX_COUNT)
_ENGINE_REQUESTS = Bounds(SERVICE_LABELS, 1e6)
_GATEWAY_REQUESTS = Bounds(GATEWAY_LABELS, 1e6)

_Rows = Mapping[str, Sequence[QueryRow]]


def latency_queries(edges: LatencyEdges, gateway_target: str) -> Queries:
    """Return the queries; `gateway_target` selects the series of gateways and none of tenants."""
    waiting = each_gateway("tessera_gateway_requests_overdue{%s}", gateway_target, "service")
    overdue = f"sum by (service) ({waiting})"
    oldest = f"max by (service) (tessera_gateway_oldest_request_seconds{{{gateway_target}}})"
    burn = f"max by (namespace, {SERVICE}) (tessera:service_slo_burn:3d)"
    return {
        "ttft": _engine_buckets(Objective.TTFT.engine_metric, edges.ttft),
        "itl": _engine_buckets(Objective.ITL.engine_metric, edges.itl),
        "prefill": _engine_buckets(PREFILL_METRIC, edges.prefill),
        "waiting": BoundedQuery(f"sum {_GROUP_BY} ({each_engine(_WAITING)})", _ENGINE_REQUESTS),
        "waiting_before": BoundedQuery(
            f"sum {_GROUP_BY} ({each_engine(_WAITING_BEFORE)})", _ENGINE_REQUESTS
        ),
        "gateway_ttft": _gateway_buckets(Objective.TTFT, gateway_target),
        "gateway_itl": _gateway_buckets(Objective.ITL, gateway_target),
        "overdue": BoundedQuery(overdue, _GATEWAY_REQUESTS),
        "oldest": BoundedQuery(oldest, _GATEWAY_REQUESTS),
        "burn": BoundedQuery(burn, Bounds(SERVICE_LABELS, 1e3)),
    }


def latencies_of(by_query: _Rows) -> dict[Ref, ServiceLatency]:
    """Return the latency of each service with a series, its variants by name."""
    engines = _engines_by_service(by_query)
    gateways = _gateways_by_service(by_query)
    burns = values_by(by_query.get("burn", ()), service_ref)
    return {
        ref: ServiceLatency(
            engines=tuple(engines.get(ref, ())),
            gateway=gateways.get(ref),
            budget_burn=burns.get(ref),
        )
        for ref in sorted({*engines, *gateways})
    }


def _engine_buckets(metric: str, edges: Iterable[float]) -> BoundedQuery:
    series = f'increase({metric}_bucket{{%s,le=~"{_edge_pattern(edges)}"}}[5m])'
    query = f"sum by (namespace, {SERVICE}, {VARIANT}, le) ({each_engine(series, 'le')})"
    return BoundedQuery(query, _ENGINE_BUCKETS)


def _gateway_buckets(objective: Objective, target: str) -> BoundedQuery:
    series = f"increase({_GATEWAY_HISTOGRAMS[objective]}_bucket{{%s}}[5m])"
    query = f"sum by (service, le) ({each_gateway(series, target, 'tenant', 'service', 'le')})"
    return BoundedQuery(query, _GATEWAY_BUCKETS)


def _edge_pattern(edges: Iterable[float]) -> str:
    """Return the pattern of edges; Prometheus before version 3 keeps `1` apart from `1.0`."""
    texts = {text for edge in edges for text in (edge_label(edge), f"{edge:g}")}
    return "|".join([*sorted(text.replace(".", r"\\.") for text in texts), r"\\+Inf"])


def _engines_by_service(by_query: _Rows) -> dict[Ref, list[EngineLatency]]:
    ttft = _histograms(by_query.get("ttft", ()), variant_key)
    itl = _histograms(by_query.get("itl", ()), variant_key)
    prefill = _histograms(by_query.get("prefill", ()), variant_key)
    waiting = values_by(by_query.get("waiting", ()), variant_key)
    before = values_by(by_query.get("waiting_before", ()), variant_key)
    engines: dict[Ref, list[EngineLatency]] = defaultdict(list)
    for key in sorted({*ttft, *itl}):
        ref, variant = key
        queued = waiting.get(key)
        engines[ref].append(
            EngineLatency(
                variant=variant or None,
                ttft=ttft.get(key),
                prefill=prefill.get(key),
                itl=itl.get(key),
                waiting=queued,
                waiting_growth=(queued or 0.0) - before.get(key, queued or 0.0),
            )
        )
    return engines


def _gateways_by_service(by_query: _Rows) -> dict[Ref, GatewayLatency]:
    ttft = _histograms(by_query.get("gateway_ttft", ()), gateway_key)
    itl = _histograms(by_query.get("gateway_itl", ()), gateway_key)
    overdue = values_by(by_query.get("overdue", ()), gateway_key)
    oldest = values_by(by_query.get("oldest", ()), gateway_key)
    return {
        ref: GatewayLatency(
            ttft=ttft.get(ref),
            itl=itl.get(ref),
            overdue=overdue.get(ref, 0.0),
            oldest_seconds=oldest.get(ref, 0.0),
        )
        for ref in {*ttft, *itl, *overdue, *oldest}
        # What exceeds the services with series of their own has no service.
        if ref.namespace and ref.name
    }


def _histograms(
    rows: Iterable[QueryRow], key_of: Callable[[QueryRow], KeyT]
) -> dict[KeyT, LatencyHistogram]:
    """Return the histograms; one without its infinite edge has no total and is left out."""
    counts: dict[KeyT, dict[float, float]] = defaultdict(dict)
    for row in rows:
        if (edge := _edge(row["metric"]["le"])) is not None:
            counts[key_of(row)][edge] = row["value"][1]
    return {
        key: LatencyHistogram(
            total=by_edge[math.inf],
            at_most=tuple(sorted(item for item in by_edge.items() if item[0] != math.inf)),
        )
        for key, by_edge in counts.items()
        if math.inf in by_edge
    }


def _edge(text: str) -> float | None:
    """Return the edge in seconds; None for a text that is none."""
    try:
        edge = float(text)
    except ValueError:
        return None
    return edge if edge > 0 else None
