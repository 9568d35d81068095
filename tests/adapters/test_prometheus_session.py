"""Answers of Prometheus end in time and in size, and queries carry credentials from files."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.domain.cost.statement import ScrapeRef
from tessera.ports import MetricsError
from tests.adapters.small_server import OK, Response, raw_server
from tests.builders import NOW

DEADLINE_SECONDS = 120
EMPTY = {"status": "success", "data": {"resultType": "vector", "result": []}}


def respond_with(body: object) -> Response:
    text = json.dumps(body).encode()
    return lambda _: (OK + b"Content-Length: %d\r\n\r\n%s" % (len(text), text), b"")


async def problem_of(
    respond: Response, access: PrometheusAccess | None = None, every: float = 0, seconds: float = 60
) -> str | None:
    async with asyncio.timeout(DEADLINE_SECONDS), raw_server(respond, every) as address:
        metrics = PrometheusMetrics(f"http://{address}", lambda: NOW, access, seconds)
        return (await metrics.read()).problem


@pytest.mark.parametrize(
    ("answer", "again", "every", "seconds", "words"),
    [
        (OK + b"\r\n", b" ", 0.05, 2, "no complete answer after 2 s"),
        (OK + b"X: ", b"x", 0.05, 0.4, "TimeoutError"),
        (OK + b"\r\n", b" " * 2**20, 0, 60, "answer over 32 MiB"),
    ],
    ids=["slow-body", "slow-headers", "too-long"],
)
async def test_an_answer_without_end_is_no_reading(
    answer: bytes, again: bytes, every: float, seconds: float, words: str
) -> None:
    problem = await problem_of(lambda _: (answer, again), every=every, seconds=seconds)
    assert words in (problem or "")


@pytest.mark.parametrize(
    "body",
    [
        {"status": "error", "errorType": "internal", "error": "no such tenant"},
        {"status": "error", "data": {"resultType": "vector", "result": []}},
        {"data": {"result": []}},
        {"status": "success", "data": None},
        {"status": "success", "data": {"resultType": "vector"}},
        [],
        None,
        "success",
    ],
)
async def test_a_good_status_without_data_is_no_reading(body: object) -> None:
    problem = await problem_of(respond_with(body))
    assert (problem or "").startswith("Prometheus at http://127.0.0.1:")


async def test_a_scalar_has_no_rows() -> None:
    scalar = {"status": "success", "data": {"resultType": "scalar", "result": [1, "2"]}}
    assert await problem_of(respond_with(scalar)) is None


async def test_a_redirect_is_not_followed() -> None:
    requests: list[str] = []

    def respond(request: str) -> tuple[bytes, bytes]:
        requests.append(request)
        return b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", b""

    assert "302" in str(await problem_of(respond))
    assert [request.split()[1].partition("?")[0] for request in requests] == ["/api/v1/query"]


async def sent_headers(access: PrometheusAccess) -> dict[str, str]:
    requests: list[str] = []

    def respond(request: str) -> tuple[bytes, bytes]:
        requests.append(request)
        return respond_with(EMPTY)(request)

    assert await problem_of(respond, access) is None
    return dict(line.split(": ", 1) for line in requests[-1].splitlines()[1:] if line)


async def test_a_token_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc.def-ghi\n")
    (tmp_path / "headers").write_text("X-Scope-OrgID: platform\n")
    access = PrometheusAccess(secret_directory=tmp_path)
    headers = await sent_headers(access)
    assert headers["Authorization"] == "Bearer abc.def-ghi"
    assert headers["X-Scope-OrgID"] == "platform"
    (tmp_path / "token").write_text("renewed")
    assert (await sent_headers(access))["Authorization"] == "Bearer renewed"


async def test_a_user_has_a_password(tmp_path: Path) -> None:
    (tmp_path / "username").write_text("tessera")
    (tmp_path / "password").write_text("päss")
    headers = await sent_headers(PrometheusAccess(secret_directory=tmp_path))
    assert headers["Authorization"] == "Basic dGVzc2VyYTpww6Rzcw=="


@pytest.mark.parametrize("name", ["token", "headers"])
async def test_a_broken_secret_is_a_problem_that_does_not_name_it(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("secret\x00secret")
    problem = await problem_of(respond_with(EMPTY), PrometheusAccess(secret_directory=tmp_path))
    assert f"{tmp_path / name}: " in str(problem)
    assert "secret\x00" not in str(problem)


async def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    access = PrometheusAccess(token_file=tmp_path / "gone")
    assert "gone" in str(await problem_of(respond_with(EMPTY), access))


async def test_a_password_in_the_url_is_in_no_message() -> None:
    metrics = PrometheusMetrics("http://user:hunter2@127.0.0.1:9/prom", lambda: NOW)
    problem = (await metrics.read()).problem
    assert str(problem).startswith("Prometheus at http://127.0.0.1:9/prom: ConnectionError")
    assert "hunter2" not in str(problem)


def forged(request: str) -> tuple[bytes, bytes]:
    """Answer with a tenant's rows, unless the query asks for those of the operator alone."""
    query = parse_qs(urlsplit(request.split()[1]).query)["query"][0]
    if 'job="tessera-system/tessera-operator",namespace="tessera-system"' in query:
        return respond_with(EMPTY)(request)
    labels = {"namespace": "evil", "pod": "liar", "state": "bribe", "tenant": "victim"}
    values = [[NOW.timestamp(), str(NOW.timestamp())]]
    result = [{"metric": labels, "value": values[0], "values": values}]
    return respond_with({"status": "success", "data": {"result": result}})(request)


async def test_the_operators_own_series_are_never_those_of_a_tenant() -> None:
    async with raw_server(forged) as address:
        metrics = PrometheusMetrics(f"http://{address}", lambda: NOW)
        assert await metrics.billed_until() is None
        assert await metrics.bill_scrapes(NOW, NOW) == {}
        assert await metrics.amounts_at(ScrapeRef((), NOW)) == {}


async def test_one_service_with_a_long_window_does_not_lengthen_the_query() -> None:
    spans: list[float] = []

    def respond(request: str) -> tuple[bytes, bytes]:
        parameters = parse_qs(urlsplit(request.split()[1]).query)
        spans.append(float(parameters["end"][0]) - float(parameters["start"][0]))
        return respond_with(EMPTY)(request)

    async with raw_server(respond) as address:
        await PrometheusMetrics(f"http://{address}", lambda: NOW).load_history(timedelta(days=30))
    assert spans == [3600] * 3


async def test_another_job_is_asked_where_the_chart_says_so() -> None:
    access = PrometheusAccess(namespace="ops", job='ops"1')
    assert access.own_target == 'job="ops\\"1",namespace="ops"'
    async with raw_server(forged) as address:
        metrics = PrometheusMetrics(f"http://{address}", lambda: NOW, access)
        with pytest.raises(MetricsError, match="bribe"):
            await metrics.amounts_at(ScrapeRef((("pod", "liar"),), NOW))
