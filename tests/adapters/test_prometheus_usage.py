"""What services used in a past time, by the counters of their engines; no server runs."""

from datetime import timedelta
from typing import Any

import pytest

from tessera.adapters.prometheus.load import oldest_sample
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import SERVICE
from tessera.adapters.prometheus.usage import token_queries, tokens_of
from tessera.api.ref import Ref
from tessera.domain.usage.report import UsageRow
from tests.builders import NOW

SINCE = NOW - timedelta(days=14)


def row(question: str, value: float, **labels: str) -> dict[str, Any]:
    return {"metric": {"tessera_question": question, **labels}, "value": [0, str(value)]}


def of_chat(question: str, value: float) -> dict[str, Any]:
    return row(question, value, namespace="team-a", **{SERVICE: "chat"})


class UsageSeries:
    """Answers the query for usage, and remembers it."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = list(rows)
        self.query = ""
        self.params: dict[str, float] | None = None

    def custom_query(
        self, query: str, params: dict[str, float] | None = None, **_: Any
    ) -> list[dict[str, Any]]:
        self.query, self.params = query, params
        return self.rows


async def usage_of(series: UsageSeries) -> tuple[UsageRow, ...] | None:
    metrics = PrometheusMetrics("http://unused", lambda: NOW)
    metrics._client = series
    return await metrics.usage(SINCE, NOW)


async def test_counters_become_what_each_service_used_until_the_end_of_the_span() -> None:
    series = UsageSeries(
        row("started", 3),
        of_chat("requests", 1999.7),
        of_chat("input", 2_400_000.2),
        of_chat("cached", 1_600_000),
        of_chat("output", 500_000),
    )
    rows = await usage_of(series)
    assert rows is not None
    (chat,) = rows
    assert chat.group == ("team-a/chat",)
    assert (chat.requests, chat.input_tokens, chat.cached_tokens, chat.output_tokens) == (
        *(2000, 2_400_000, 1_600_000),
        500_000,
    )
    assert series.params == {"time": NOW.timestamp()}
    assert 'increase(vllm:prompt_tokens_total{tessera_dev_service!="",pod!=""}[1209600s])' in (
        series.query
    )


@pytest.mark.parametrize("value", [2_500_000, float("nan"), -1, 1e16])
async def test_no_more_of_the_input_is_cached_than_there_is(value: float) -> None:
    series = UsageSeries(
        row("started", 3),
        of_chat("input", 2_400_000),
        of_chat("cached", value),
        of_chat("output", 5),
    )
    rows = await usage_of(series)
    assert rows is not None
    assert rows[0].cached_tokens in (0, 2_400_000)


async def test_a_prometheus_that_begins_later_says_so() -> None:
    series = UsageSeries(of_chat("output", 500_000))
    assert await usage_of(series) is None
    assert "count(up offset 1209300s)" in series.query


async def test_the_oldest_sample_of_a_span_is_the_first_of_its_range() -> None:
    class Range:
        def custom_query_range(self, *arguments: Any, **_: Any) -> list[dict[str, Any]]:
            assert arguments[:3] == ("count(up)", SINCE, NOW)
            return [{"metric": {}, "values": [[1_800_000_000, "3"], [1_800_000_060, "3"]]}]

    metrics = PrometheusMetrics("http://unused", lambda: NOW)
    metrics._client = Range()
    oldest = await oldest_sample(metrics, SINCE, NOW)
    assert oldest is not None
    assert oldest.timestamp() == 1_800_000_000


async def test_what_gateways_recorded_is_read_from_their_own_series_alone() -> None:
    series = UsageSeries(
        row("started", 3),
        row("tokens", 2_400_000.2, service="team-a/chat"),
        row("tokens", -1, service="team-b/chat"),
        row("by_service", 2_000_000, service="team-a/chat"),
        # Some tenants of it have no series of their own.
        row("tokens", 500_000, service="team-c/chat"),
        row("by_service", 900_000, service="team-c/chat"),
    )
    metrics = PrometheusMetrics("http://unused", lambda: NOW)
    metrics._client = series
    queries = token_queries(metrics.gateway_target, SINCE, NOW)
    rows = await metrics.query_union(queries, NOW)
    expected = {Ref("team-a", "chat"): 2_400_000, Ref("team-c", "chat"): 900_000}
    assert tokens_of(rows) == expected
    matchers = f'kind=~"input|output",{metrics.gateway_target},pod!=""'
    tokens = f"tessera_gateway_tokens_total{{{matchers}}}"
    assert f"increase({tokens}[1209600s])" in series.query
    assert series.params == {"time": NOW.timestamp()}
    assert tokens_of({**rows, "started": []}) is None
