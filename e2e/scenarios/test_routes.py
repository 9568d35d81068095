"""One name over three services at two gateways: targets are killed, scaled to zero and rolled."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import asyncpg
import pytest

from demo.cluster import InstalledCluster
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import Gateway, answered, create_key, install_with_database, ready_pods
from scenarios.routes import (
    PATIENCE_SECONDS,
    PRICES,
    PROMPTS,
    ROUTE,
    TARGETS,
    RouteClients,
    apply_route,
    apply_target,
    kill_and_stop,
    price_of,
    roll,
    set_prices,
    wait_until_charged,
)
from tests.gateway.store.postgresql import PostgresqlServer, postgresql_server
from world import World
from world.testing import eventually

_CLIENTS, _GATEWAYS = 40, 2
_ESTIMATED_TOKENS = 4


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


@pytest.fixture
async def routed(
    cluster: InstalledCluster, namespace: ScenarioNamespace
) -> AsyncIterator[tuple[Gateway, PostgresqlServer]]:
    """Two pods of the gateway with one PostgreSQL database, and a route of a tenant."""
    with postgresql_server() as server:
        await install_with_database(cluster, server, _GATEWAYS)
        pods = await ready_pods(cluster, _GATEWAYS)
        address = pods[0]["status"]["podIP"]
        async with a_budget(namespace, "100000"):
            await set_prices(namespace)
            for target in TARGETS:
                await apply_target(namespace, target)
            await apply_route(namespace)
            key = await create_key(namespace, "first")
            yield Gateway(namespace, f"http://{address}:8443/v1", address, key), server


@pytest.mark.full
async def test_a_target_that_can_answers_whatever_becomes_of_the_others(
    routed: tuple[Gateway, PostgresqlServer],
) -> None:
    gateway, server = routed
    namespace = gateway.namespace
    cluster = namespace.cluster
    for target in TARGETS:
        await namespace.wait_until_ready(target, within=PATIENCE_SECONDS)
        await answered(gateway, target, within=PATIENCE_SECONDS)
    pods = await ready_pods(cluster, _GATEWAYS)
    clients = RouteClients(
        bases=[f"http://{pod['status']['podIP']}:8443" for pod in pods], key=gateway.key
    )
    await wait_until_charged(gateway)
    begun = time.monotonic()
    async with asyncio.timeout(600), asyncio.TaskGroup() as tasks:
        for number in range(_CLIENTS):
            tasks.create_task(clients.run(number))
        await kill_and_stop(namespace, clients)
        await roll(namespace, clients, "large")
        clients.end()
    answers = clients.answers
    cluster.say(
        f"{len(answers)} requests in {time.monotonic() - begun:.0f} s: "
        f"{dict(Counter((each.wanted, each.target) for each in answers))}"
    )
    failed = [each for each in answers if each.failure]
    cluster.say(f"failed: {Counter((each.target, each.failure) for each in failed)}")
    assert [each for each in failed if not each.pieces] == []
    # Nothing else goes on with a stream of the only replica.
    assert {each.target for each in failed} <= {"small"}
    assert all("broke off" in each.failure for each in failed)
    assert {each.target for each in answers} == set(TARGETS)
    targets = {each.headers["x-request-id"]: each.target for each in answers}
    assert len(targets) == len(answers)
    await eventually(partial(_all_is_recorded, namespace, server, targets), within=60)


@pytest.mark.full
async def test_a_target_that_sleeps_is_woken_while_another_one_answers(gateway: Gateway) -> None:
    namespace = gateway.namespace
    scaling = {"minReplicas": 0, "maxReplicas": 1, "idle": {"after": "30s"}}
    await namespace.apply_service("small", scaling=scaling)
    for target in ("middle", "large"):
        await apply_target(namespace, target)
    await apply_route(namespace)
    await namespace.wait_until_ready("middle", within=PATIENCE_SECONDS)
    await answered(gateway, "middle", within=PATIENCE_SECONDS)
    await namespace.wait_for_condition("small", "Ready", "ScaledToZero", PATIENCE_SECONDS)

    async def is_asleep() -> None:
        assert (await namespace.service_status("small")).get("replicas") == 0

    await eventually(is_asleep, within=PATIENCE_SECONDS)
    sent_at = time.monotonic()
    first = await _target_of(gateway, "small")
    seconds = time.monotonic() - sent_at

    async def is_awake() -> None:
        assert await _target_of(gateway, "small") == ("small", "RuleMatched")

    assert first == ("middle", "Fallback")
    await eventually(is_awake, within=PATIENCE_SECONDS)
    namespace.cluster.say(
        f"middle answered after {seconds:.1f} s, small after {time.monotonic() - sent_at:.1f} s"
    )


async def _target_of(gateway: Gateway, wanted: str) -> tuple[str, str]:
    """Ask for what the rules give a target; return who answered, and why."""
    async with gateway.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=ROUTE, messages=[{"role": "user", "content": PROMPTS[wanted]}], max_tokens=2
        )
    return raw.headers["x-tessera-target"], raw.headers["x-tessera-target-reason"]


async def _all_is_recorded(
    namespace: ScenarioNamespace, server: PostgresqlServer, targets: Mapping[str, str]
) -> None:
    """Assert that the store has each request once, its target, and each call at its price.

    `targets` has the target that answered by the id of the request.
    """
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        rows = await connection.fetch(
            "SELECT request_id, model_route, target, service, requests, phase, reason,"
            " input_tokens, output_tokens, charge_nanos FROM usage_records"
            " WHERE model_route <> ''"
        )
        total = await connection.fetchval(
            "SELECT sum(charge_nanos) FROM charge_sums WHERE model_route <> ''"
        )
    finally:
        await connection.close()
    requests, answered_by = Counter[str](), dict[str, str]()
    for row in rows:
        assert row["model_route"] == f"{namespace.name}/{ROUTE}"
        assert row["service"] == f"{namespace.name}/{row['target']}"
        requests[row["request_id"]] += row["requests"]
        if row["requests"]:
            answered_by[row["request_id"]] = row["target"]
        # Others are from before the prices counted.
        if row["request_id"] in targets:
            _check_charge(dict(row))
    assert {each: requests[each] for each in targets} == dict.fromkeys(targets, 1)
    assert {each: answered_by[each] for each in targets} == dict(targets)
    assert total == sum(row["charge_nanos"] or 0 for row in rows)
    calls = Counter((row["target"], row["reason"]) for row in rows if not row["requests"])
    namespace.cluster.say(f"{len(rows)} records; calls without an answer: {dict(calls)}")
    # Those that were under way when their engine was killed.
    assert {target for target, _ in calls} == {"small"}


def _check_charge(row: Mapping[str, Any]) -> None:
    """Assert that a call pays its tokens at the price of its target."""
    price = price_of(row, PRICES[row["target"]])
    if row["phase"] == "Completed":
        assert row["charge_nanos"] == price, row
    elif not row["requests"]:
        # Who asks does not pay an engine that fails before its first token.
        assert row["charge_nanos"] == 0, row
    else:
        # The prompt of a stream that broke off is estimated, for its charge and its record.
        tokens = _ESTIMATED_TOKENS * 1000 * PRICES[row["target"]][0]
        assert abs(row["charge_nanos"] - price) <= tokens, row
        assert row["reason"] == "StreamBroken", row
