"""`tessera simulate --from-prometheus`, against a server that answers as Prometheus does."""

import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typing_extensions import override

from tessera.adapters.prometheus.queries import each_engine
from tessera.cli.errors import CommandError
from tessera_lab.cli.simulate.arguments import simulate
from tessera_lab.cli.simulate.command import run
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace

FLEET = Path(__file__).resolve().parents[3] / "examples" / "simulate"
PROMPTS = {"50": "0", "200": "400", "1000": "900", "+Inf": "1000"}
OUTPUTS = {"10": "0", "100": "1000", "+Inf": "1000"}


class LiveService:
    """A service with 60 requests in every 5 minutes, and none in the first 20 of an hour."""

    def __init__(self, url: str, queries: list[dict[str, str]]) -> None:
        self.url, self.queries = url, queries

    def words(self, *more: str) -> list[str]:
        return ["--from-prometheus", self.url, "--fleet", str(FLEET), "--window", "1h", *more]

    def trace(self, path: Path, *more: str) -> Trace:
        run(simulate.parse(self.words("--save-trace", str(path), "--from", "0.8", *more)))
        return read_trace(str(path))


def answer(path: str, params: dict[str, str]) -> Any:
    if path == "/api/v1/query_range":
        start, end = float(params["start"]), float(params["end"])
        moments = [start + 300 * number for number in range(round((end - start) / 300) + 1)]
        values = [[at, "60" if at > end - 2400 else "NaN"] for at in moments[1:]]
        return [{"metric": {}, "values": values}]
    edges = PROMPTS if "prompt_tokens" in params["query"] else OUTPUTS
    return [{"metric": {"le": edge}, "value": [0, count]} for edge, count in edges.items()]


@contextmanager
def serving(respond: Any) -> Iterator[LiveService]:
    queries: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            params = {name: values[0] for name, values in parse_qs(url.query).items()}
            queries.append(params)
            body = json.dumps(respond(url.path, params)).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, *_: Any) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield LiveService(f"http://127.0.0.1:{server.server_port}", queries)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def live() -> Iterator[LiveService]:
    with serving(
        lambda path, params: {"status": "success", "data": {"result": answer(path, params)}}
    ) as service:
        yield service


def test_a_trace_has_the_rates_and_the_lengths_that_were_counted(
    live: LiveService, tmp_path: Path
) -> None:
    path = tmp_path / "drawn.csv"
    trace = live.trace(path, "--seed", "7")
    assert min(trace.arrivals) >= 1200
    assert len(trace) == pytest.approx(8 * 60, rel=0.15)
    assert 50 < min(trace.input_tokens) <= max(trace.input_tokens) <= 1000
    assert sum(length <= 200 for length in trace.input_tokens) / len(trace) == pytest.approx(
        0.4, abs=0.08
    )
    assert sum(length == 1000 for length in trace.input_tokens) > len(trace) / 20
    # By logarithm, half of the lengths from 10 to 100 are below 32.
    assert statistics.median(trace.output_tokens) == pytest.approx(32, rel=0.2)
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("# Synthetic: drawn with seed 7 from the requests of team-a/chat")
    selector = 'namespace="team-a",tessera_dev_service="chat"'
    series = "increase(vllm:request_prompt_tokens_count{%s}[300s])"
    assert live.queries[0]["query"] == f"sum({each_engine(series, matchers=selector)})"


def test_the_seed_decides_what_is_drawn(live: LiveService, tmp_path: Path) -> None:
    first = live.trace(tmp_path / "first.csv.gz")
    assert first.arrivals == live.trace(tmp_path / "second.csv").arrivals
    assert first.arrivals != live.trace(tmp_path / "third.csv", "--seed", "2").arrivals


def test_the_report_says_that_the_trace_is_synthetic(live: LiveService) -> None:
    words = live.words("--from", "0.8", "--selector", 'job="engines"')
    text = run(simulate.parse(words)).text
    assert "Trace synthetic-chat-seed-1: " in text
    assert "Synthetic: drawn with seed 1 from the requests of team-a/chat in the 1h until" in text
    assert {'job="engines"' in query["query"] for query in live.queries} == {True}


@pytest.mark.parametrize(
    ("respond", "problem"),
    [
        (lambda *_: {"status": "error", "error": "parse error"}, "status 'error'"),
        (lambda *_: {"status": "success", "data": {"result": []}}, "has no request in 1h by"),
        (lambda *_: {"status": "success", "data": {}}, "KeyError"),
        (lambda *_: [], "TypeError"),
    ],
)
def test_an_answer_that_cannot_be_used_is_a_sentence(respond: Any, problem: str) -> None:
    with serving(respond) as service, pytest.raises(CommandError) as error:
        run(simulate.parse(service.words()))
    assert f"--from-prometheus {service.url}" in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["--window", "7"], "--window 7: write a span from 5m to 30d"),
        (["--window", "90d"], "--window 90d: write a span"),
        (["--trace", "x.csv"], "give --trace FILE or --from-prometheus URL, and not both"),
        (["--save-trace", "/nowhere/x.csv"], "--save-trace /nowhere/x.csv cannot be written"),
        ([], "Connection refused"),
    ],
)
def test_a_wrong_option_is_a_sentence_with_its_fix(words: list[str], fix: str) -> None:
    with pytest.raises(CommandError) as error:
        run(
            simulate.parse(
                ["--from-prometheus", "http://127.0.0.1:9", "--fleet", str(FLEET), *words]
            )
        )
    assert fix in str(error.value)
