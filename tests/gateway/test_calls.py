"""How many of the gateway's own functions a request calls, so that growth shows itself.

Their number is the same on every machine, and does not depend on what else it does. A change that
needs more raises the bound with its reason.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

import tessera
from tests.gateway.harness import (
    COMPLETION,
    KEY,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

FOLDER = next(iter(tessera.__path__))
REQUESTS, CHUNKS = 5, 40
CHUNK = {"choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]}
EVENT = b"data: %b\n\n" % json.dumps(CHUNK, separators=(",", ":")).encode()
END = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":40}}\n\ndata: [DONE]\n\n'


@contextmanager
def counted_calls() -> Iterator[Callable[[], int]]:
    """Count calls of functions with a name of their own: others are inlined by later Pythons."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        code = frame.f_code
        calls += event == "call" and code.co_filename.startswith(FOLDER) and code.co_name[0] != "<"

    sys.setprofile(count)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(None)


async def answer(call: EngineCall) -> None:
    if not call.json.get("stream"):
        await call.whole(COMPLETION)
        return
    await call.begin()
    for _ in range(CHUNKS):
        await call.chunk(EVENT)
        # The gateway reads each chunk by itself.
        for _ in range(4):
            await asyncio.sleep(0)
    await call.chunk(END)
    await call.finish()


async def calls_of(body: dict[str, object]) -> int:
    """Return the calls of a request whose body, keys and engine the gateway knows."""
    data = json.dumps(body).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (KEY.encode(), len(data), data)
    )
    counts = list[int]()
    async with (
        asyncio.timeout(60),
        ScriptedEngine(answer) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        with counted_calls() as calls:
            for _ in range(REQUESTS):
                before = calls()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                if b"content-length" in head:
                    size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    await reader.readexactly(size)
                else:
                    await reader.readuntil(b"\r\n0\r\n\r\n")
                counts.append(calls() - before)
        writer.close()
    # The first ones find less, and what the gateway does each second is in some.
    return min(counts)


@pytest.mark.parametrize(("stream", "most"), [(False, 470), (True, 1445)])
async def test_a_request_calls_no_more_functions_than_before(*, stream: bool, most: int) -> None:
    messages = [{"role": "user", "content": "lorem ipsum " * 40}]
    calls = await calls_of(
        {"model": "chat", "messages": messages, "max_tokens": CHUNKS, "stream": stream}
    )
    assert calls <= most
