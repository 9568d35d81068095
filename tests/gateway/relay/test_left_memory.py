"""A request leaves nothing behind that only the collector of garbage would free.

What lives in a cycle when the gateway freezes its objects is never freed.
"""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.resumed import breaking, going_on, replicas
from world.testing import eventually

PARTS = (ROLE, a_delta("one"), a_delta("two"))
WATCHED = {"Sent", "RequestCourse", "EngineError"}


async def answer(call: EngineCall) -> None:
    if json.loads(call.body).get("stream"):
        await call.stream(ROLE, a_delta("one"), END, USAGE, DONE)
    else:
        await call.whole(COMPLETION)


async def refuse(call: EngineCall) -> None:
    await call.whole({"message": "no", "code": 400}, 400)


async def die(call: EngineCall) -> None:
    call.cut()


@contextmanager
def left_objects() -> Iterator[Counter[str]]:
    """Count what is more at the end, with the collector off."""

    def watched() -> Counter[str]:
        names = (type(each).__name__ for each in gc.get_objects())
        return Counter(name for name in names if name in WATCHED)

    more = Counter[str]()
    gc.collect()
    gc.disable()
    try:
        before = watched()
        yield more
        more.update(watched() - before)
    finally:
        gc.enable()


async def until_idle(gateway: RunningGateway) -> None:
    """Wait until no request runs, and the loop has forgotten its task."""

    async def is_idle() -> None:
        assert gateway.app.running(1)[1] == 0

    await eventually(is_idle)
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("script", [answer, refuse, die])
async def test_a_request_leaves_no_cycle(script: Script, body: object) -> None:
    async with (
        ScriptedEngine(script) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        await gateway.post(body)
        with left_objects() as left:
            await gateway.post(body)
            await until_idle(gateway)
    assert not left


@pytest.mark.parametrize(
    "scripts",
    [
        pytest.param(
            (breaking(*PARTS), going_on(ROLE, a_delta("x"), END, USAGE, DONE)), id="resumed"
        ),
        pytest.param((breaking(*PARTS),), id="lost"),
        pytest.param(
            (breaking(*PARTS), going_on(), going_on(ROLE, a_delta("x"), END, USAGE, DONE)),
            id="resumed after a failure",
        ),
    ],
)
async def test_a_stream_that_goes_on_leaves_no_cycle(scripts: Sequence[Any]) -> None:
    async with replicas(*scripts) as (gateway, _):
        with left_objects() as left:
            await gateway.post(STREAM)
            await until_idle(gateway)
    assert not left


async def test_no_task_keeps_the_body_of_a_stream_that_runs() -> None:
    goes_on = asyncio.Event()

    async def begin(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta("one"))
        await goes_on.wait()
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    # Nothing protects a stream with two choices, which would keep its request.
    message = {"role": "user", "content": "x" * 3_000_000}
    body = {**STREAM, "n": 2, "messages": [message]}
    async with (
        ScriptedEngine(begin) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        asked = asyncio.create_task(gateway.post(body))
        await gateway.wait_for_tokens(1)
        large = [
            value
            for task in gateway.server.server_state.tasks
            for frame in frames(task)
            for value in frame.f_locals.values()
            if isinstance(value, bytes) and len(value) > 1_000_000
        ]
        goes_on.set()
        await asked
    assert not large


def frames(task: asyncio.Task[None]) -> Iterator[Any]:
    """Return the frames of a task that waits."""
    awaited: Any = task.get_coro()
    while hasattr(awaited, "cr_frame"):
        yield awaited.cr_frame
        awaited = awaited.cr_await
