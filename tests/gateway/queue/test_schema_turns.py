"""New schemas of one tenant reach the engines of a service one after the other."""

import asyncio
from typing import Any

import pytest

from tessera.gateway.queue import places, schema_turns
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    MODEL,
    TENANT,
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

pytestmark = pytest.mark.anyio
OTHER_KEY = "tsk-team-b"
KEYS = (an_api_key(), an_api_key(OTHER_KEY, tenant="team-b"))
OTHER = {"authorization": f"Bearer {OTHER_KEY}"}
WAIT_SECONDS = 60


def with_schema(name: str, **fields: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {name: {"type": "string"}}}
    return {**CHAT, "model": MODEL, "structured_outputs": {"json": schema}, **fields}


class Compiling:
    """An engine that answers what it is told to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.changed = asyncio.Condition()
        self.answers = dict[str, asyncio.Event]()
        self.engine = ScriptedEngine(self._answer)

    def event(self, name: str) -> asyncio.Event:
        return self.answers.setdefault(name, asyncio.Event())

    async def _answer(self, call: EngineCall) -> None:
        schema = call.json.get("structured_outputs", {"json": {"properties": {"none": 0}}})
        (name,) = schema["json"]["properties"]
        async with self.changed:
            self.names.append(name)
            self.changed.notify_all()
        await self.event(name).wait()
        await call.whole(COMPLETION)

    async def got(self, *names: str) -> None:
        async with self.changed, asyncio.timeout(WAIT_SECONDS):
            await self.changed.wait_for(lambda: len(self.names) >= len(names))
        assert sorted(self.names) == sorted(names)


async def waiting(gateway: RunningGateway, requests: int) -> None:
    """Wait until so many requests wait for a turn."""
    lines = gateway.admission.places._schema_turns._waiting

    async def reached() -> None:
        while sum(map(len, lines.values())) != requests:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)

    await asyncio.wait_for(reached(), WAIT_SECONDS)


async def test_a_tenants_next_new_schema_waits_and_nothing_else_does() -> None:
    compiling = Compiling()
    async with compiling.engine as engine:
        model = a_model(a_replica(engine.address), public=True)
        async with (
            a_gateway(a_directory(model, keys=KEYS)) as gateway,
            asyncio.TaskGroup() as tasks,
        ):

            def ask(body: dict[str, Any], **headers: str) -> asyncio.Task[Answer]:
                return tasks.create_task(gateway.post(body, **headers))

            first = ask(with_schema("first"))
            await compiling.got("first")
            second, same = ask(with_schema("second")), ask(with_schema("first"))
            await waiting(gateway, 2)
            ask(with_schema("foreign"), **OTHER)
            ask(CHAT)
            await compiling.got("first", "foreign", "none")
            for name in ("foreign", "none", "first"):
                compiling.event(name).set()
            assert (await first).status == 200
            await compiling.got("first", "foreign", "none", "second", "first")
            # What is known passes beside what is not.
            assert (await ask(with_schema("first"))).status == 200
            compiling.event("second").set()
            assert (await second).status == (await same).status == 200
            assert not gateway.admission.places._schema_turns._waiting


async def test_an_engine_of_the_own_tenant_gets_all_schemas_at_once() -> None:
    compiling = Compiling()
    async with compiling.engine as engine:
        directory = a_directory(a_model(a_replica(engine.address)), keys=KEYS)
        async with a_gateway(directory) as gateway, asyncio.TaskGroup() as tasks:
            for name in ("first", "second"):
                compiling.event(name)
                tasks.create_task(gateway.post(with_schema(name)))
            await compiling.got("first", "second")
            for name in ("first", "second"):
                compiling.event(name).set()


async def test_who_leaves_while_he_waits_leaves_his_turn_to_the_next() -> None:
    compiling = Compiling()
    async with compiling.engine as engine:
        model = a_model(a_replica(engine.address), public=True)
        async with a_gateway(a_directory(model, keys=KEYS)) as gateway:
            tasks = [asyncio.create_task(gateway.post(with_schema("first")))]
            await compiling.got("first")
            for requests, name in ((1, "left"), (2, "next")):
                tasks.append(asyncio.create_task(gateway.post(with_schema(name))))
                await waiting(gateway, requests)
            tasks[1].cancel()
            await waiting(gateway, 1)
            for name in ("first", "next"):
                compiling.event(name).set()
            assert (await tasks[0]).status == (await tasks[2]).status == 200
            assert compiling.names == ["first", "next"]


async def test_who_leaves_early_has_nothing_else_compiled_meanwhile() -> None:
    """An engine does not end a compilation for which nobody waits any more."""
    compiling = Compiling()
    async with compiling.engine as engine:
        model = a_model(a_replica(engine.address), public=True)
        async with a_gateway(a_directory(model, keys=KEYS)) as gateway:
            first = asyncio.create_task(gateway.post(with_schema("first")))
            await compiling.got("first")
            second = asyncio.create_task(gateway.post(with_schema("second")))
            await waiting(gateway, 1)
            first.cancel()
            assert (await gateway.record()).reason == "ClientGone"
            compiling.event("none").set()
            assert (await gateway.post(CHAT)).status == 200
            await waiting(gateway, 1)
            assert compiling.names == ["first", "none"]
            second.cancel()
            compiling.event("first").set()


@pytest.mark.parametrize(
    ("sheddable", "refusal"),
    [("true", (429, "shed")), ("false", (503, "queue_timeout"))],
    ids=["sheddable", "ordinary"],
)
async def test_who_waits_too_long_for_his_turn_hears_of_it_as_of_a_queue(
    sheddable: str, refusal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_READY_SECONDS", 0.2)
    compiling = Compiling()
    async with compiling.engine as engine:
        model = a_model(a_replica(engine.address), public=True, ttft_seconds=0.1)
        async with a_gateway(a_directory(model, keys=KEYS)) as gateway:
            first = asyncio.create_task(gateway.post(with_schema("first")))
            await compiling.got("first")
            headers = {"x-tessera-sheddable": sheddable}
            second = await gateway.post(with_schema("second"), **headers)
            assert (second.status, second.error["code"]) == refusal
            compiling.event("first").set()
            assert (await first).status == 200


async def test_schemas_wait_for_a_sleeping_service_as_long_as_other_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "_READY_SECONDS", 0.01)
    compiling = Compiling()
    for name in ("first", "second"):
        compiling.event(name).set()
    async with compiling.engine as engine:
        asleep = a_model(public=True, may_sleep=True)
        async with (
            a_gateway(a_directory(asleep, keys=KEYS)) as gateway,
            asyncio.TaskGroup() as tasks,
        ):
            asked = [
                tasks.create_task(gateway.post(with_schema(name))) for name in ("first", "second")
            ]
            await waiting(gateway, 1)
            await asyncio.wait(asked, timeout=0.1)
            awake = a_model(a_replica(engine.address), public=True, may_sleep=True)
            gateway.admission.update(a_directory(awake, keys=KEYS))
            assert [(await each).status for each in asked] == [200, 200]


async def test_no_tenant_learns_by_time_which_schemas_another_one_has() -> None:
    compiling = Compiling()
    async with compiling.engine as engine:
        model = a_model(a_replica(engine.address), public=True)
        async with (
            a_gateway(a_directory(model, keys=KEYS)) as gateway,
            asyncio.TaskGroup() as tasks,
        ):
            compiling.event("first").set()
            assert (await gateway.post(with_schema("first"))).status == 200
            own = tasks.create_task(gateway.post(with_schema("own"), **OTHER))
            await compiling.got("first", "own")
            guessed = tasks.create_task(gateway.post(with_schema("first"), **OTHER))
            await waiting(gateway, 1)
            compiling.event("own").set()
            assert (await own).status == (await guessed).status == 200


async def test_many_schemas_of_one_tenant_displace_none_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schema_turns, "MAX_KNOWN_SCHEMAS", 10)
    turns, model = schema_turns.SchemaTurns(), a_model()

    async def compile_schema(tenant: str, schema: bytes) -> bool:
        turn = await turns.begin(model, tenant, schema, WAIT_SECONDS)
        if turn is not None:
            turn.end()
        return turn is not None

    assert await compile_schema("team-b", b"seen")
    for number in range(30):
        assert await compile_schema(TENANT, b"%d" % number)
    assert not await compile_schema("team-b", b"seen")
    assert [await compile_schema(TENANT, schema) for schema in (b"29", b"0")] == [False, True]
    assert sum(map(len, turns._known.values())) == 10
