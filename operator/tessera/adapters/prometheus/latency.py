"""The Prometheus query for latency histograms, by service and variant.

One query reads all services. It reads the edges alone by which some service is judged, since all of
them would be forty rows for each variant.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from tessera.adapters.prometheus.queries import SERVICE, VARIANT, union_query
from tessera.adapters.prometheus.rows import Bounds, QueryRow
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.observed.snapshot import Ref
from tessera.domain.slo.measurement import PREFILL_METRIC, LatencyEdges, Objective, edge_label

_GROUP_BY = f"by (namespace, {SERVICE}, {VARIANT})"
_WAITING = f'avg_over_time(vllm:num_requests_waiting{{{SERVICE}!=""}}[1m]%s)'
_GATEWAY_HISTOGRAMS = {
    Objective.TTFT: "tessera_gateway_time_to_first_token_seconds",
    Objective.ITL: "tessera_gateway_inter_token_latency_seconds",
}

_ENGINE_LABELS = ("namespace", SERVICE)
_GATEWAY_LABELS = ("service",)
_BUCKET_LABELS = ("le",)
# More than any fleet counts, and small enough that sums stay finite.
_MAX_COUNT = 1e12
LATENCY_BOUNDS = {
    "ttft": Bounds((*_ENGINE_LABELS, *_BUCKET_LABELS), _MAX_COUNT),
    "itl": Bounds((*_ENGINE_LABELS, *_BUCKET_LABELS), _MAX_COUNT),
    "prefill": Bounds((*_ENGINE_LABELS, *_BUCKET_LABELS), _MAX_COUNT),
    "waiting": Bounds(_ENGINE_LABELS, 1e6),
    "waiting_before": Bounds(_ENGINE_LABELS, 1e6),
    "gateway_ttft": Bounds((*_GATEWAY_LABELS, *_BUCKET_LABELS), _MAX_COUNT),
    "gateway_itl": Bounds((*_GATEWAY_LABELS, *_BUCKET_LABELS), _MAX_COUNT),
    "overdue": Bounds(_GATEWAY_LABELS, 1e6),
    "oldest": Bounds(_GATEWAY_LABELS, 1e6),
    "burn": Bounds(_ENGINE_LABELS, 1e3),
}

KeyT = TypeVar("KeyT")
_Counts = dict[float, float]
_Rows = Mapping[str, Sequence[QueryRow]]


def latency_query(edges: LatencyEdges, gateway_target: str) -> str:
    """Return the query; `gateway_target` selects the series of gateways and none of tenants."""
    return union_query(
        {
            "ttft": _engine_buckets(Objective.TTFT.engine_metric, edges.ttft),
            "itl": _engine_buckets(Objective.ITL.engine_metric, edges.itl),
            "prefill": _engine_buckets(PREFILL_METRIC, edges.prefill),
            "waiting": f"sum {_GROUP_BY} ({_WAITING % ''})",
            "waiting_before": f"sum {_GROUP_BY} ({_WAITING % ' offset 4m'})",
            "gateway_ttft": _gateway_buckets(Objective.TTFT, gateway_target),
            "gateway_itl": _gateway_buckets(Objective.ITL, gateway_target),
            "overdue": f"sum by (service) (tessera_gateway_requests_overdue{{{gateway_target}}})",
            "oldest": "max by (service) "
            f"(tessera_gateway_oldest_request_seconds{{{gateway_target}}})",
            "burn": f"max by (namespace, {SERVICE}) (tessera:service_slo_burn:3d)",
        }
    )


def latencies_of(by_query: _Rows) -> dict[Ref, ServiceLatency]:
    """Return the latency of each service with a series, its variants by name."""
    engines = _engines_by_service(by_query)
    gateways = _gateways_by_service(by_query)
    burns = {_variant_key(row)[0]: row["value"][1] for row in by_query.get("burn", ())}
    return {
        ref: ServiceLatency(
            engines=tuple(engines.get(ref, ())),
            gateway=gateways.get(ref),
            budget_burn=burns.get(ref),
        )
        for ref in sorted({*engines, *gateways})
    }


def _engine_buckets(metric: str, edges: Iterable[float]) -> str:
    matcher = f'{SERVICE}!="",le=~"{_edge_pattern(edges)}"'
    return (
        f"sum by (namespace, {SERVICE}, {VARIANT}, le) (increase({metric}_bucket{{{matcher}}}[5m]))"
    )


def _gateway_buckets(objective: Objective, target: str) -> str:
    metric = _GATEWAY_HISTOGRAMS[objective]
    return f"sum by (service, le) (increase({metric}_bucket{{{target}}}[5m]))"


def _edge_pattern(edges: Iterable[float]) -> str:
    """Return the pattern of edges; Prometheus before version 3 keeps `1` apart from `1.0`."""
    texts = {text for edge in edges for text in (edge_label(edge), f"{edge:g}")}
    return "|".join([*sorted(text.replace(".", r"\\.") for text in texts), r"\\+Inf"])


def _engines_by_service(by_query: _Rows) -> dict[Ref, list[EngineLatency]]:
    ttft = _histograms(by_query.get("ttft", ()), _variant_key)
    itl = _histograms(by_query.get("itl", ()), _variant_key)
    prefill = _histograms(by_query.get("prefill", ()), _variant_key)
    waiting = {_variant_key(row): row["value"][1] for row in by_query.get("waiting", ())}
    before = {_variant_key(row): row["value"][1] for row in by_query.get("waiting_before", ())}
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
    ttft = _histograms(by_query.get("gateway_ttft", ()), _gateway_key)
    itl = _histograms(by_query.get("gateway_itl", ()), _gateway_key)
    overdue = {_gateway_key(row): row["value"][1] for row in by_query.get("overdue", ())}
    oldest = {_gateway_key(row): row["value"][1] for row in by_query.get("oldest", ())}
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
    counts: dict[KeyT, _Counts] = defaultdict(dict)
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


def _variant_key(row: QueryRow) -> tuple[Ref, str]:
    labels = row["metric"]
    return Ref(labels["namespace"], labels[SERVICE]), labels.get(VARIANT, "")


def _gateway_key(row: QueryRow) -> Ref:
    namespace, _, name = row["metric"]["service"].partition("/")
    return Ref(namespace, name)
