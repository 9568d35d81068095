"""Replicas that lose a stream, or go on with it, and what its client reads."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.gateway.harness import (
    DONE,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
RESUMED = b": x-tessera-resumed: 1\n\n"
UNPROTECTED = b": x-tessera-resumable: false\n\n"


def data_of(body: bytes) -> list[Any]:
    """Return what the events of a stream say, without comments and `[DONE]`."""
    lines = [line for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


async def events_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Return the events of an answer, each once it is complete."""
    waiting = b""
    async for part in answer.aiter_bytes():
        *whole, waiting = (waiting + part).split(b"\n\n")
        for each in whole:
            yield each + b"\n\n"


def text_of(events: Sequence[Any]) -> str:
    choices = [choice for each in events for choice in each["choices"]]
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices
    )


def usage_of(events: Sequence[Any]) -> Any:
    return next((each["usage"] for each in events if each.get("usage")), None)


@asynccontextmanager
async def replicas(
    *scripts: Script, engines: Sequence[str] = (), **options: Any
) -> AsyncIterator[tuple[RunningGateway, list[ScriptedEngine]]]:
    """Run a gateway before one engine for each script, of which the first gets the stream.

    `engines` says what they are, if they differ.
    """
    servers = [ScriptedEngine(script) for script in scripts]
    for server in servers:
        await server.__aenter__()
    names = engines or [""] * len(servers)
    known = [
        a_replica(server.address, f"chat-{number}", engine=engine)
        for number, (server, engine) in enumerate(zip(servers, names, strict=True), start=1)
    ]
    try:
        # The counter of turns begins with 1.
        directory = a_directory(a_model(*known[-1:], *known[:-1]))
        async with a_gateway(directory, **options) as gateway:
            yield gateway, servers
    finally:
        for server in servers:
            await server.__aexit__()


def breaking(*events: bytes) -> Script:
    """Send a stream that breaks after these events."""

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(b"".join(events))
        await asyncio.sleep(0)
        call.cut()

    return script


def going_on(*events: bytes, prompt: int = 4, begun: int = 5) -> Script:
    """Count tokens, and send a stream."""

    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize":
            body = call.json
            is_begun = body.get("continue_final_message") or "word" in body.get("prompt", "")
            count = begun if is_begun else prompt
            await call.whole({"count": count, "tokens": list(range(count)), "max_model_len": 99})
        else:
            await call.stream(*events)

    return script


def in_turn(asked: list[Any], *scripts: Script) -> Script:
    """Do for each stream what the next script says, whichever engine gets it."""
    following, tokenizing = iter(scripts), going_on(DONE)

    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await tokenizing(call)
        else:
            asked.append(call.json)
            await next(following)(call)

    return script
