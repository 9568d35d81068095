"""A stream that runs keeps no bytes beside those that its request holds: in no frame, no object."""

import asyncio
import gc
import io
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.charging import paying
from tests.gateway.harness import (
    MODEL,
    ROLE,
    STREAM,
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
from tests.gateway.outside.routing import OUTSIDE, ROUTE, routed
from tests.gateway.resumed import going_on, replicas
from world.provider import ProviderCall

LARGE_BYTES = 2**20
STREAMS = 2
# By how much a stream of large events may take more than one of small ones; TLS has its buffers.
MOST_BYTES, MOST_TLS_BYTES = 2**15, 2**17
LARGE, LAST = a_delta("x" * LARGE_BYTES), a_delta("last")

Gateway = AbstractAsyncContextManager[tuple[RunningGateway, dict[str, Any]]]
Scene = Callable[[Path, bytes], Gateway]
"""Runs a gateway whose streams have a large event, and gives the body that asks for one."""


def sending(*events: bytes) -> Script:
    """Send these events, and then nothing for long."""

    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await going_on()(call)
            return
        await call.begin()
        for each in events:
            await call.chunk(each)
        await call.gone.wait()

    return script


def losing(*events: bytes) -> Script:
    """Send these events, and close the connection once they are read."""

    async def script(call: EngineCall) -> None:
        call.body = b""
        await call.begin()
        for each in events:
            await call.chunk(each)
        await asyncio.sleep(0.1)
        call.cut()

    return script


def from_provider(*events: bytes) -> Callable[[ProviderCall], Any]:
    """Send these events as a provider, and then nothing for long."""

    async def script(call: ProviderCall) -> None:
        call.body = None
        await call.head(200, "text/event-stream")
        for each in events:
            await call.chunk(each)
        await call.closed.wait()

    return script


@asynccontextmanager
async def one_engine(
    *events: bytes, paid: bool = False, **body: Any
) -> AsyncIterator[tuple[RunningGateway, dict[str, Any]]]:
    async with ScriptedEngine(sending(*events)) as engine:
        directory = a_directory(
            a_model(a_replica(engine.address)), **(paying(10**15) if paid else {})
        )
        async with a_gateway(directory) as gateway:
            yield gateway, {**STREAM, **body}


@asynccontextmanager
async def lost_engine(
    lost: bytes, *events: bytes
) -> AsyncIterator[tuple[RunningGateway, dict[str, Any]]]:
    """Lose a stream after so much, and go on with it at another engine."""
    first = losing(ROLE, a_delta("one"), lost)
    async with replicas(first, sending(*events)) as (gateway, _):
        yield gateway, STREAM


@asynccontextmanager
async def one_provider(
    folder: Path, *events: bytes, text: str = ""
) -> AsyncIterator[tuple[RunningGateway, dict[str, Any]]]:
    model = {"max_output_tokens": 10**5, "max_context_tokens": 10**7}
    async with routed(folder, model=model) as world:
        world.provider.script = from_provider(*events)
        yield world.gateway, {**STREAM, "model": ROUTE, "messages": [a_message(text)]}


def a_message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@asynccontextmanager
async def failing_target(
    folder: Path, *failed: bytes, text: str = ""
) -> AsyncIterator[tuple[RunningGateway, dict[str, Any]]]:
    """Let the first target of a route fail after so much, and the second answer."""
    own = {"name": "own", "service": MODEL}
    async with ScriptedEngine(losing(*failed)) as engine:
        service = {"replicas": (a_replica(engine.address),)}
        spec = {"fallback": ["ServerError"]}
        model = {"max_context_tokens": 10**7}
        async with routed(folder, own, OUTSIDE, spec=spec, service=service, model=model) as world:
            world.provider.script = from_provider(LAST)
            yield world.gateway, {**STREAM, "model": ROUTE, "messages": [a_message(text)]}


SCENES: dict[str, Scene] = {
    "first event": lambda _, large: one_engine(large, LAST),
    "later event": lambda _, large: one_engine(a_delta(), large, LAST),
    "comment": lambda _, large: one_engine(ROLE, b":" + large, LAST),
    "two choices": lambda _, large: one_engine(large, LAST, n=2),
    "paid": lambda _, large: one_engine(
        large, LAST, paid=True, stream_options={"include_usage": True}
    ),
    "lost": lambda _, large: lost_engine(large[:-2], LAST),
    "resumed": lambda _, large: lost_engine(b":", large + LAST),
    "provider": lambda folder, large: one_provider(folder, large, LAST),
    "provider, later event": lambda folder, large: one_provider(folder, a_delta(), large, LAST),
    "body for a provider": lambda folder, large: one_provider(folder, LAST, text=large.decode()),
    "failed target": lambda folder, large: failing_target(folder, large[:-2]),
    "body of a failed target": lambda folder, large: failing_target(folder, text=large.decode()),
}


async def read_to_last(response: aiohttp.ClientResponse) -> None:
    """Read a stream to its last event, and keep nothing of it."""
    tail = b""
    async with asyncio.timeout(30):
        while b'"last"' not in tail:
            part = await response.content.readany()
            assert part, tail
            tail = (tail + part)[-1000:]


@asynccontextmanager
async def running(gateway: RunningGateway, body: object, count: int) -> AsyncIterator[None]:
    """Begin streams, and read what came of each."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            response = await stack.enter_async_context(
                gateway.client.post(
                    f"{gateway.url}/v1/chat/completions",
                    data=io.BytesIO(json.dumps(body).encode()),
                )
            )
            assert response.status == 200, await response.read()
            await read_to_last(response)
        yield


async def uncounted_bytes(scene: Scene, folder: Path, large: bytes) -> tuple[int, list[str]]:
    """Return what one stream takes that nobody counts, and what refers to large bytes."""
    async with scene(folder, large) as (gateway, body):
        # What is made once is there before.
        async with running(gateway, body, 1):
            pass
        await gateway.wait_for_held_bytes(0, 0)
        gc.collect()
        # What other tests have left in this process is not looked at.
        gc.freeze()
        tracemalloc.start()
        try:
            async with running(gateway, body, STREAMS):
                gc.collect()
                allocated, counted = tracemalloc.get_traced_memory()[0], gateway.held_bytes
                return (allocated - counted) // STREAMS, list(owners_of_large())
        finally:
            tracemalloc.stop()
            gc.unfreeze()


def owners_of_large() -> Iterator[str]:
    """Name what refers to as many bytes as a large event has, of what came since the freeze."""
    for owner in gc.get_objects():
        for value in gc.get_referents(owner):
            if isinstance(value, bytes | bytearray) and len(value) > LARGE_BYTES // 2:
                yield type(owner).__qualname__


@pytest.mark.parametrize("name", SCENES)
async def test_bytes_that_were_passed_on_are_not_kept(name: str, tmp_path: Path) -> None:
    for folder in ("small", "large"):
        (tmp_path / folder).mkdir()
    scene = SCENES[name]
    small, _ = await uncounted_bytes(scene, tmp_path / "small", a_delta())
    large, owners = await uncounted_bytes(scene, tmp_path / "large", LARGE)
    has_tls = "provider" in name or "target" in name
    assert large - small <= (MOST_TLS_BYTES if has_tls else MOST_BYTES), owners
