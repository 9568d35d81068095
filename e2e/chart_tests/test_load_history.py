"""The recorded load of a service is read back from a real Prometheus as it was."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tessera.adapters.prometheus.load_history import LoadHistories, RecordedService
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.domain.observed.load_history import SPAN, LoadHistory, LoadSpan
from tessera.domain.observed.snapshot import Ref
from tessera.ports import MetricsError
from tests.builders import NOW
from tests.prometheus import running_prometheus
from tests.recorded_load import RecordedEngine, record_load
from world.testing import eventually

CHAT = Ref("team-a", "chat")
ENGINE = RecordedEngine(service=CHAT, variant="h100-1gpu", model_name="chat")
END = NOW


def a_span(spans_before_end: int, rate: float = 2.0) -> LoadSpan:
    return LoadSpan(
        end=END - spans_before_end * SPAN,
        rate=rate,
        input_tokens=1200.0,
        output_tokens=300.0,
        input_variation=0.8,
        resident_tokens=1500.0,
        cached_share=0.25,
    )


def spans_between(first: int, last: int, rate: float = 2.0) -> list[LoadSpan]:
    return [a_span(number, rate) for number in range(first, last - 1, -1)]


async def read(folder: Path) -> LoadHistory:
    at, service = END + timedelta(minutes=3), RecordedService(CHAT, "chat")

    async def is_up() -> None:
        try:
            await metrics.count_series(["up"])
        except MetricsError as error:
            raise AssertionError from error

    async with running_prometheus(folder, {}, folder) as url:
        metrics = PrometheusMetrics(url, lambda: at)
        await eventually(is_up)
        histories = LoadHistories(metrics)
        while histories.due([service], at):
            await histories.read(service, at)
    return histories.by_service[CHAT]


def numbers_of(span: LoadSpan) -> tuple[float, ...]:
    return (
        span.rate,
        span.input_tokens,
        span.output_tokens,
        span.resident_tokens,
        span.cached_share,
    )


async def test_spans_are_read_as_they_were_recorded(tmp_path: Path) -> None:
    # An hour is missing after the first ones, and the last ones are of an engine that starts again.
    runs = (
        spans_between(26, 22),
        spans_between(15, 10, rate=5.0),
        [*spans_between(9, 4, rate=1.0), *spans_between(3, 0, rate=0.0)],
    )
    former = replace(ENGINE, pod="former", variant="h100-2gpu", kv_tokens=300_000)
    record_load(tmp_path, former, runs[0])
    half = [replace(span, rate=span.rate / 2) for span in runs[1]]
    record_load(tmp_path, ENGINE, half, runs[2])
    record_load(tmp_path, replace(ENGINE, pod="second"), half)
    # Another model under the name, another service, and a neighbour of another namespace.
    for engine in (
        replace(ENGINE, pod="other", model_name="former"),
        replace(ENGINE, pod="other", service=Ref("team-a", "chat-2")),
        replace(ENGINE, pod="other", service=Ref("team-b", "chat")),
    ):
        record_load(tmp_path, engine, spans_between(8, 6, rate=100.0))
    history = await read(tmp_path)
    spans = [span for run in runs for span in run]
    assert [span.end for span in history.spans] == [span.end for span in spans]
    for seen, recorded in zip(history.spans, spans, strict=True):
        if recorded.rate:
            assert numbers_of(seen) == pytest.approx(numbers_of(recorded), rel=0.01)
            assert seen.input_variation == pytest.approx(recorded.input_variation, rel=0.15)
        else:
            assert seen.rate == 0
