"""Requests that let others go first: sheddable ones, and those of a batch's priority."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

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
from tests.gateway_builders import STEP
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
SHEDDABLE_KEY = "tsk-bulk"
KEYS = (an_api_key(), an_api_key(SHEDDABLE_KEY, name="bulk", sheddable=True))
BY_HEADER = {"x-tessera-sheddable": "true"}
BY_KEY = {"authorization": f"Bearer {SHEDDABLE_KEY}"}
BATCH = {**CHAT, "priority": 3}


class Turns:
    """An engine that answers one request at each turn."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.turns = asyncio.Semaphore(0)

    async def script(self, call: EngineCall) -> None:
        self.calls.append(call.json.get("user", ""))
        await self.turns.acquire()
        await call.whole(COMPLETION)

    async def wait_for_calls(self, *users: str) -> None:
        """Wait until the engine has the requests of these users, in this order."""

        async def have_come() -> None:
            assert self.calls == list(users)

        await eventually(have_come)


@asynccontextmanager
async def serving(turns: Turns, **replica: Any) -> AsyncIterator[RunningGateway]:
    model = {"ttft_seconds": 30.0} | replica.pop("model", {})
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(turns.script) as engine:
        directory = a_directory(a_model(a_replica(engine.address, **replica), **model), keys=KEYS)
        async with a_gateway(directory) as gateway:
            yield gateway


@pytest.mark.parametrize(
    ("headers", "body", "priority"),
    [
        ({}, CHAT, None),
        ({"x-tessera-sheddable": "false"}, CHAT, None),
        (BY_HEADER, CHAT, 1),
        (BY_KEY, CHAT, 1),
        # Nobody raises himself.
        (BY_KEY | {"x-tessera-sheddable": "false"}, CHAT, 1),
        (BY_HEADER, {**CHAT, "priority": -5}, 1),
        (BY_HEADER, {**CHAT, "priority": 3}, 3),
        ({}, BATCH, 3),
    ],
)
async def test_an_engine_serves_after_others_what_yields(
    headers: Mapping[str, str], body: dict[str, Any], priority: int | None
) -> None:
    turns = Turns()
    turns.turns.release()
    async with ScriptedEngine(turns.script) as engine:
        directory = a_directory(a_model(a_replica(engine.address)), keys=KEYS)
        async with a_gateway(directory) as gateway:
            assert (await gateway.post(body, **headers)).status == 200
        assert engine.calls[0].json.get("priority") == priority
        assert "x-tessera-sheddable" not in engine.calls[0].headers


async def test_another_word_than_true_or_false_is_refused() -> None:
    async with a_gateway(a_directory(a_model())) as gateway:
        refused = await gateway.post(CHAT, **{"x-tessera-sheddable": "yes"})
    assert refused.status == 400
    assert refused.error["message"] == "x-tessera-sheddable: expected `true` or `false`."


@pytest.mark.parametrize(("headers", "body"), [(BY_HEADER, CHAT), (BY_KEY, CHAT), ({}, BATCH)])
async def test_a_flood_of_what_yields_leaves_room_that_others_take_at_once(
    headers: Mapping[str, str], body: dict[str, Any]
) -> None:
    turns = Turns()
    async with serving(turns, max_num_seqs=8) as gateway:
        flood = [
            asyncio.create_task(gateway.post({**body, "user": "flood"}, **headers))
            for _ in range(20)
        ]
        # An answer that is no stream shows no first token before its end: one prompt at a time.
        await gateway.wait_for_queue(19)
        others = [asyncio.create_task(gateway.post({**CHAT, "user": "other"})) for _ in range(7)]
        await turns.wait_for_calls("flood", *["other"] * 7)
        # Another waits; what yields does not pass it, though it came before.
        last = asyncio.create_task(gateway.post({**CHAT, "user": "last"}))
        await turns.wait_for_calls("flood", *["other"] * 7, "last")
        for _ in range(100):
            turns.turns.release()
        answers = await asyncio.gather(*others, last, *flood)
    assert {answer.status for answer in answers} == {200}
    assert [answer.headers["x-tessera-queue-ms"] for answer in answers[:7]] == ["0"] * 7
    assert turns.calls[9:] == ["flood"] * 19


async def test_what_is_sheddable_waits_no_longer_than_it_can_be_in_time() -> None:
    turns = Turns()
    async with serving(turns, max_num_seqs=1, model={"ttft_seconds": 1.0}) as gateway:
        running = asyncio.create_task(gateway.post(CHAT))
        await turns.wait_for_calls("")
        shed = asyncio.create_task(gateway.post(CHAT, **BY_HEADER))
        waits = asyncio.create_task(gateway.post(BATCH))
        await gateway.wait_for_queue(2)
        while not shed.done():
            gateway.admission.queues.pump()
            await asyncio.sleep(0.02)
        refused = await shed
        assert not waits.done()
        turns.turns.release()
        turns.turns.release()
        assert [(await task).status for task in (running, waits)] == [200, 200]
    assert_shed(refused)
    assert {record.reason for record in gateway.records} >= {"Shed"}


async def test_what_is_sheddable_is_refused_at_once_where_it_would_be_late() -> None:
    turns = Turns()
    fields = {"max_num_seqs": 1, "step_time": STEP, "model": {"ttft_seconds": 1.0}}
    body = {**CHAT, "max_tokens": 128}
    async with serving(turns, **fields) as gateway:
        # Each needs a replica for a second: 128 steps of 7 ms.
        waiting = [asyncio.create_task(gateway.post(body)) for _ in range(5)]
        await gateway.wait_for_queue(3)
        refused = await gateway.post(body, **BY_HEADER)
        for _ in range(5):
            turns.turns.release()
        assert {(await task).status for task in waiting} == {200}
    assert_shed(refused)


async def test_a_prompt_that_takes_long_to_read_yields_to_nobody() -> None:
    turns = Turns()
    turns.turns.release()
    long = {"messages": [{"role": "user", "content": "x" * 60_000}]}
    async with serving(turns, step_time=STEP, model={"ttft_seconds": 1.0}) as gateway:
        refused = await gateway.post({**CHAT, **long}, **BY_HEADER)
        assert (await gateway.post({**BATCH, **long})).status == 200
    assert (refused.status, refused.error["code"]) == (400, "sheddable_too_long")
    assert "retry-after" not in refused.headers
    assert refused.error["message"] == (
        "InferenceService/team-a/chat reads 20022 tokens in 0.7 s, and others wait for a sheddable "
        "request for 0.5 s at most: shorten the prompt, or send it without x-tessera-sheddable and "
        "with a key that is not sheddable."
    )


def assert_shed(refused: Answer) -> None:
    assert (refused.status, refused.error["code"]) == (429, "shed")
    retry = refused.headers["retry-after"]
    assert refused.error["message"] == (
        "InferenceService/team-a/chat has no room to spare for a sheddable request; "
        f"retry in {retry} s."
    )
