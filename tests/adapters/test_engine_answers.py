"""Answers of engines, runners, agents and hubs become bounded values or nothing."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.adapters.engine_client import HttpEngines, parse_count
from tessera.adapters.hub_client import parse_commit
from tessera.adapters.kube.object_parsing import parse_object
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.domain.observed.model_reports import (
    FetchProgress,
    FetchReport,
    ShapeReport,
    parse_report,
    report_message,
)
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.runner_reports import check_report, run_report, runner_progress
from tests.properties import examples

KEYS = (
    *("server_load", "usage", "completion_tokens", "sha", "attempt", "done", "rows", "total"),
    *("phase", "ok", "state", "errors", "shape", "bytes", "commit", "message", "gpus", "index"),
    *("uuid", "product", "memoryMiB", "mode", "slices", "pods", "processes", "driverVersion"),
    *("profile", "start", "parameters", "layers", "line", "code"),
)
LEAVES = st.one_of(
    st.integers(),
    st.integers(-3, 10**7),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["shape", "fetch", "check", "run", "completed", "Enabled", "9" * 5000, "\ud800"]
    ),
    st.booleans(),
    st.none(),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=12,
)
OBJECTS = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8),
    st.fixed_dictionaries({"server_load": LEAVES}),
    st.fixed_dictionaries({"usage": st.fixed_dictionaries({"completion_tokens": LEAVES})}),
    st.fixed_dictionaries({"attempt": LEAVES, "done": LEAVES, "rows": LEAVES}),
    st.fixed_dictionaries({"done": LEAVES, "total": LEAVES}),
)
NUMBERS = st.one_of(st.integers(0, 7), st.integers(0, 7), st.integers())
LAYOUTS = st.fixed_dictionaries(
    {
        "observedGeneration": st.integers(0, 2**63 - 1),
        "gpus": st.lists(
            st.fixed_dictionaries(
                {
                    "index": NUMBERS,
                    "uuid": st.text(max_size=3),
                    "product": st.text(max_size=3),
                    "memoryMiB": NUMBERS,
                    "mode": st.just("Enabled"),
                    "slices": st.lists(
                        st.fixed_dictionaries(
                            {"profile": st.text(max_size=3), "start": NUMBERS},
                            optional={"memoryMiB": NUMBERS, "processes": NUMBERS},
                        ),
                        max_size=2,
                    ),
                }
            ),
            max_size=2,
        ),
    }
)
TEXTS = st.one_of(
    OBJECTS.map(json.dumps),
    VALUES.map(lambda value: json.dumps(value, ensure_ascii=False)),
    st.text(max_size=40),
    st.sampled_from(["[" * 20_000, '{"server_load": ' + "9" * 5000 + "}", "\ud800", "nul\x00"]),
)
BODIES = st.one_of(TEXTS.map(lambda text: text.encode(errors="surrogatepass")), st.binary())
MAX_COUNT = 2**53


def numbers(value: Any) -> list[int]:
    """Return all whole numbers within a value of pydantic."""
    match value:
        case bool():
            return []
        case int():
            return [value]
        case dict():
            return [number for inner in value.values() for number in numbers(inner)]
        case list() | tuple():
            return [number for inner in value for number in numbers(inner)]
        case _:
            return []


@given(TEXTS)
def test_no_report_raises(text: str) -> None:
    reports = (
        check_report(text),
        run_report(text),
        runner_progress(text),
        *(parse_report(model, text) for model in (ShapeReport, FetchReport, FetchProgress)),
    )
    for report in reports:
        counts = numbers(report.model_dump()) if report is not None else []
        assert all(0 <= count <= MAX_COUNT for count in counts)
    assert len(report_message(text)) <= max(8192, len(text))


@pytest.mark.parametrize(
    ("figure", "count"),
    [("-1", 0), ("NaN", 0), ("1e999", MAX_COUNT), ("9" * 5000, MAX_COUNT), ('"3"', 0), ("7", 7)],
)
def test_a_figure_hides_neither_the_state_of_a_report_nor_another_figure(
    figure: str, count: int
) -> None:
    head = '"phase": "run", "attempt": 2, "rows": 400, "completed": 400, "done": 400'
    text = f'{{{head}, "state": "completed", "resentTokens": {figure}}}'
    report, progress = run_report(text), runner_progress(text)
    assert report is not None
    assert (report.state, report.completed, report.resent_tokens) == ("completed", 400, count)
    assert progress is not None
    assert (progress.done, progress.resent_tokens) == (400, count)


@given(BODIES)
def test_no_answer_of_an_engine_a_runner_or_a_hub_raises(body: bytes) -> None:
    runner_progress(body)
    parse_report(FetchProgress, body)
    commit = parse_commit(body)
    assert commit is None or len(commit) == 40
    for path in (("server_load",), ("usage", "completion_tokens")):
        count = parse_count(body, *path)
        assert count is None or 0 <= count <= 10**9


@pytest.mark.parametrize("figure", ["-1", "1.5", "NaN", "1e999", "1000000001", '"3"', "null"])
def test_a_figure_that_no_engine_counts_to_is_no_count(figure: str) -> None:
    assert parse_count(f'{{"server_load": {figure}}}'.encode(), "server_load") is None


@given(st.one_of(OBJECTS, LAYOUTS))
def test_no_status_of_a_node_layout_raises(status: dict[str, Any]) -> None:
    body = {"metadata": {"name": "gpu-0", "resourceVersion": "7"}, "status": status}
    layout = parse_object(NODE_LAYOUTS, body).plan_input
    assert isinstance(layout, ObservedNodeLayout)
    counts = numbers(layout.status.model_dump()) if layout.status is not None else []
    assert all(0 <= count < 2**63 for count in counts)


@settings(max_examples=examples(40))
@given(
    st.one_of(
        st.binary(max_size=200),
        BODIES.map(lambda body: b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b;;\r\n\r\n" + body),
        BODIES.map(lambda body: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + body),
        BODIES.map(lambda body: b"HTTP/1.1 302 \xff\r\nLocation: x\r\n\r\n" + body),
    )
)
def test_no_bytes_of_an_engine_raise(answer: bytes) -> None:
    asyncio.run(_read(answer))


async def _read(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    engines = HttpEngines(completion_seconds=2, load_seconds=2)
    load = await engines.in_flight(f"{host}:{port}")
    assert load is None or 0 <= load <= 10**9
    problem = await engines.probe(f"http://{host}:{port}", "small")
    assert len(problem or "") < 1000
    await engines.progress(f"{host}:{port}")
    await engines.fetch_progress(f"{host}:{port}")
    await engines.close()
    server.close()
