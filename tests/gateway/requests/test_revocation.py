"""Who sends a request is asked again before an engine gets it, however long it waited."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import ApiKey
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from world.testing import eventually

WAIT_SECONDS = 60
OTHER = {"authorization": "Bearer tsk-other"}
OTHER_API_KEY = an_api_key("tsk-other", name="server")
CHANGES = [
    ((an_api_key(),), 200),
    ((), 401),
    ((an_api_key(models=("night",)),), 404),
    ((an_api_key(tenant="team-b"),), 404),
]


@pytest.mark.parametrize(("keys", "status"), CHANGES)
async def test_a_request_that_waits_for_a_sleeping_service(
    keys: tuple[ApiKey, ...], status: int
) -> None:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine,
        a_gateway(a_directory(a_model(may_sleep=True))) as gateway,
    ):
        request = asyncio.create_task(gateway.post(CHAT))
        await gateway.woken.wait()
        awake = a_model(a_replica(engine.address), may_sleep=True)
        gateway.admission.update(a_directory(awake, keys=(*keys, OTHER_API_KEY)))
        assert (await request).status == status
        record = await gateway.record()
    assert len(engine.calls) == (status == 200)
    assert record.tenant == "team-a"
    assert bool(record.input_tokens) == (status == 200)
    assert awake.service not in gateway.admission.demand


@pytest.mark.parametrize(("keys", "status"), CHANGES)
async def test_a_request_that_waits_behind_others(keys: tuple[ApiKey, ...], status: int) -> None:
    async def script(call: EngineCall) -> None:
        arrived.put_nowait(call)
        await release.wait()
        await call.whole(COMPLETION)

    async def waiting() -> int:
        return sum(len(queue) for queue in gateway.admission.queues)

    arrived, release = asyncio.Queue[EngineCall](), asyncio.Event()
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(script) as engine:
        model = a_model(a_replica(engine.address, max_num_seqs=1))
        directory = a_directory(model, keys=(an_api_key(), OTHER_API_KEY))
        async with a_gateway(directory) as gateway:
            running = []
            for _ in range(2):
                running.append(asyncio.create_task(gateway.post(CHAT, **OTHER)))
                await arrived.get()
            queued = asyncio.create_task(gateway.post(CHAT))
            await eventually(waiting, lambda count: count == 1, within=WAIT_SECONDS)
            gateway.admission.update(a_directory(model, keys=(*keys, OTHER_API_KEY)))
            release.set()
            assert (await queued).status == status
            assert [(await task).status for task in running] == [200, 200]
            # Its place is free again.
            assert (await gateway.post(CHAT, **OTHER)).status == 200
    assert len(engine.calls) == 3 + (status == 200)


@pytest.mark.parametrize(("keys", "status"), CHANGES)
async def test_a_request_that_another_engine_gets_after_a_failure(
    keys: tuple[ApiKey, ...], status: int
) -> None:
    async def fail(call: EngineCall) -> None:
        gateway.admission.update(a_directory(model, keys=(*keys, OTHER_API_KEY)))
        await call.whole({"error": {"message": "full"}}, status=503)

    async with (
        asyncio.timeout(WAIT_SECONDS),
        ScriptedEngine(fail) as failing,
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as other,
    ):
        first = a_replica(failing.address, "chat-1")
        model = a_model(first, a_replica(other.address, "chat-2", ready_since=None))
        async with a_gateway(a_directory(model)) as gateway:
            model = a_model(first, a_replica(other.address, "chat-2"))
            assert (await gateway.post(CHAT)).status == status
    assert (len(failing.calls), len(other.calls)) == (1, status == 200)


# Namespaces without a budget are of no tenant.
MOVES = [("team-a", "team-a", 200), ("team-a", "team-c", 503), (None, None, 503)]


@pytest.mark.parametrize(("former_tenant", "tenant", "status"), MOVES)
async def test_a_name_that_means_a_service_of_another_tenant_while_a_request_waits(
    former_tenant: str | None, tenant: str | None, status: int
) -> None:
    """As if its owner got a grant for it: who has lost the name gets no more prompts by it."""

    async def script(call: EngineCall) -> None:
        arrived.put_nowait(call)
        await release.wait()
        await call.whole(COMPLETION)

    async def waiting() -> int:
        return sum(len(queue) for queue in gateway.admission.queues)

    arrived, release = asyncio.Queue[EngineCall](), asyncio.Event()
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(script) as engine:
        replica = a_replica(engine.address, max_num_seqs=1)
        former = a_model(replica, names=("own", "chat"), tenant=former_tenant, public=True)
        owner = replace(a_model(tenant=tenant, public=True), service=Ref("owner", "chat"), uid="b")
        key = an_api_key(tenant="team-b")
        async with a_gateway(a_directory(former, keys=(key,))) as gateway:
            running = []
            for _ in range(2):
                running.append(asyncio.create_task(gateway.post(CHAT)))
                await arrived.get()
            queued = asyncio.create_task(gateway.post(CHAT))
            await eventually(waiting, lambda count: count == 1, within=WAIT_SECONDS)
            former = replace(former, names=("own",))
            gateway.admission.update(a_directory(owner, former, keys=(key,)))
            release.set()
            answer = await queued
            assert answer.status == status
            assert [(await task).status for task in running] == [200, 200]
    assert len(engine.calls) == 2 + (status == 200)
    if status == 503:
        assert answer.error["code"] == "no_ready_replica"
        assert f"InferenceService/{owner.service}" in answer.error["message"]


TWIN = a_model(service=Ref("team-a", "twin"), uid="uid-twin")


@pytest.mark.parametrize(
    ("key", "changes", "status"),
    [
        (an_api_key(services=frozenset({TWIN.service})), {}, 404),
        (an_api_key(), {"tenant": "team-b"}, 404),
        # It has another name of its own.
        (an_api_key(), {"names": ("chat-1",)}, 200),
    ],
)
async def test_a_name_that_went_to_another_service_while_a_request_waits_opens_no_other(
    key: ApiKey, changes: dict[str, Any], status: int
) -> None:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine,
        a_gateway(a_directory(a_model(may_sleep=True))) as gateway,
    ):
        request = asyncio.create_task(gateway.post(CHAT))
        await gateway.woken.wait()
        awake = a_model(a_replica(engine.address), may_sleep=True, **changes)
        gateway.admission.update(a_directory(TWIN, awake, keys=(key,)))
        assert (await request).status == status
    assert len(engine.calls) == (status == 200)
