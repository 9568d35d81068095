"""The load of services is read a day at a time, and what an engine exports breaks nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.adapters.prometheus.load_history import LoadHistories, RecordedService, spans_of
from tessera.adapters.prometheus.queries import VARIANT, BoundedQuery
from tessera.domain.observed.load_history import LONGEST, SPAN, LoadSpan, PackedSpans
from tessera.domain.observed.snapshot import Ref
from tessera.ports import MetricsError
from tests.builders import NOW

CHAT = RecordedService(Ref("team-a", "chat"), "chat")
CODE = RecordedService(Ref("team-a", "code"), "code")
LATEST = NOW - SPAN
HOUR = timedelta(hours=1)
# Engines that ran for all of a span, and what 1,200 requests of 300 and 100 tokens leave there.
VALUES = {
    "minutes": 10.0,
    "requests": 1200.0,
    "answers": 1200.0,
    "inputs": 360_000.0,
    "outputs": 120_000.0,
    "prompts": 360_000.0,
    "cached": 90_000.0,
}


def a_row(value: float, **labels: str) -> dict[str, Any]:
    return {"metric": labels, "values": [(LATEST.timestamp(), value)]}


def a_span(**changes: float | None) -> LoadSpan | None:
    values = {name: value for name, value in (VALUES | changes).items() if value is not None}
    spans = spans_of({name: [a_row(value)] for name, value in values.items()})
    return spans[0] if spans else None


@dataclass
class _Prometheus:
    """Has the same load at all times, and remembers what it was asked for."""

    failing: bool = False
    asked: list[tuple[str, datetime, datetime]] = field(default_factory=list)

    async def query_range(
        self, query: BoundedQuery, start: datetime, end: datetime, step: timedelta
    ) -> list[Any]:
        if self.failing:
            raise MetricsError("503")
        service = "code" if 'model_name="code"' in query.text else "chat"
        if (service, start, end) not in self.asked:
            self.asked.append((service, start, end))
        moments = [start + number * step for number in range((end - start) // step + 1)]
        return [
            {
                "metric": {"tessera_question": name},
                "values": [(moment.timestamp(), value) for moment in moments],
            }
            for name, value in VALUES.items()
            if f'"{name}", ""' in query.text
        ]


async def read_all(histories: LoadHistories, at: datetime, *services: RecordedService) -> list[str]:
    """Read what is due; return the names of the services in the order of the reads."""
    names = []
    while service := histories.due(services, at):
        await histories.read(service, at)
        names.append(service.ref.name)
    return names


def test_a_span_has_means_and_what_was_measured_of_the_cache() -> None:
    assert a_span() == LoadSpan(
        end=LATEST,
        rate=2.0,
        input_tokens=300.0,
        output_tokens=100.0,
        input_variation=0.0,
        resident_tokens=350.0,
        cached_share=0.25,
    )
    rows = {name: [a_row(value)] for name, value in VALUES.items()}
    rows["buckets"] = [a_row(count, le=le) for le, count in (("200", 600), ("+Inf", 1200))]
    by_variant = {"kv_usage": (4.0, 3.0), "running": (400.0, 100.0)}
    rows |= {
        name: [a_row(value, **{VARIANT: str(variant)}) for variant, value in enumerate(values)]
        for name, values in by_variant.items()
    }
    sizes = ({"kv_cache_size_tokens": "50000"}, {"num_gpu_blocks": "6250", "block_size": "16"})
    rows["cache"] = [
        a_row(1.0, **{VARIANT: str(variant)}, **labels) for variant, labels in enumerate(sizes)
    ]
    (span,) = spans_of(rows)
    # 4 samples of 50,000 and 3 of 100,000 tokens, by 500 samples of a running request.
    assert span.resident_tokens == 1000
    # Half of the prompts count as 100 tokens, the others as 350.
    assert span.input_variation == pytest.approx((125 / 225) ** 2)


def test_a_span_without_requests_is_known_and_one_with_a_gap_is_not() -> None:
    empty = a_span(requests=0, answers=0, inputs=0, outputs=0)
    assert empty is not None
    assert (empty.rate, empty.input_tokens) == (0, 0)
    for missing in ("minutes", "requests", "answers", "inputs", "outputs"):
        assert a_span(**{missing: None}) is None, missing
    assert a_span(minutes=8) is None
    assert a_span(cached=None) is not None


def test_a_bound_below_one_token_is_no_bound_of_prompts() -> None:
    rows = {name: [a_row(value)] for name, value in VALUES.items()}
    rows["buckets"] = [a_row(5, le="1e-200")]
    assert [span.input_variation for span in spans_of(rows)] == [0]


@given(
    st.dictionaries(
        st.sampled_from([*VALUES, "buckets", "kv_usage", "running", "cache"]),
        st.lists(
            st.tuples(
                st.floats(0, 1e12), st.sampled_from(["", "a", "1", "nan", "+Inf", "9" * 400])
            ),
            max_size=4,
        ),
    )
)
def test_whatever_engines_export_a_span_has_numbers_of_requests(rows: Any) -> None:
    spans = spans_of(
        {name: [a_row(VALUES[name])] for name in VALUES}
        | {
            name: [
                a_row(value, le=text, kv_cache_size_tokens=text, **{VARIANT: text})
                for value, text in values
            ]
            for name, values in rows.items()
        }
    )
    for span in spans:
        numbers = (span.rate, span.input_tokens, span.output_tokens, span.input_variation)
        assert all(0 <= number < math.inf for number in (*numbers, span.resident_tokens))
        assert span.cached_share <= 1
    assert len(PackedSpans(spans)) == len(spans)


async def test_a_week_is_read_by_days_and_then_what_is_new_each_hour() -> None:
    prometheus = _Prometheus()
    histories = LoadHistories(prometheus)
    assert await read_all(histories, NOW, CHAT, CODE) == ["chat"] * 7 + ["code"] * 7
    begins = [start for service, start, _ in prometheus.asked if service == "chat"]
    first = LATEST - LONGEST + SPAN
    assert begins == [first + number * timedelta(days=1) for number in range(7)]
    history = histories.by_service[CHAT.ref]
    assert (history.read_at, len(history.spans)) == (NOW, LONGEST // SPAN)
    assert (history.spans[0].end, history.spans[-1].end) == (first, LATEST)
    prometheus.asked.clear()
    assert await read_all(histories, NOW + HOUR - SPAN, CHAT, CODE) == []
    assert await read_all(histories, NOW + HOUR, CHAT, CODE) == ["chat", "code"]
    assert prometheus.asked[0] == ("chat", NOW, LATEST + HOUR)
    assert histories.by_service[CHAT.ref].spans[0].end == first + HOUR
    assert len(histories.by_service[CHAT.ref].spans) == LONGEST // SPAN


async def test_what_is_known_stays_while_reads_fail_and_no_part_of_a_week_is_shown() -> None:
    prometheus = _Prometheus()
    histories = LoadHistories(prometheus)
    assert histories.due([CHAT], NOW) == CHAT
    await histories.read(CHAT, NOW)
    assert histories.by_service == {}
    prometheus.failing = True
    with pytest.raises(MetricsError):
        await histories.read(CHAT, NOW)
    # Another one is asked for first, and the one that failed goes on where it was.
    assert histories.due([CHAT, CODE], NOW) == CODE
    prometheus.failing = False
    assert await read_all(histories, NOW + SPAN, CHAT) == ["chat"] * 7
    assert len({start for _, start, _ in prometheus.asked}) == len(prometheus.asked) == 8
    known = histories.by_service
    prometheus.failing = True
    later = NOW + 2 * HOUR
    assert histories.due([CHAT], later) == CHAT
    with pytest.raises(MetricsError):
        await histories.read(CHAT, later)
    assert histories.by_service is known
    assert histories.due([CHAT], later) is None


async def test_a_service_that_goes_or_has_another_model_is_forgotten() -> None:
    histories = LoadHistories(_Prometheus())
    await read_all(histories, NOW, CHAT, CODE)
    renamed = RecordedService(CHAT.ref, "other")
    assert histories.due([renamed], NOW) == renamed
    assert histories.by_service == {}


def spans() -> Iterator[LoadSpan]:
    for number in range(20):
        yield LoadSpan(
            end=NOW + number * SPAN,
            rate=number / 4,
            input_tokens=100.0,
            output_tokens=50.5,
            input_variation=0.5,
            resident_tokens=125.25,
            cached_share=0.25,
        )


def test_packed_spans_are_a_sequence_of_the_same_spans() -> None:
    packed, plain = PackedSpans(spans()), tuple(spans())
    assert tuple(packed) == plain
    assert (len(packed), packed[-1], packed[3:6]) == (20, plain[-1], plain[3:6])
    assert packed == PackedSpans(plain)
    assert packed != PackedSpans(plain[1:])
    assert len({packed, PackedSpans(plain)}) == 1
