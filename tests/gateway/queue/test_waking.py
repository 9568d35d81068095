"""Whose requests wake a service that has no replica."""

import asyncio
from typing import Any

import pytest

from tessera.api.ref import Ref
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

WAIT_SECONDS = 60
FOREIGN: dict[str, Any] = {"tenant": "team-b", "service": Ref("team-b", "chat")}
ASLEEP: dict[str, Any] = {"may_sleep": True, "is_asleep": True, "public": True}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("sharing", [{"public": True}, {"tenants": frozenset({"team-a"})}])
async def test_a_request_of_another_tenant_wakes_nothing(
    sharing: dict[str, Any], path: str
) -> None:
    model = a_model(**FOREIGN, **(ASLEEP | {"public": False} | sharing))
    async with a_gateway(a_directory(model)) as gateway:
        refused = await gateway.post(CHAT, path)
        record = await gateway.record()
    assert (refused.status, refused.error["code"]) == (403, "service_asleep")
    assert refused.error["message"] == (
        "InferenceService/team-b/chat sleeps, and requests of TenantBudget/team-a do not wake it: "
        "its owner can set spec.access.wake to All."
    )
    assert not gateway.woken.is_set()
    assert not gateway.admission.arrivals.take()
    assert (record.service, record.reason) == ("team-b/chat", "ServiceAsleep")


@pytest.mark.parametrize(
    "fields",
    [
        ASLEEP,
        FOREIGN | ASLEEP | {"wake": "All"},
        # Its own tenant woke it, so that a replica starts.
        FOREIGN | ASLEEP | {"is_asleep": False},
    ],
)
async def test_others_wait_until_it_is_awake(fields: dict[str, Any]) -> None:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine,
        a_gateway(a_directory(a_model(**fields))) as gateway,
    ):
        request = asyncio.create_task(gateway.post(CHAT))
        await gateway.woken.wait()
        gateway.admission.update(a_directory(a_model(a_replica(engine.address), **fields)))
        assert (await request).status == 200


@pytest.mark.parametrize(
    ("unfunded_by", "sender"),
    [("TenantBudget/team-a", {}), ("no TenantBudget", FOREIGN | {"wake": "All"})],
)
async def test_a_service_without_budget_answers_at_once(
    unfunded_by: str, sender: dict[str, Any]
) -> None:
    model = a_model(unfunded_by=unfunded_by, **ASLEEP, **sender)
    async with asyncio.timeout(5), a_gateway(a_directory(model)) as gateway:
        refused = await gateway.post(CHAT)
        record = await gateway.record()
    assert (refused.status, refused.error["code"]) == (503, "budget_exhausted")
    assert f"{unfunded_by} grants it none" in refused.error["message"]
    assert "retry-after" not in refused.headers
    assert not gateway.woken.is_set()
    assert record.reason == "BudgetExhausted"


async def test_what_waits_for_a_replica_is_refused_once_its_budget_pays_for_none() -> None:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine,
        a_gateway(a_directory(a_model(**ASLEEP))) as gateway,
    ):
        requests = [asyncio.create_task(gateway.post(CHAT)) for _ in range(3)]
        await gateway.woken.wait()
        unfunded = a_model(unfunded_by="TenantBudget/team-a", **ASLEEP)
        gateway.admission.update(a_directory(unfunded))
        for refused in await asyncio.gather(*requests):
            assert (refused.status, refused.error["code"]) == (503, "budget_exhausted")
        assert not list(gateway.admission.queues)
        # A replica that runs answers, whatever the budget would start.
        awake = a_model(a_replica(engine.address), unfunded_by="TenantBudget/team-a", **ASLEEP)
        gateway.admission.update(a_directory(awake))
        assert (await gateway.post(CHAT)).status == 200


async def test_a_replica_that_is_ready_answers_every_tenant() -> None:
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine:
        model = a_model(a_replica(engine.address), **FOREIGN, **ASLEEP)
        async with a_gateway(a_directory(model)) as gateway:
            assert (await gateway.post(CHAT)).status == 200


async def test_nobody_waits_for_a_service_that_is_gone() -> None:
    """Also if it is recreated: what waited for the former one would get none of its replicas."""
    async with (
        asyncio.timeout(WAIT_SECONDS),
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine,
        a_gateway(a_directory(a_model(may_sleep=True))) as gateway,
    ):
        request = asyncio.create_task(gateway.post(CHAT))
        await gateway.woken.wait()
        gateway.admission.update(a_directory())
        refused = await request
        assert (refused.status, refused.error["code"]) == (503, "no_ready_replica")
        assert refused.headers["retry-after"] == "5"
        assert not list(gateway.admission.queues)
        again = a_model(a_replica(engine.address), uid="uid-again")
        gateway.admission.update(a_directory(again))
        assert (await gateway.post(CHAT)).status == 200
