"""Engines of a tenant who attacks: each does what its script says, on every connection."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

MIB = 2**20

Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request: its head and body, and where the answer goes."""


async def serve_connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, script: Script
) -> None:
    """Answer the requests of one connection."""
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            for line in request.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    request += await reader.readexactly(int(line.partition(b":")[2]))
            await script(request, writer)
    writer.close()


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send bytes, and wait while the other side does not read."""
    writer.write(data)
    await writer.drain()


async def whole(writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send an answer that is no stream."""
    await send(
        writer,
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body),
    )


async def silent(_request: bytes, _writer: asyncio.StreamWriter) -> None:
    """Say nothing."""
    await asyncio.Event().wait()


def without_end(data: bytes) -> Script:
    """Return the engine whose streams are these bytes again and again."""

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        if request.startswith(b"GET"):
            await whole(writer, b"")
            return
        await send(
            writer,
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        )
        while True:
            await send(writer, data)

    return script


def answering(body: bytes) -> Script:
    """Return the engine that answers each request with these bytes."""

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        await whole(writer, b"" if request.startswith(b"GET") else body)

    return script


async def pages(request: bytes, writer: asyncio.StreamWriter) -> None:
    """Show a page that is long, and almost what the gateway looks for, again and again."""
    await whole(
        writer, b"vllm:num_requests_running{" * (MIB // 26) if b"/metrics" in request else b"{}"
    )
