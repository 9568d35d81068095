"""Two gateways with one database charge a tenant: one is killed, and the database goes away."""

import asyncio
import csv
import io
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import asyncpg
import httpx
import pytest

from demo.cluster import NAMESPACE, InstalledCluster, Ref
from demo.tenants import apply_spec
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.commands import run_tessera
from scenarios.gateway import (
    Gateway,
    answered,
    create_key,
    install_with_database,
    is_charged,
    ready_pods,
    service_address,
)
from tessera.adapters.clock import now
from tests.gateway.store.postgresql import PostgresqlServer, postgresql_server
from world.testing import eventually

_CLIENTS, _PODS = 50, 2
# So that both disturbances are over before the money is.
_INPUT, _OUTPUT = Decimal(10), Decimal(200)
_ACTIONS = ((50, "Notify"), (80, "HoldBatches"))
_AMOUNT, _RAISE = Decimal(20), Decimal(10)
_TOKENS = 40
_LIMIT = "spend"
# After `tessera budget raise` has written it, on a machine that does nothing else.
_RESUMED_SECONDS = 2.0
_MILLION = 10**6


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture
async def gateway(
    cluster: InstalledCluster, namespace: ScenarioNamespace, postgresql: PostgresqlServer
) -> AsyncIterator[Gateway]:
    """Two pods of the gateway with one PostgreSQL database, and a tenant without a price."""
    await install_with_database(cluster, postgresql, _PODS)
    address = await service_address(cluster)
    pods = await ready_pods(cluster, _PODS)
    async with a_budget(namespace, "100000"):
        yield Gateway(
            namespace,
            f"http://{address}/v1",
            pods[0]["status"]["podIP"],
            await create_key(namespace, "first"),
        )


@dataclass(kw_only=True)
class Spenders:
    """Clients that send requests until money refuses them."""

    gateway: Gateway
    pods: list[str]
    charged: Decimal = Decimal(0)
    """As headers said, of answers that are no stream."""
    answers: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)
    """The first of each code."""
    first_refusal: float | None = None

    async def run(self, number: int) -> None:
        """Send until a limit is used up; what a killed gateway or a lost store refuses is sent
        again."""
        stream = number % 2 == 0
        async with httpx.AsyncClient(timeout=60) as http:
            while True:
                pod = self.pods[number % _PODS]
                try:
                    code = await self._send(http, pod, stream=stream)
                except httpx.HTTPError:
                    code = "connection"
                self.statuses[code] += 1
                if code == "budget_exceeded":
                    return
                if code != "200":
                    await asyncio.sleep(0.2)

    async def _send(self, http: httpx.AsyncClient, pod: str, *, stream: bool) -> str:
        body = {
            "model": "chat",
            "prompt": "tell me everything",
            "max_tokens": _TOKENS,
            "ignore_eos": True,
            "stream": stream,
        }
        headers = {"Authorization": f"Bearer {self.gateway.key}"}
        url = f"http://{pod}:8443/v1/completions"
        response = await http.post(url, json=body, headers=headers)
        if response.status_code == 200:
            self.answers += 1
            if not stream:
                amount, _, _ = response.headers["x-tessera-charge"].partition(" ")
                self.charged += Decimal(amount)
            return "200"
        error = response.json()["error"]
        if error["code"] == "budget_exceeded":
            self.first_refusal = self.first_refusal or time.monotonic()
            self.refusals.append({**error, "headers": response.headers})
        self.messages.setdefault(str(error["code"]), f"{response.status_code} {error['message']}")
        return str(error["code"])


@dataclass(kw_only=True)
class Watched:
    """What the status of the budget said of the limit while it was spent."""

    namespace: ScenarioNamespace
    steps: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """Reached thresholds with the actions in effect, each once in a row."""

    async def run(self) -> None:
        path = f"/apis/tessera.dev/v1alpha1/tenantbudgets/{self.namespace.name}"
        while True:
            budget = await self.namespace.cluster.api.get(path)
            for limit in budget.get("status", {}).get("limits", ()):
                step = limit.get("reached", 0), tuple(limit.get("actions", ()))
                if limit["name"] == _LIMIT and self.steps[-1:] != [step]:
                    self.steps.append(step)
            await asyncio.sleep(0.5)


async def _charged(server: PostgresqlServer) -> tuple[int, int, int]:
    """Return the charges of all records, those by their tokens, and those of the hourly sums."""
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        row = await connection.fetchrow(
            "SELECT coalesce(sum(charge_nanos), 0) AS charged,"
            " coalesce(sum(input_tokens) FILTER (WHERE charge_nanos IS NOT NULL), 0) AS input,"
            " coalesce(sum(output_tokens) FILTER (WHERE charge_nanos IS NOT NULL), 0) AS output"
            " FROM usage_records"
        )
        total = await connection.fetchval("SELECT coalesce(sum(charge_nanos), 0) FROM charge_sums")
    finally:
        await connection.close()
    by_tokens = (int(row["input"]) * _INPUT + int(row["output"]) * _OUTPUT) * 10**9 / _MILLION
    return int(row["charged"]), int(by_tokens), int(total)


@pytest.mark.full
async def test_no_more_than_a_limit_is_charged_whatever_dies(
    gateway: Gateway, postgresql: PostgresqlServer
) -> None:
    namespace = gateway.namespace
    cluster = namespace.cluster
    await namespace.apply_service(replicas=2)
    await namespace.wait_until_ready(within=120)
    await answered(gateway)
    await _set_money(namespace)
    pods = [pod["status"]["podIP"] for pod in await ready_pods(cluster, _PODS)]
    spenders = Spenders(gateway=gateway, pods=pods)
    await eventually(partial(is_charged, gateway), within=180)
    watched = Watched(namespace=namespace)
    watching = asyncio.create_task(watched.run())
    async with asyncio.timeout(300), asyncio.TaskGroup() as tasks:
        for number in range(_CLIENTS):
            tasks.create_task(spenders.run(number))
        disturbed = tasks.create_task(_disturb(cluster, postgresql))
    limit = int(_AMOUNT * 10**9)

    async def all_is_recorded() -> tuple[int, int]:
        charged, by_tokens, total = await _charged(postgresql)
        assert charged == total
        assert abs(charged - by_tokens) <= spenders.answers
        # Less than each client's next request would have been charged is left.
        assert charged > limit - _CLIENTS * (_TOKENS + 10) * int(_OUTPUT) * 1000
        return charged, by_tokens

    charged, _ = await eventually(all_is_recorded, within=120)
    cluster.say(
        f"{spenders.answers} answers, {dict(spenders.statuses)}: {charged / 1e9:.4f} of {_AMOUNT} "
        "USD are charged"
    )
    cluster.say(f"refusals: {spenders.messages}")
    assert charged <= limit
    refusal = spenders.refusals[0]
    assert (refusal["type"], refusal["code"]) == ("insufficient_quota", "budget_exceeded")
    assert refusal["headers"]["x-should-retry"] == "false"
    assert _LIMIT in refusal["message"]
    assert spenders.first_refusal is not None
    assert spenders.first_refusal > disturbed.result()
    assert spenders.statuses["connection"] > 0
    watching.cancel()
    cluster.say(f"actions: {watched.steps}")
    # Notices are no action in effect. What is left is not enough for one request, and not spent.
    assert watched.steps == [(0, ()), (50, ()), (80, ("HoldBatches",))]
    await _same_bill_twice(gateway, charged)
    await _raise_limit(gateway)


async def _same_bill_twice(gateway: Gateway, charged: int) -> None:
    """Read the month's charges as CSV twice, and find the same sums, of all records."""
    address = f"http://{gateway.pod_address}:8080"
    command = ("cost", "--by", "key", "--month", f"{now():%Y-%m}", "-o", "csv")
    bills = [
        await run_tessera(gateway.namespace.cluster, *command, "--gateway", address)
        for _ in range(2)
    ]
    assert bills[0].code == 0, bills[0].errors
    assert bills[0] == bills[1]
    rows = list(csv.DictReader(io.StringIO(bills[0].output)))
    billed = sum(Decimal(row["charge"]) for row in rows if row["charge"])
    assert billed * 10**9 == charged, rows


async def _disturb(cluster: InstalledCluster, server: PostgresqlServer) -> float:
    """Kill one gateway, and end all connections to the database for a while.

    Returns when both were over, on the clock of refusals.
    """
    await asyncio.sleep(3)
    pod = (await ready_pods(cluster, _PODS))[0]["metadata"]["name"]
    cluster.world.kill(NAMESPACE, pod, "gateway")
    await asyncio.sleep(3)
    other = await server.create_database()
    assert other != server.url("postgres")
    connection = await asyncpg.connect(other)
    try:
        await connection.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = 'postgres'"
        )
        await asyncio.sleep(5)
        await connection.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
    finally:
        await connection.close()
    return time.monotonic()


async def _set_money(namespace: ScenarioNamespace) -> None:
    entry = {
        "from": f"{now():%Y-%m-%d}",
        "models": ["chat"],
        "input": str(_INPUT),
        "output": str(_OUTPUT),
    }
    spec = {"currency": "USD", "entries": [entry]}
    await apply_spec(namespace.cluster, "PriceList", "pricelists", Ref("", "test"), spec)
    path = f"/apis/tessera.dev/v1alpha1/tenantbudgets/{namespace.name}"
    limits = [
        {"window": "Month", "amount": "100000"},
        {"name": _LIMIT, "window": "Month", "amount": str(_AMOUNT), "basis": "Charge"},
    ]
    actions = [{"at": at, "action": action} for at, action in _ACTIONS]
    await namespace.cluster.api.patch(path, {"spec": {"limits": limits, "actions": actions}})


async def _raise_limit(gateway: Gateway) -> None:
    """Raise the limit, and see how long requests are refused after that."""
    end = f"{now() + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}"
    command = ("budget", "raise", gateway.namespace.name, _LIMIT, "--by", str(_RAISE))
    result = await run_tessera(
        gateway.namespace.cluster, *command, "--until", end, "--reason", "test"
    )
    assert result.code == 0, result.errors
    raised = time.monotonic()
    await eventually(partial(is_charged, gateway))
    seconds = time.monotonic() - raised
    gateway.namespace.cluster.say(f"answered {seconds:.2f} s after the limit was raised")
    assert seconds < 5 * _RESUMED_SECONDS
