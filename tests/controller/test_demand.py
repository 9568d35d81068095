"""Reports of gateways: who may send them, what they may hold, and that they wake the fleet."""

import asyncio
import json
import math
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import Field
from typing_extensions import override

from tessera.adapters import certificates
from tessera.adapters.clock import now
from tessera.adapters.kube.installation_pods import operator_addresses, other_gateways
from tessera.api.gateway_demand import (
    DEMAND_PATH,
    MAX_REPORT_BYTES,
    MAX_REPORT_SERVICES,
    PART_LIMITS,
    PART_SERVICES,
    DemandReport,
    read_report,
)
from tessera.api.meta import Wire
from tessera.api.ref import Ref
from tessera.controller import demand as demand_module
from tessera.controller.certificates import certificate_files, server_context, write_pair
from tessera.controller.demand import DemandReceiver, serve_demand
from tessera.controller.https_server import HttpsServer
from tessera.domain.observed.charges import AccountCharge, LimitCharges, LimitId
from tessera.domain.observed.demand import (
    ArrivedTokens,
    GatewayDemand,
    cut_demand,
    fleet_charges,
)
from tessera.gateway.fleet import demand as gateway_demand
from tessera.gateway.fleet.demand import DemandReporter, OperatorAccess
from tessera.ports import RejectedDemand
from tessera.reconcile.observe import Observations
from tests.adapters.small_server import connected_cluster
from tests.builders import at

CHAT = Ref("team-a", "chat")
GATEWAY = "gateway"
NO_CONTENT = HTTPStatus.NO_CONTENT
DEADLINE_SECONDS = 60


class NotifyingReceiver(DemandReceiver):
    """Says that a report came, and refuses some."""

    def __init__(self, receiving: "Receiving", *arguments: Any) -> None:
        super().__init__(*arguments)
        self._receiving = receiving
        self.received = asyncio.Event()

    @override
    def receive(self, report: DemandReport, row_faults: Sequence[str] = ()) -> HTTPStatus:
        self._receiving.received += 1
        if self._receiving.refuses(report):
            return HTTPStatus.TOO_MANY_REQUESTS
        status = super().receive(report, row_faults)
        self.received.set()
        return status


@dataclass
class Receiving:
    """A receiver with its clock, and how often it woke the fleet."""

    observations: Observations = field(default_factory=Observations)
    seconds: float = 0
    leading: bool = True
    woken: int = 0
    rejected: Counter[RejectedDemand] = field(default_factory=Counter)
    received: int = 0
    refuses: Callable[[DemandReport], bool] = lambda _: False

    def __post_init__(self) -> None:
        self.receiver = NotifyingReceiver(
            self,
            self.observations,
            lambda: at(self.seconds),
            self.wake,
            lambda: self.leading,
            lambda reason, count: self.rejected.update({reason: count}),
        )

    def wake(self) -> None:
        self.woken += 1

    def receive(self, gateway: str = "gateway-0", **fields: Any) -> HTTPStatus:
        services = [{"namespace": "team-a", "name": "chat", **fields}] if fields else []
        body = {"gateway": gateway, "services": services}
        return self.receiver.receive(DemandReport.model_validate(body))

    def demand(self, gateway: str = "gateway-0") -> GatewayDemand | None:
        return self.observations.gateway_reports[gateway].demand.get(CHAT)


def test_each_gateway_has_one_report_the_last_one() -> None:
    receiving = Receiving()
    assert receiving.receive(queued=3, arrived=2, inFlight=1, predictedSeconds=0.5) is NO_CONTENT
    assert receiving.demand() == GatewayDemand(
        arrived=2, queued=3, in_flight=1, predicted_seconds=0.5
    )
    receiving.receive("gateway-1", queued=1)
    receiving.receive(arrived=2, sized=1, promptTokens=300, answerTokens=20)
    assert receiving.demand() == GatewayDemand(arrived=2, tokens=ArrivedTokens(1, 300, 20))
    receiving.receive()
    assert receiving.demand() is None
    assert receiving.demand("gateway-1") == GatewayDemand(queued=1)


def test_a_gateway_that_went_silent_is_forgotten_and_their_number_is_bounded() -> None:
    receiving = Receiving()
    for index in range(64):
        assert receiving.receive(f"gateway-{index}") is NO_CONTENT
    assert receiving.receive("one-more") is HTTPStatus.TOO_MANY_REQUESTS
    assert receiving.rejected == {RejectedDemand.TOO_MANY_GATEWAYS: 1}
    assert receiving.receive("gateway-7") is NO_CONTENT
    assert receiving.receiver.count_gateways() == 64
    receiving.seconds = 6
    assert receiving.receiver.count_gateways() == 0
    assert receiving.receive("one-more") is NO_CONTENT
    assert receiving.receiver.count_gateways() == 1
    assert receiving.observations.gateway_reports.keys() == {"one-more"}


def test_the_fleet_is_woken_when_a_request_begins_to_wait() -> None:
    receiving = Receiving()
    for fields, woken in (
        ({"inFlight": 3}, 0),
        ({"queued": 1}, 1),
        ({"queued": 9}, 1),
        ({}, 1),
        ({"queued": 1}, 2),
    ):
        receiving.receive("gateway-0", **fields)
        assert receiving.woken == woken


def test_a_standby_takes_no_report() -> None:
    receiving = Receiving(leading=False)
    assert receiving.receive(queued=1) is HTTPStatus.SERVICE_UNAVAILABLE
    assert receiving.observations.gateway_reports == {}


@asynccontextmanager
async def a_server(folder: Path, receiving: Receiving) -> AsyncIterator[HttpsServer]:
    files = certificate_files(folder)
    issued = certificates.issue("localhost", now(), timedelta(days=1))
    write_pair(files, issued.pair)
    (folder / "ca.crt").write_text(issued.authority, encoding="ascii")
    (folder / "token").write_text(f"{GATEWAY}\n", encoding="ascii")
    context = server_context(files)

    def check(token: str, _: str) -> HTTPStatus:
        return HTTPStatus.OK if token == GATEWAY else HTTPStatus.FORBIDDEN

    loop = asyncio.get_running_loop()
    address = ("127.0.0.1", 0)
    server = serve_demand(address, receiving.receiver, loop, tls=lambda: context, check=check)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[HttpsServer, Receiving]]:
    receiving = Receiving()
    async with a_server(tmp_path, receiving) as server:
        yield server, receiving


def connection_to(server: HttpsServer) -> HTTPSConnection:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection(
        "127.0.0.1", server.server_port, timeout=DEADLINE_SECONDS, context=context
    )


def send(
    connection: HTTPSConnection, body: bytes, path: str = DEMAND_PATH, **headers: str
) -> HTTPResponse:
    connection.request("POST", path, body, {"Authorization": f"Bearer {GATEWAY}", **headers})
    response = connection.getresponse()
    response.read()
    return response


REPORT = json.dumps(
    {"gateway": "gateway-0", "services": [{"namespace": "team-a", "name": "chat", "queued": 2}]}
).encode()


async def test_only_gateways_report_and_only_there(server: tuple[HttpsServer, Receiving]) -> None:
    serving, receiving = server
    for path, headers, status in (
        (DEMAND_PATH, {"Authorization": ""}, 401),
        (DEMAND_PATH, {"Authorization": "Bearer other"}, 403),
        ("/metrics", {}, 404),
        (DEMAND_PATH, {}, 204),
    ):
        connection = connection_to(serving)
        response = await asyncio.to_thread(send, connection, REPORT, path, **headers)
        assert response.status == status
        connection.close()
    assert receiving.demand() == GatewayDemand(queued=2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"gateway": "g", "services": [], "more": 1}',
        b'{"gateway": "%s"}' % (b"x" * 300),
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)
async def test_what_is_no_report_is_refused_and_changes_nothing(
    server: tuple[HttpsServer, Receiving], body: bytes
) -> None:
    serving, receiving = server
    connection = connection_to(serving)
    assert (await asyncio.to_thread(send, connection, body)).status == 400
    connection.close()
    assert receiving.observations.gateway_reports == {}
    assert receiving.rejected == {RejectedDemand.INVALID_REPORT: 1}


@pytest.mark.parametrize(
    "row",
    [
        b'{"namespace": "a", "name": "b", "queued": -1}',
        b'{"namespace": "a", "name": "b", "queued": 1e99}',
        b'{"namespace": "a", "name": "b", "sized": 1, "promptTokens": -1}',
        b'{"namespace": "a", "name": "b", "predictedSeconds": NaN}',
        b'{"namespace": "a", "name": "b", "more": 1}',
        b'{"namespace": "../a", "name": "b"}',
        b"[]",
        b"null",
    ],
)
async def test_an_invalid_row_is_left_out_and_costs_no_other_its_report(
    server: tuple[HttpsServer, Receiving], caplog: pytest.LogCaptureFixture, row: bytes
) -> None:
    serving, receiving = server
    connection = connection_to(serving)
    body = REPORT.replace(b'"services": [', b'"services": [%b, %b, ' % (row, row))
    for _ in range(2):
        assert (await asyncio.to_thread(send, connection, body)).status == 204
    connection.close()
    assert receiving.observations.gateway_reports["gateway-0"].demand.keys() == {CHAT}
    assert receiving.demand() == GatewayDemand(queued=2)
    assert receiving.rejected == {RejectedDemand.INVALID_ROW: 4}
    (record,) = caplog.records
    assert "InvalidRow: gateway-0: " in record.message


async def test_a_report_of_too_many_services_is_cut(
    server: tuple[HttpsServer, Receiving],
) -> None:
    """One of an earlier version names every service that had a request since its start."""
    serving, receiving = server
    rows = ",".join(
        f'{{"namespace":"a","name":"b{number}"}}' for number in range(MAX_REPORT_SERVICES + 3)
    )
    body = f'{{"gateway":"gateway-0","services":[{rows}]}}'.encode()
    connection = connection_to(serving)
    assert (await asyncio.to_thread(send, connection, body)).status == 204
    connection.close()
    assert len(receiving.observations.gateway_reports["gateway-0"].demand) == MAX_REPORT_SERVICES
    assert receiving.rejected == {RejectedDemand.INVALID_ROW: 3}


def test_parts_of_a_report_count_together_once_the_last_comes() -> None:
    receiving = Receiving()
    code, sql = Ref("team-a", "code"), Ref("team-a", "sql")

    def receive(*services: Ref, more_follows: bool = False) -> None:
        rows = [{"namespace": ref.namespace, "name": ref.name, "queued": 1} for ref in services]
        body = {"gateway": "gateway-0", "moreFollows": more_follows, "services": rows}
        assert receiving.receiver.receive(DemandReport.model_validate(body)) is NO_CONTENT

    receive(code, more_follows=True)
    assert receiving.observations.gateway_reports == {}
    for woken, expected in ((1, {CHAT}), (2, {CHAT, code, sql}), (2, {CHAT, code, sql})):
        receive(CHAT)
        demand = receiving.observations.gateway_reports["gateway-0"].demand
        assert (receiving.woken, set(demand)) == (woken, expected)
        receive(code, more_follows=True)
        receive(sql, more_follows=True)
        assert receiving.observations.gateway_reports["gateway-0"].demand is demand


def test_the_parts_of_a_report_have_one_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_module, "MAX_REPORT_SERVICES", 5)
    receiving = Receiving()
    receiving.receive()
    for part in range(4):
        rows = [{"namespace": "evil", "name": f"p{part}-{number}"} for number in range(2)]
        body = {"gateway": "gateway-0", "moreFollows": part < 3, "services": rows}
        receiving.receiver.receive(DemandReport.model_validate(body))
    assert len(receiving.observations.gateway_reports["gateway-0"].demand) == 5
    assert receiving.rejected == {RejectedDemand.INVALID_ROW: 3}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": str(MAX_REPORT_BYTES + 1)}, 413),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "many"}, 411),
    ],
)
async def test_bodies_without_a_bound_are_not_read(
    server: tuple[HttpsServer, Receiving], headers: dict[str, str], status: int
) -> None:
    serving, _ = server
    connection = connection_to(serving)
    assert (await asyncio.to_thread(send, connection, b"{}", **headers)).status == status
    connection.close()


async def test_a_gateway_keeps_its_connection(server: tuple[HttpsServer, Receiving]) -> None:
    serving, receiving = server
    connection = connection_to(serving)
    await asyncio.to_thread(send, connection, REPORT)
    first = connection.sock
    await asyncio.to_thread(send, connection, REPORT)
    assert connection.sock is first
    connection.close()
    assert receiving.woken == 1


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
    monkeypatch.setattr(gateway_demand, "_TIMEOUT", timeout)


@asynccontextmanager
async def a_reporter(
    server: HttpsServer,
    folder: Path,
    demand: dict[Ref, GatewayDemand],
    *,
    addresses: Sequence[str] = ("127.0.0.1",),
    host: str = "localhost",
    due: asyncio.Event | None = None,
    charges: Mapping[LimitId, LimitCharges] = MappingProxyType({}),
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[DemandReporter]:
    async def find() -> Sequence[str]:
        return addresses

    access = OperatorAccess(find=find, host=host, folder=folder, port=server.server_port)
    reporter = DemandReporter(
        access,
        "gateway-0",
        lambda: demand,
        due or asyncio.Event(),
        read_charges=lambda: charges,
        monotonic=monotonic,
    )
    try:
        yield reporter
    finally:
        await reporter.close()


@pytest.mark.parametrize("interval", [0.01, 3600])
async def test_a_gateway_reports_regularly_and_at_once_when_a_request_waits(
    server: tuple[HttpsServer, Receiving],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interval: float,
) -> None:
    monkeypatch.setattr(gateway_demand, "INTERVAL_SECONDS", interval)
    serving, receiving = server
    demand = {CHAT: GatewayDemand(in_flight=1, predicted_seconds=0.25)}
    due = asyncio.Event()
    async with a_reporter(serving, tmp_path, demand, due=due) as reporter:
        running = asyncio.create_task(reporter.run())
        async with asyncio.timeout(DEADLINE_SECONDS):
            await receiving.receiver.received.wait()
        assert receiving.demand() == demand[CHAT]
        demand[CHAT] = GatewayDemand(queued=4)
        if interval > DEADLINE_SECONDS:
            due.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while receiving.demand() != demand[CHAT]:
                receiving.receiver.received.clear()
                await receiving.receiver.received.wait()
        assert receiving.woken == 1
        running.cancel()
        await asyncio.wait([running])


async def test_a_gateway_that_meets_no_leader_tries_again_and_says_so_once(
    server: tuple[HttpsServer, Receiving], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving, receiving = server
    receiving.leading = False
    async with a_reporter(
        serving, tmp_path, {CHAT: GatewayDemand(queued=1)}, monotonic=lambda: receiving.seconds
    ) as reporter:
        assert reporter.failing_seconds == 0
        await reporter.report()
        receiving.seconds = 7
        await reporter.report()
        assert reporter.failing_seconds == 7
        (record,) = caplog.records
        assert "no operator leads" in record.message
        receiving.leading = True
        await reporter.report()
        assert reporter.failing_seconds == 0
    assert receiving.demand() == GatewayDemand(queued=1)


async def test_a_value_that_no_operator_takes_costs_no_other_service_its_report(
    server: tuple[HttpsServer, Receiving], tmp_path: Path
) -> None:
    serving, receiving = server
    negative = GatewayDemand(queued=1, predicted_seconds=-1e-12)
    demand = {Ref("team-a", "code"): negative, CHAT: GatewayDemand(queued=1)}
    async with a_reporter(serving, tmp_path, demand) as reporter:
        await reporter.report()
        assert reporter.failing_seconds == 0
    assert receiving.demand() == GatewayDemand(queued=1)
    assert receiving.rejected == {RejectedDemand.INVALID_ROW: 1}


def a_fleet(services: int, **demand: Any) -> dict[Ref, GatewayDemand]:
    """Return the demand of services with the longest names."""
    return {
        Ref("n" * 63, f"{number:05}{'s' * 58}"): GatewayDemand(**demand)
        for number in range(services)
    }


async def test_a_fleet_of_20_000_services_is_reported_in_bounded_parts(
    server: tuple[HttpsServer, Receiving], tmp_path: Path
) -> None:
    serving, receiving = server
    tokens = ArrivedTokens(10**6, 10**12, 10**12, 10**18, 10**6, 10**6, 10**18, 10**6, 10**6)
    largest = {"arrived": 10**6, "tokens": tokens, "queued": 10**6, "in_flight": 10**6}
    demand = a_fleet(20_000, **largest, predicted_seconds=0.1234567890123456e9)
    async with a_reporter(serving, tmp_path, demand) as reporter:
        await reporter.report()
        assert len(receiving.observations.gateway_reports["gateway-0"].demand) == PART_SERVICES
        before = receiving.received
        await reporter.report()
        assert reporter.failing_seconds == 0
    # One more asks the operator what it knows.
    assert receiving.received - before == math.ceil(20_000 / PART_SERVICES) + 1
    assert receiving.observations.gateway_reports["gateway-0"].demand == demand
    assert not receiving.rejected


async def test_a_part_that_is_refused_costs_its_services_alone(
    server: tuple[HttpsServer, Receiving], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving, receiving = server
    demand = a_fleet(PART_SERVICES * 3, in_flight=1)
    refused = list(demand)[PART_SERVICES * 2 - 1]
    receiving.refuses = lambda report: refused.name in {row.name for row in report.services}
    async with a_reporter(serving, tmp_path, demand) as reporter:
        for _ in range(3):
            await reporter.report()
        assert reporter.failing_seconds == 0
    reported = receiving.observations.gateway_reports["gateway-0"].demand
    assert reported.keys() == set([*demand][:PART_SERVICES] + [*demand][2 * PART_SERVICES :])
    (record,) = caplog.records
    assert "HTTP 429" in record.message


async def test_an_operator_that_knows_no_parts_has_those_that_wait(
    server: tuple[HttpsServer, Receiving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EarlierReport(Wire):
        """What an operator took before there were parts."""

        gateway: str
        services: Annotated[tuple[Any, ...], Field(max_length=5000)] = ()

    def read(body: bytes) -> tuple[DemandReport, tuple[str, ...]]:
        EarlierReport.model_validate_json(body)
        return read_report(body)

    monkeypatch.setattr(demand_module, "read_report", read)
    serving, receiving = server
    demand = a_fleet(20_000, in_flight=1) | {CHAT: GatewayDemand(queued=1)}
    async with a_reporter(serving, tmp_path, demand) as reporter:
        for _ in range(2):
            await reporter.report()
        assert reporter.failing_seconds == 0
    assert receiving.demand() == GatewayDemand(queued=1)
    assert len(receiving.observations.gateway_reports["gateway-0"].demand) == PART_SERVICES


async def test_what_waits_is_in_the_first_part_however_many_of_another_namespace_wait(
    server: tuple[HttpsServer, Receiving], tmp_path: Path
) -> None:
    serving, receiving = server
    demand = {**a_fleet(PART_SERVICES, queued=1), CHAT: GatewayDemand(queued=1)}
    async with a_reporter(serving, tmp_path, demand) as reporter:
        await reporter.report()
    assert receiving.demand() == GatewayDemand(queued=1)


def test_of_too_many_services_the_namespace_with_most_leaves_out_those_without_a_wait() -> None:
    evil = {Ref("evil", f"s{number}"): GatewayDemand(arrived=1) for number in range(9)}
    waiting = {Ref("evil", "waits"): GatewayDemand(queued=1)}
    others = {Ref(f"team-{team}", "chat"): GatewayDemand(arrived=1) for team in range(3)}
    demand = {**evil, **waiting, **others}
    assert cut_demand(demand, len(demand)) == demand
    assert cut_demand(demand, 5).keys() == {*waiting, *others, Ref("evil", "s0")}


@pytest.mark.parametrize("missing", ["ca.crt", "token"])
async def test_a_gateway_without_its_files_says_so_and_goes_on(
    server: tuple[HttpsServer, Receiving],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    missing: str,
) -> None:
    serving, receiving = server
    file = tmp_path / missing
    text = file.read_text(encoding="ascii")
    file.unlink()
    async with a_reporter(serving, tmp_path, {}) as reporter:
        await reporter.report()
        assert "No such file" in caplog.records[0].message
        file.write_text(text, encoding="ascii")
        await reporter.report()
    assert "gateway-0" in receiving.observations.gateway_reports


async def test_a_gateway_looks_for_the_leader_among_all_operators(
    server: tuple[HttpsServer, Receiving], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving, receiving = server
    # Nobody listens at the first address.
    addresses = ["127.99.0.1", "127.0.0.1"]
    async with a_reporter(serving, tmp_path, {}, addresses=addresses) as reporter:
        await reporter.report()
    assert "gateway-0" in receiving.observations.gateway_reports
    async with a_reporter(serving, tmp_path, {}, addresses=()) as reporter:
        await reporter.report()
    assert [record.message for record in caplog.records] == [
        "demand is not reported to the operator: no pod of the operator, retrying"
    ]


async def test_an_operator_with_the_certificate_of_another_name_gets_no_token(
    server: tuple[HttpsServer, Receiving], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving, receiving = server
    async with a_reporter(serving, tmp_path, {}, host="other") as reporter:
        await reporter.report()
    assert "Hostname mismatch" in caplog.records[0].message
    assert receiving.observations.gateway_reports == {}


async def test_only_running_pods_of_the_operator_and_other_gateways_are_asked() -> None:
    selectors = []

    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/api/v1/namespaces/tessera-system/pods"
        selectors.append(request.query["labelSelector"])
        statuses = [
            {"status": {"phase": "Running", "podIP": "10.0.0.7"}},
            {"status": {"phase": "Running"}},
            {"status": {"phase": "Pending", "podIP": "10.0.0.8"}},
            {},
            {"status": {"phase": "Running", "podIP": "10.0.0.9"}},
        ]
        items = [
            {"metadata": {"name": f"pod-{number}"}, **status}
            for number, status in enumerate(statuses)
        ]
        return web.json_response({"items": items})

    async with connected_cluster(answer) as cluster:
        assert await operator_addresses(cluster, "tessera-system") == ["10.0.0.7", "10.0.0.9"]
        others = await other_gateways(cluster, "tessera-system", "pod-0")
    assert others == {"pod-4": "10.0.0.9"}
    names = [selector.removeprefix("app.kubernetes.io/name=") for selector in selectors]
    assert names == ["tessera-operator", "tessera-gateway"]


MONTH = LimitId("team-a", "charge-month")
KEYS = LimitId("team-a", "charge-day-key")
START = 1_793_491_200


def charges_of(receiving: Receiving) -> Mapping[LimitId, LimitCharges] | None:
    reports = receiving.observations.gateway_reports.values()
    return fleet_charges(reports, at(receiving.seconds))


def receive_charges(receiving: Receiving, gateway: str, *limits: dict[str, Any]) -> None:
    for body in ({"moreFollows": True, "limits": limits}, {}):
        report = DemandReport.model_validate({"gateway": gateway, **body})
        assert receiving.receiver.receive(report) is NO_CONTENT


def a_limit(*accounts: tuple[int, str], limit: LimitId = KEYS, **fields: Any) -> dict[str, Any]:
    rows = [{"settled": settled, "member": member} for settled, member in accounts]
    return {**limit._asdict(), "start": START, "accounts": rows, **fields}


async def test_what_limits_were_charged_comes_with_the_demand(
    server: tuple[HttpsServer, Receiving], tmp_path: Path
) -> None:
    serving, receiving = server
    charges = {
        MONTH: LimitCharges(start=START, accounts=(AccountCharge(10**30, 7),)),
        KEYS: LimitCharges(start=START, members=70, accounts=(AccountCharge(5, 0, "ci"),)),
    }
    demand = {CHAT: GatewayDemand(queued=1)}
    async with a_reporter(serving, tmp_path, demand, charges=charges) as reporter:
        for _ in range(2):
            await reporter.report()
    assert charges_of(receiving) == charges
    assert receiving.demand() == GatewayDemand(queued=1)
    receiving.seconds = 6
    assert charges_of(receiving) is None


def test_a_request_that_needs_more_than_is_lent_wakes_the_fleet_once() -> None:
    receiving = Receiving()
    outside = LimitId("team-a", "outside Month")

    def woken_by(*needs: int) -> int:
        before = receiving.woken
        rows = [{"settled": 5, "lent": 1, "need": need} for need in needs]
        receive_charges(receiving, "gateway-0", {**a_limit(limit=outside), "accounts": rows})
        return receiving.woken - before

    receive_charges(receiving, "gateway-0")
    assert [woken_by(need) for need in (0, 7, 7, 9, 0, 7)] == [0, 1, 0, 0, 0, 1]
    charges = charges_of(receiving)
    assert charges is not None
    assert charges[outside].accounts == (AccountCharge(5, 1, "", 7),)


def test_of_two_gateways_the_request_that_needs_least_counts() -> None:
    receiving = Receiving()
    outside = LimitId("team-a", "outside Month")
    receive_charges(receiving, "gateway-0")
    for settled, need, expected in ((5, 0, 0), (6, 9, 9), (4, 3, 3), (8, 0, 3)):
        gateway = f"gateway-{settled}"
        rows = [{"settled": settled, "need": need}]
        receive_charges(receiving, gateway)
        receive_charges(receiving, gateway, {**a_limit(limit=outside), "accounts": rows})
        charges = charges_of(receiving)
        assert charges is not None
        assert charges[outside].accounts[0].need == expected


def tokens_of(receiving: Receiving) -> ArrivedTokens:
    demand = receiving.demand()
    assert demand is not None
    return demand.tokens


async def test_an_operator_without_charges_gets_the_demand_and_is_asked_once(
    server: tuple[HttpsServer, Receiving],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An earlier one refuses a report with a field that it does not know."""
    serving, receiving = server

    class EarlierReport(Wire):
        gateway: str
        more_follows: bool = False
        services: tuple[Any, ...] = ()

    asked = []

    def read_earlier(body: bytes) -> tuple[DemandReport, tuple[str, ...]]:
        fields = (b"squares", b"waited", b"overflow", b"routed", b"lateAlone")
        assert not any(field in body for field in fields)
        asked.append(b"limits" in body)
        EarlierReport.model_validate_json(body)
        return read_report(body)

    monkeypatch.setattr(demand_module, "read_report", read_earlier)
    charges = {MONTH: LimitCharges(start=START, accounts=(AccountCharge(5),))}
    tokens = ArrivedTokens(1, 100, 20, 10_000, 3, 2, 9, 4, 1)
    demand = {CHAT: GatewayDemand(arrived=1, tokens=tokens, queued=1)}
    async with a_reporter(serving, tmp_path, demand, charges=charges) as reporter:
        for _ in range(4):
            await reporter.report()
    assert asked == [False, True, False, False, False]
    assert tokens_of(receiving) == ArrivedTokens(1, 100, 20)
    assert charges_of(receiving) == {}
    assert not [each for each in caplog.records if "retrying" in each.message]


async def test_squares_and_overflow_are_told_once_the_operator_knows_them(
    server: tuple[HttpsServer, Receiving], tmp_path: Path
) -> None:
    serving, receiving = server
    tokens = ArrivedTokens(1, 100, 20, 10_000, 3, 2, 9, 4, 1)
    demand = {CHAT: GatewayDemand(arrived=1, tokens=tokens)}
    async with a_reporter(serving, tmp_path, demand) as reporter:
        await reporter.report()
        assert tokens_of(receiving) == ArrivedTokens(1, 100, 20)
        await reporter.report()
        assert tokens_of(receiving) == tokens


def test_of_two_gateways_the_largest_sum_of_an_account_counts() -> None:
    receiving = Receiving()
    receive_charges(receiving, "gateway-0")
    receive_charges(receiving, "gateway-1")
    receive_charges(receiving, "gateway-0", a_limit((9, "ci"), (3, "dev"), members=2))
    # What is of one second ago is of the same window.
    receiving.seconds = 1
    receive_charges(receiving, "gateway-1", a_limit((8, "ci"), (4, "dev"), (1, "x"), members=3))
    [charges] = (charges_of(receiving) or {}).values()
    assert charges == LimitCharges(
        start=START,
        members=3,
        accounts=(AccountCharge(9, 0, "ci"), AccountCharge(4, 0, "dev"), AccountCharge(1, 0, "x")),
    )
    # The next window counts once a gateway has begun it.
    receive_charges(receiving, "gateway-1", a_limit((2, "ci"), start=START + 86400))
    assert (charges_of(receiving) or {})[KEYS].start == START + 86400
    # A gateway that tells of nothing any more is not asked for it.
    for _ in range(6):
        receiving.seconds += 1
        receive_charges(receiving, "gateway-0")
    assert charges_of(receiving) == {}


def test_reported_limits_are_bounded_and_an_invalid_one_costs_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [a_limit((1, "a"), limit=LimitId("team-a", f"l{number}")) for number in range(3)]
    invalid = [{**rows[0], "start": -1}, {**rows[0], "accounts": [{}] * 6}, {**rows[0], "more": 1}]
    body = {"gateway": "g", "moreFollows": True, "limits": [*invalid, *rows]}
    report, faults = read_report(json.dumps(body).encode())
    assert (len(report.limits), len(faults)) == (3, 3)
    monkeypatch.setattr(demand_module, "MAX_REPORT_LIMITS", 2)
    receiving = Receiving()
    receive_charges(receiving, "gateway-0")
    receive_charges(receiving, "gateway-0", *rows)
    assert len(charges_of(receiving) or {}) == 2


def test_the_longest_rows_of_limits_fit_into_a_part() -> None:
    row = a_limit(*[(10**30, "k" * 255)] * 5, limit=LimitId("t" * 253, "l" * 320), members=10**6)
    body = {"gateway": "g" * 253, "moreFollows": True, "limits": [row] * PART_LIMITS}
    report = DemandReport.model_validate(body)
    assert len(report.model_dump_json(by_alias=True)) < MAX_REPORT_BYTES
