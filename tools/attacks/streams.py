"""Engines whose streams break, and what the engine that goes on with them sends."""

import asyncio
from itertools import count

from attacks.engines import MIB, Script, send, whole
from tests.gateway.harness import DONE, END, a_delta, event

_CONTINUED = (b'"continue_final_message"', b'"prompt":"go on')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def broken(first: bytes, then: bytes = a_delta() + END + DONE, times: int = 1) -> Script:
    """Return the engine that breaks a stream after some bytes, and goes on with others.

    It counts no tokens.
    """

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        line, _, _ = request.partition(b"\r\n")
        if not line.startswith(b"POST /v1/"):
            await whole(writer, b"{}")
        elif any(word in request for word in _CONTINUED):
            await send(writer, _HEAD)
            for _ in range(times):
                await send(writer, then)
            writer.close()
        else:
            await send(writer, _HEAD + first)
            writer.transport.abort()

    return script


def endless(first: bytes, pause_seconds: float = 1.0) -> Script:
    """Return the engine whose streams say so much at once, and then a word now and then."""

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        if not request.startswith(b"POST /v1/"):
            await whole(writer, b"{}")
            return
        await send(writer, _HEAD + first)
        while True:
            await asyncio.sleep(pause_seconds)
            await send(writer, a_delta())

    return script


def statuses() -> Script:
    """Return the engine that refuses each request by another status."""
    numbers = count()

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        status = 405 + next(numbers) % 94 if request.startswith(b"POST") else 200
        await send(writer, b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status)

    return script


def _choices(count_of_choices: int) -> bytes:
    return b'data: {"id":"x","choices":[%b{}]}\n\n' % (b"{}," * count_of_choices)


LARGE_HEAD = event({"id": "x" * (2 * MIB - 4096), "choices": [{"delta": {"content": "x"}}]})
HEAD = event(
    {
        "id": "x" * 250,
        "object": "o" * 250,
        "model": "m" * 250,
        "choices": [{"delta": {"content": "x"}}],
    }
)
SMALL_EVENTS = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' * 490
EMPTY_CHOICES = a_delta() + _choices(650_000)
MANY_FIELDS = b"data: {%b}\n\n" % (
    b"".join(b'"%06x":1,' % number for number in range(300_000))
    + b'"choices":[{"delta":{"content":"x"}}]'
)
SPACES = a_delta("x" + " " * (2 * MIB - 2**14))
TOKEN_IDS = a_delta(token_ids=[1] * 900_000)
LONG_TEXT = a_delta("word " * 3) + a_delta("x" * 100) * 8_000
