"""Responses of Prometheus about latency become histograms; no server runs."""

from datetime import timedelta
from typing import Any

from typing_extensions import override

from tessera.adapters.prometheus.latency import latencies_of, latency_queries
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import SERVICE, VARIANT, union_query
from tessera.adapters.prometheus.rows import QueryRow
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.observed.snapshot import Ref
from tessera.domain.slo.measurement import LatencyEdges
from tessera.ports import MetricsError
from tests.builders import NOW

CHAT = Ref("team-a", "chat")
EDGES = LatencyEdges(frozenset({1.0}), frozenset({0.025, 0.05}))


def row(value: float, name: str = "", **labels: str) -> dict[str, Any]:
    metric = {"namespace": "team-a", SERVICE: "chat", VARIANT: "a100-1gpu", **labels}
    asked = {"tessera_question": name} if name else {}
    return {"metric": {**metric, **asked}, "value": (0.0, value), "values": [(0.0, value)]}


def gateway_row(value: float, service: str = "team-a/chat", **labels: str) -> dict[str, Any]:
    return {"metric": {"service": service, **labels}, "value": (0.0, value)}


def test_buckets_of_each_variant_become_one_histogram() -> None:
    rows = {
        "ttft": [row(80, le="1.0"), row(100, le="+Inf"), row(1, le="+Inf", **{VARIANT: "b"})],
        "itl": [row(9_000, le="+Inf"), row(900, le="0.05"), row(100, le="0.025")],
        "prefill": [row(97, le="1.0"), row(98, le="+Inf")],
        "waiting": [row(12)],
        "waiting_before": [row(2)],
    }
    assert latencies_of(rows) == {
        CHAT: ServiceLatency(
            engines=(
                EngineLatency(
                    variant="a100-1gpu",
                    ttft=LatencyHistogram(total=100, at_most=((1.0, 80),)),
                    prefill=LatencyHistogram(total=98, at_most=((1.0, 97),)),
                    itl=LatencyHistogram(total=9_000, at_most=((0.025, 100), (0.05, 900))),
                    waiting=12,
                    waiting_growth=10,
                ),
                EngineLatency(variant="b", ttft=LatencyHistogram(total=1)),
            )
        )
    }


def test_the_burn_of_the_recording_rules_is_of_the_service() -> None:
    rows = {"itl": [row(5, le="+Inf")], "burn": [row(0.4), row(9, **{SERVICE: "unknown"})]}
    assert {ref: latency.budget_burn for ref, latency in latencies_of(rows).items()} == {CHAT: 0.4}


def test_gateways_have_a_histogram_and_the_requests_that_wait_too_long() -> None:
    rows = {
        "gateway_ttft": [gateway_row(9, le="1.0"), gateway_row(10, le="+Inf")],
        "gateway_itl": [gateway_row(99, le="0.033"), gateway_row(100, le="+Inf")],
        "overdue": [gateway_row(3), gateway_row(7, "(other)")],
        "oldest": [gateway_row(4.5)],
    }
    assert latencies_of(rows) == {
        CHAT: ServiceLatency(
            gateway=GatewayLatency(
                ttft=LatencyHistogram(total=10, at_most=((1.0, 9),)),
                itl=LatencyHistogram(total=100, at_most=((0.033, 99),)),
                overdue=3,
                oldest_seconds=4.5,
            )
        )
    }


def test_a_histogram_without_its_total_and_edges_that_are_none_are_left_out() -> None:
    rows = {
        "ttft": [row(5, le="1.0")],
        "itl": [row(5, le="+Inf"), *(row(5, le=le) for le in ("x", "NaN", "-1", "-Inf", "0"))],
    }
    assert latencies_of(rows)[CHAT].engines == (
        EngineLatency(variant="a100-1gpu", itl=LatencyHistogram(total=5)),
    )


def test_one_query_reads_the_edges_of_all_services_in_both_spellings() -> None:
    query = union_query(latency_queries(EDGES, 'namespace="tessera-system"'))
    assert r'le=~"1|1\\.0|\\+Inf"' in query
    assert r'le=~"0\\.025|0\\.05|\\+Inf"' in query
    assert 'tessera_gateway_requests_overdue{namespace="tessera-system",pod!=""}' in query


class _LatencyMetrics(PrometheusMetrics):
    """Prometheus that has latencies as long as it works."""

    def __init__(self) -> None:
        self.at = NOW
        self.failing: tuple[str, ...] = ()
        self.asked: list[str] = []
        super().__init__("http://prometheus", lambda: self.at)

    @override
    async def _execute(self, seconds: float, function: Any, *arguments: Any) -> list[QueryRow]:
        query: str = arguments[0]
        self.asked.append(query)
        if any(metric in query for metric in self.failing):
            raise MetricsError("timeout")
        return [row(20, "ttft", le="+Inf")] if "first_token" in query else []


async def test_latencies_stay_while_a_query_fails_for_less_than_five_minutes() -> None:
    metrics = _LatencyMetrics()
    first = await metrics.read(EDGES)
    assert first.latencies_at == NOW
    assert CHAT in first.latencies

    metrics.failing = ("first_token",)
    for minute in range(1, 6):
        metrics.at = NOW + timedelta(minutes=minute)
        missed = await metrics.read(EDGES)
        assert missed.latencies is first.latencies
        assert missed.latencies_at == NOW
    # Whether one query fails or all of them do.
    metrics.failing = ("vllm",)
    metrics.at = NOW + timedelta(minutes=6)
    lost = await metrics.read(EDGES)
    assert lost.problem is not None
    assert lost.latencies == {}
    assert lost.latencies_at == NOW + timedelta(minutes=6)

    metrics.failing = ()
    metrics.at = NOW + timedelta(minutes=7)
    assert CHAT in (await metrics.read(EDGES)).latencies


async def test_without_any_answer_nothing_is_known_for_five_minutes() -> None:
    metrics = _LatencyMetrics()
    metrics.failing = ("first_token",)
    readings = await metrics.read(EDGES)
    assert readings.problem is None
    assert readings.latencies_at is None


async def test_latencies_are_one_query_for_all_services_every_thirty_seconds() -> None:
    metrics = _LatencyMetrics()
    for seconds in (0, 5, 10, 29):
        metrics.at = NOW + timedelta(seconds=seconds)
        await metrics.read(EDGES)
    assert sum("first_token" in query for query in metrics.asked) == 1
