"""Who sends a request is asked again before an engine gets it, however long it waited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import ApiKey, Directory, EngineReplica, OfferedModel
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    Answer,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A gateway at whose only engine two requests run, while a third one waits for a place."""

    gateway: RunningGateway
    engine: ScriptedEngine
    replica: EngineReplica
    running: Sequence[asyncio.Task[Answer]]
    queued: asyncio.Task[Answer]
    release: asyncio.Event
    """Lets the engine answer."""


@asynccontextmanager
async def a_queue(
    directory: Callable[[EngineReplica], Directory], **headers: str
) -> AsyncIterator[Queue]:
    """Start a queue; requests that run have these headers."""

    async def script(call: EngineCall) -> None:
        arrived.put_nowait(call)
        await release.wait()
        await call.whole(COMPLETION)

    arrived, release = asyncio.Queue[EngineCall](), asyncio.Event()
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(script) as engine:
        replica = a_replica(engine.address, max_num_seqs=1)
        async with a_gateway(directory(replica)) as gateway:
            running = []
            for _ in range(2):
                running.append(asyncio.create_task(gateway.post(CHAT, **headers)))
                await arrived.get()
            queued = asyncio.create_task(gateway.post(CHAT))
            await gateway.wait_for_queue(1)
            yield Queue(
                gateway=gateway,
                engine=engine,
                replica=replica,
                running=running,
                queued=queued,
                release=release,
            )


@pytest.mark.parametrize(("keys", "status"), CHANGES)
async def test_a_request_that_waits_behind_others(keys: tuple[ApiKey, ...], status: int) -> None:
    def directory(replica: EngineReplica, *keys: ApiKey) -> Directory:
        return a_directory(a_model(replica), keys=(*keys, OTHER_API_KEY))

    async with a_queue(lambda replica: directory(replica, an_api_key()), **OTHER) as queue:
        queue.gateway.admission.update(directory(queue.replica, *keys))
        queue.release.set()
        assert (await queue.queued).status == status
        assert [(await task).status for task in queue.running] == [200, 200]
        # Its place is free again.
        assert (await queue.gateway.post(CHAT, **OTHER)).status == 200
    assert len(queue.engine.calls) == 3 + (status == 200)


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


@pytest.mark.parametrize(("tenant", "status"), [("team-a", 200), ("team-c", 503)])
async def test_a_name_that_means_a_service_of_another_tenant_while_a_request_waits(
    tenant: str, status: int
) -> None:
    """As if its owner got a grant for it: who has lost the name gets no more prompts by it."""
    owner = replace(a_model(tenant=tenant, public=True), service=Ref(tenant, "chat"), uid="b")
    key = an_api_key(tenant="team-b")

    def former(replica: EngineReplica, *names: str) -> OfferedModel:
        return a_model(replica, names=names, tenant="team-a", public=True)

    async with a_queue(
        lambda replica: a_directory(former(replica, "own", "chat"), keys=(key,))
    ) as queue:
        models = owner, former(queue.replica, "own")
        queue.gateway.admission.update(a_directory(*models, keys=(key,)))
        queue.release.set()
        answer = await queue.queued
        assert answer.status == status
        assert [(await task).status for task in queue.running] == [200, 200]
    assert len(queue.engine.calls) == 2 + (status == 200)
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
