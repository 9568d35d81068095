"""Whatever Prometheus answers, reading it raises nothing, and what is left out is counted."""

import asyncio
import contextlib
import json
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from tessera.adapters.prometheus.billing import scrapes_of
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import SERVICE, VARIANT, Bounds
from tessera.adapters.prometheus.rows import QueryRow, bounded_rows, well_formed_rows
from tessera.api.inference_service import Slo
from tessera.domain.cost.statement import ScrapeRef
from tessera.domain.observed.snapshot import Ref, TokenRates
from tessera.domain.slo.measurement import LatencyEdges, measure_slo
from tessera.ports import MetricsError, RejectedSample
from tests.builders import NOW

QUERY_NAMES = (
    *("waiting", "running", "activity", "idle", "steps", "age", "awake", "finished"),
    *("finish_rate", "computed_tokens", "output_tokens"),
)
LATENCY_NAMES = ("ttft", "itl", "waiting_before", "gateway_ttft", "gateway_itl", "overdue")
SPEED_NAMES = ("requests", "tokens", "steps", "gaps", "gap_seconds", "kv_usage", "cache", "else")
LABELS = (
    *("namespace", "pod", SERVICE, VARIANT, "kv_cache_size_tokens", "num_gpu_blocks", "block_size"),
    *(
        "le",
        "service",
        "state",
        "tenant",
        "currency",
        "exported_namespace",
        "exported_pod",
        "UUID",
        "instance",
        "GPU_I_ID",
        "GPU_I_PROFILE",
        "Hostname",
        "__name__",
        "budget",
        "window",
    ),
)
VALUES = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from(["1e308", "-0", "NaN", "+Inf", "1e15", "9" * 5000, "", "x", "0x1"]),
    st.none(),
    st.floats().map(str),
)
SAMPLES = st.one_of(
    st.tuples(VALUES, VALUES).map(list),
    st.tuples(st.just(NOW.timestamp()), VALUES).map(list),
    st.lists(VALUES, max_size=3),
    st.none(),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["9" * 5000, "16", "team-a", "chat", "allocated", "idle", "Day", "+Inf", "0.05"]
    ),
)
METRICS = st.dictionaries(st.sampled_from(LABELS), TEXTS, max_size=8).flatmap(
    lambda labels: st.sampled_from((*QUERY_NAMES, *SPEED_NAMES, *LATENCY_NAMES)).map(
        lambda name: labels | {"tessera_question": name}
    )
)
ROWS = st.one_of(
    st.fixed_dictionaries({"metric": METRICS, "value": SAMPLES}),
    st.fixed_dictionaries({"metric": METRICS, "values": st.lists(SAMPLES, max_size=3)}),
    st.fixed_dictionaries({"metric": st.one_of(st.none(), st.lists(st.text(max_size=3)))}),
    st.none(),
    st.text(max_size=3),
)
ANSWERS = st.one_of(st.lists(ROWS, max_size=8), st.none(), st.dictionaries(TEXTS, TEXTS))


async def _read_all(metrics: PrometheusMetrics) -> list[Any]:
    begin = NOW - timedelta(hours=1)
    process = (("job", "tessera"),)
    return [
        await metrics.read(LatencyEdges(frozenset({1.0}), frozenset({0.05}))),
        await metrics.load_history(timedelta(minutes=5)),
        await metrics.billed_until(),
        await metrics.last_seen(["team-a/chat-0"], timedelta(minutes=5)),
        *await metrics.tokens(),
        await metrics.spend_records(),
        await metrics.bill_scrapes(begin, NOW),
        await _amounts_at(metrics, ScrapeRef(process, NOW)),
    ]


async def _amounts_at(metrics: PrometheusMetrics, scrape: ScrapeRef) -> Any:
    # Only a state of cost that this version does not know is refused.
    with contextlib.suppress(MetricsError):
        return await metrics.amounts_at(scrape)


class _AnsweredMetrics(PrometheusMetrics):
    """Every query has the same answer."""

    def __init__(self, answer: object) -> None:
        super().__init__("http://prometheus", lambda: NOW)
        self._answer = json.dumps(answer)

    @override
    async def _execute(self, seconds: float, function: Any, *arguments: Any) -> list[QueryRow]:
        return well_formed_rows(json.loads(self._answer), self._rejected)


@given(ANSWERS)
def test_no_answer_raises(answer: object) -> None:
    readings, *_ = asyncio.run(_read_all(_AnsweredMetrics(answer)))
    assert readings.problem is None
    for latency in readings.latencies.values():
        assert measure_slo(Slo(), latency)
    loads = [value for pod in readings.pods.values() for value in (pod.waiting, pod.running)]
    assert all(0 <= value <= 1e6 for value in loads if value is not None)


def test_prompt_tokens_are_what_steps_computed_beside_the_output() -> None:
    def rate(query: str, service: str, value: float) -> dict[str, object]:
        return row(str(value), namespace="team-a", **{SERVICE: service, "tessera_question": query})

    answer = [
        rate("computed_tokens", "chat", 900.5),
        rate("output_tokens", "chat", 200.5),
        # Extrapolated apart, a sum may be below its part.
        rate("computed_tokens", "embed", 99.0),
        rate("output_tokens", "embed", 100.0),
        rate("output_tokens", "alone", 100.0),
    ]
    readings = asyncio.run(_AnsweredMetrics(answer).read())
    assert readings.token_rates == {
        Ref("team-a", "chat"): TokenRates(prompt=700.0, output=200.5),
        Ref("team-a", "embed"): TokenRates(prompt=0.0, output=100.0),
    }


def row(value: object, **labels: str) -> dict[str, object]:
    return {"metric": labels, "value": [NOW.timestamp(), value]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": "error"}, RejectedSample.MALFORMED),
        ([row("5", namespace="team-a", pod=7)], RejectedSample.MALFORMED),  # type: ignore[arg-type]
        ([row("many", namespace="team-a", pod="a")], RejectedSample.MALFORMED),
        ([row("5", pod="a")], RejectedSample.MISSING_LABEL),
        ([row("5", namespace="", pod="a")], RejectedSample.MISSING_LABEL),
        ([row("1e308", namespace="team-a", pod="a")], RejectedSample.OUT_OF_RANGE),
        ([row("-1", namespace="team-a", pod="a")], RejectedSample.OUT_OF_RANGE),
    ],
)
def test_what_is_left_out_is_counted_by_its_reason(answer: object, reason: RejectedSample) -> None:
    rejected: Counter[RejectedSample] = Counter()
    rows = well_formed_rows(answer, rejected)
    assert bounded_rows(rows, Bounds(("namespace", "pod"), 1e6), rejected) == []
    assert +rejected == Counter({reason: 1})


def test_a_value_without_data_is_left_out_and_not_counted() -> None:
    rejected: Counter[RejectedSample] = Counter()
    assert well_formed_rows([row("NaN", pod="a")], rejected) == []
    assert not rejected


def test_one_bad_row_leaves_the_others() -> None:
    rejected: Counter[RejectedSample] = Counter()
    rows = well_formed_rows([row("5", pod="a"), None, row("6", pod="b")], rejected)
    assert [accepted["value"][1] for accepted in rows] == [5, 6]


@pytest.mark.parametrize("forged", ["1e15", str((NOW + timedelta(hours=1)).timestamp())])
def test_a_bill_of_the_future_does_not_hide_that_of_an_operator(forged: str) -> None:
    billed = NOW - timedelta(seconds=5)
    metrics = _AnsweredMetrics(
        [row(forged, pod="evil"), row(str(billed.timestamp()), pod="operator")]
    )
    assert asyncio.run(metrics.billed_until()) == billed
    assert metrics.take_rejected() == {RejectedSample.OUT_OF_RANGE: 1}
    assert not +Counter(metrics.take_rejected())


def test_scrapes_outside_of_any_calendar_are_left_out() -> None:
    rows = [{"metric": {"job": "a"}, "values": [[NOW.timestamp(), "1e15"]]}]
    rejected: Counter[RejectedSample] = Counter()
    bounded = bounded_rows(well_formed_rows(rows, rejected), Bounds((), 2e11), rejected)
    assert scrapes_of(bounded, bounded) == {}
    assert +rejected == Counter({RejectedSample.OUT_OF_RANGE: 1})
