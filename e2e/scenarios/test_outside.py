"""One name over two services and an outside provider, which fail in every way; what that costs."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from demo.cluster import InstalledCluster
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import Gateway, answered, create_key, install_with_database, ready_pods
from scenarios.outside import (
    COSTS,
    FAILURES,
    MODEL,
    PROVIDER,
    TARGET,
    offer_provider,
    provider_values,
    store_key,
)
from scenarios.routes import (
    LOAD_SECONDS,
    PATIENCE_SECONDS,
    PRICES,
    PROMPTS,
    ROUTE,
    RouteClients,
    apply_route,
    apply_target,
    kill_and_stop,
    price_of,
    roll,
    set_prices,
    wait_until_charged,
)
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tests.gateway.store.postgresql import PostgresqlServer, postgresql_server
from world import World
from world.provider import Provider, answer
from world.testing import eventually

_CLIENTS, _GATEWAYS = 40, 2
_NAME = f"{PROVIDER}/{MODEL}"
_TOKENS = 24
_ANSWER = answer(_TOKENS, gap_seconds=0.02)
_LIMIT, _SPENDERS, _NANO = "1", 20, 10**9


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture
async def provider(
    cluster: InstalledCluster, postgresql: PostgresqlServer
) -> AsyncIterator[Provider]:
    """A provider, and two pods of the gateway that may ask it and share a database."""
    # The pods have a /tmp of their own.
    folder = Path(tempfile.mkdtemp(dir=cluster.world.folder))
    async with Provider(folder / "keys") as provider:
        provider.script = _ANSWER
        values = provider_values(provider)
        await install_with_database(cluster, postgresql, _GATEWAYS, *values)
        yield provider


async def _gateway(namespace: ScenarioNamespace, provider: Provider) -> Gateway:
    pods = await ready_pods(namespace.cluster, _GATEWAYS)
    address = pods[0]["status"]["podIP"]
    await offer_provider(namespace, provider)
    key = await create_key(namespace, "first")
    return Gateway(namespace, f"http://{address}:8443/v1", address, key)


@pytest.mark.full
async def test_a_target_that_can_answers_whatever_becomes_of_services_and_provider(
    namespace: ScenarioNamespace, provider: Provider, postgresql: PostgresqlServer
) -> None:
    cluster = namespace.cluster
    async with a_budget(namespace, "100000"):
        gateway = await _gateway(namespace, provider)
        await set_prices(namespace, large=_NAME)
        for target in ("small", "middle"):
            await apply_target(namespace, target)
        await apply_route(namespace, **TARGET)
        for target in ("small", "middle"):
            await namespace.wait_until_ready(target, within=PATIENCE_SECONDS)
            await answered(gateway, target, within=PATIENCE_SECONDS)
        pods = await ready_pods(cluster, _GATEWAYS)
        clients = RouteClients(
            bases=[f"http://{pod['status']['podIP']}:8443" for pod in pods], key=gateway.key
        )
        await wait_until_charged(gateway)
        begun, calls = time.monotonic(), len(provider.calls)
        async with asyncio.timeout(900), asyncio.TaskGroup() as tasks:
            for number in range(_CLIENTS):
                tasks.create_task(clients.run(number))
            await kill_and_stop(namespace, clients)
            await roll(namespace, clients, "middle")
            await _fail(namespace, clients, provider)
            clients.end()
        answers = clients.answers
        cluster.say(
            f"{len(answers)} requests in {time.monotonic() - begun:.0f} s, "
            f"{len(provider.calls) - calls} calls of the provider: "
            f"{dict(Counter((each.wanted, each.target) for each in answers))}"
        )
        failed = [each for each in answers if each.failure]
        cluster.say(f"failed: {Counter((each.target, each.failure) for each in failed)}")
        assert [each for each in failed if not each.pieces] == []
        # What has begun at the only replica, or at the provider, goes on nowhere else.
        assert {each.target for each in failed} <= {"small", "large"}
        assert {each.target for each in answers} == {"small", "middle", "large"}
        targets = {each.headers["x-request-id"]: each.target for each in answers}
        assert len(targets) == len(answers)
        check = partial(_all_is_recorded, namespace, postgresql, targets, provider)
        await eventually(check, within=60)


async def _fail(namespace: ScenarioNamespace, clients: RouteClients, provider: Provider) -> None:
    """Let the provider fail in each way under all clients."""

    async def is_left_out(way: str) -> None:
        since = time.monotonic()
        await clients.wait_for_answer(since, "large", "middle")
        await asyncio.sleep(LOAD_SECONDS / 2)
        provider.script = _ANSWER
        await clients.wait_for_answer(time.monotonic(), "large", "large")
        namespace.cluster.say(f"{way}: {time.monotonic() - since:.1f} s")

    for way, script in FAILURES.items():
        provider.script = script
        await is_left_out(way)

    provider.key = "sk-world-provider-rotated"
    since = time.monotonic()
    await clients.wait_for_answer(since, "large", "middle")
    await store_key(namespace.cluster, provider.key)
    await clients.wait_for_answer(time.monotonic(), "large", "large")
    namespace.cluster.say(f"a revoked key: {time.monotonic() - since:.1f} s")

    # A thousand times the tokens that it sent.
    provider.script = answer(_TOKENS, times=1000)
    await clients.wait_for_answer(time.monotonic(), "large", "large")
    await asyncio.sleep(LOAD_SECONDS / 2)
    provider.script = answer(_TOKENS, gap_seconds=0.02, cut_after=5)
    await asyncio.sleep(LOAD_SECONDS)
    provider.script = _ANSWER
    await clients.wait_for_answer(time.monotonic(), "large", "large")


async def _rows(server: PostgresqlServer, route: str) -> list[dict[str, Any]]:
    """Return the records of a route, of which the sums of the store are those."""
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        records = await connection.fetch(
            "SELECT request_id, target, service, provider, requests, phase, reason,"
            " input_tokens, output_tokens, charge_nanos, cost_nanos, cost_currency, estimated"
            " FROM usage_records WHERE model_route = $1",
            route,
        )
        sums = await connection.fetchrow(
            "SELECT sum(charge_nanos) AS charge, sum(cost_nanos) AS cost"
            " FROM charge_sums WHERE model_route = $1",
            route,
        )
    finally:
        await connection.close()
    rows = [dict(record) for record in records]
    assert sums is not None
    assert sums["charge"] == sum(row["charge_nanos"] or 0 for row in rows)
    assert sums["cost"] == sum(row["cost_nanos"] for row in rows)
    return rows


async def _all_is_recorded(
    namespace: ScenarioNamespace,
    server: PostgresqlServer,
    targets: Mapping[str, str],
    provider: Provider,
) -> None:
    """Assert that the store has each request once, and each call at its price and its cost."""
    rows = await _rows(server, f"{namespace.name}/{ROUTE}")
    requests, answered_by = Counter[str](), dict[str, str]()
    for row in rows:
        is_outside = row["target"] == "large"
        assert row["provider"] == (_NAME if is_outside else ""), row
        assert row["service"] == ("" if is_outside else f"{namespace.name}/{row['target']}"), row
        requests[row["request_id"]] += row["requests"]
        if row["requests"]:
            answered_by[row["request_id"]] = row["target"]
        if row["request_id"] in targets:
            _check_money(row)
    assert {each: requests[each] for each in targets} == dict.fromkeys(targets, 1)
    assert {each: answered_by[each] for each in targets} == dict(targets)
    calls = Counter((row["target"], row["reason"]) for row in rows if not row["requests"])
    namespace.cluster.say(f"{len(rows)} records; calls without an answer: {dict(calls)}")
    whole = [call.usage for call in provider.calls if call.usage is not None and call.is_whole]
    billed = Counter(usage for usage in whole if usage[1] <= _TOKENS)
    recorded = Counter(
        (row["input_tokens"], row["output_tokens"])
        for row in rows
        if row["provider"] and row["phase"] == "Completed"
    )
    lies = recorded - billed
    namespace.cluster.say(f"the provider billed {dict(billed)}, and lied about {dict(lies)}")
    # All that it billed is recorded, and of its lies no more than could be.
    assert billed - recorded == Counter()
    assert lies.total() == len(whole) - billed.total() > 0
    assert all(output <= _TOKENS for _, output in lies)


def _check_money(row: Mapping[str, Any]) -> None:
    """Assert that a call pays its tokens at the price of its target, and costs what that costs."""
    price = price_of(row, PRICES[row["target"]])
    cost = price_of(row, COSTS) if row["provider"] else 0
    if row["phase"] == "Completed":
        assert (row["charge_nanos"], row["cost_nanos"]) == (price, cost), row
    elif not row["requests"] and not row["estimated"]:
        assert (row["charge_nanos"], row["cost_nanos"]) == (0, 0), row


@pytest.mark.full
async def test_a_tenant_spends_outside_no_more_than_its_limit(
    namespace: ScenarioNamespace, provider: Provider, postgresql: PostgresqlServer
) -> None:
    provider.script = answer(_TOKENS)
    async with a_budget(namespace, _LIMIT):
        gateway = await _gateway(namespace, provider)
        await set_prices(namespace, large=_NAME)
        spec = {**TARGET, "name": "large"}
        await apply_route(namespace, **spec)
        pods = await ready_pods(namespace.cluster, _GATEWAYS)
        bases = [f"http://{pod['status']['podIP']}:8443/v1" for pod in pods]
        codes = Counter[str]()
        begun = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(_SPENDERS):
                tasks.create_task(_spend(gateway, bases[number % _GATEWAYS], codes))
        budget = await namespace.cluster.api.get(TENANT_BUDGETS.path(None, namespace.name))
        rows = await _rows(postgresql, f"{namespace.name}/{ROUTE}")
        spent = sum(row["cost_nanos"] for row in rows)
        billed = sum(
            price_of({"input_tokens": usage[0], "output_tokens": usage[1]}, COSTS)
            for usage in (call.usage for call in provider.calls)
            if usage is not None
        )
        namespace.cluster.say(
            f"{dict(codes)} in {time.monotonic() - begun:.0f} s; spent {spent / _NANO:g} of "
            f"{_LIMIT} USD, billed {billed / _NANO:g}; {budget['status'].get('outside')}"
        )
        assert billed == spent <= int(_LIMIT) * _NANO
        assert spent > 0.9 * int(_LIMIT) * _NANO


async def _spend(gateway: Gateway, base: str, codes: Counter[str]) -> None:
    """Ask until nothing was answered for long."""
    headers = {"Authorization": f"Bearer {gateway.key}"}
    body = {
        "model": ROUTE,
        "messages": [{"role": "user", "content": PROMPTS["large"]}],
        "max_tokens": _TOKENS,
    }
    answered_at = time.monotonic()
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        while time.monotonic() - answered_at < 40:
            response = await http.post(f"{base}/chat/completions", json=body)
            is_answer = response.status_code == 200
            codes["200" if is_answer else response.json()["error"]["code"]] += 1
            if is_answer:
                answered_at = time.monotonic()
            else:
                await asyncio.sleep(0.5)
