"""Clients who attack: each returns or is one attack on a connection of its own."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from secrets import token_hex

from attacks.engines import MIB, send
from tests.gateway.harness import KEY, STREAM


@dataclass(frozen=True, slots=True)
class Target:
    """The gateway that is attacked, at a port of this machine."""

    port: int
    tls: ssl.SSLContext | None
    """None where it speaks HTTP without TLS."""


Attack = Callable[[Target], Awaitable[None]]
"""Attacks a gateway once."""


async def wait(_target: Target) -> None:
    """Do nothing."""
    await asyncio.Event().wait()


def request_head(
    length: int | None,
    *lines: bytes,
    key: bytes = KEY.encode(),
    path: bytes = b"/v1/chat/completions",
) -> bytes:
    """Return the head of a chat request; without a length its body is in chunks."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    return b"\r\n".join(
        (b"POST %b HTTP/1.1" % path, b"host: x", b"authorization: Bearer " + key,
         b"content-type: application/json", framing, *lines, b"", b"")
    )  # fmt: skip


@asynccontextmanager
async def connection(
    target: Target,
    source: str = "127.0.0.1",
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to the gateway from an address of this machine."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", target.port, limit=2**24, local_addr=(source, 0), ssl=target.tls
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def posting(body: object, *, reads: bool = True, path: bytes = b"/v1/chat/completions") -> Attack:
    """Return the attack that sends a body, and reads all of the answer or nothing."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def attack(target: Target) -> None:
        async with connection(target) as (reader, writer):
            await send(writer, request_head(len(data), b"connection: close", path=path) + data)
            if not reads:
                await asyncio.Event().wait()
            while await reader.read(2**16):
                pass

    return attack


def unfinished(size: int) -> Attack:
    """Return the attack that sends all of a body but its last byte, and waits."""
    part = b" " * 2**16

    async def attack(target: Target) -> None:
        async with connection(target) as (reader, writer):
            await send(writer, request_head(size + 1))
            for _ in range(size // len(part)):
                await send(writer, part)
            await reader.read()

    return attack


async def trailers(target: Target) -> None:
    """Send trailers without end."""
    async with connection(target) as (_, writer):
        await send(writer, request_head(None) + b"2\r\n{}\r\n0\r\n")
        for number in count():
            await send(writer, b"x-%d: %b\r\n" % (number, b"y" * 2**14))


async def extensions(target: Target) -> None:
    """Send extensions of chunks without end."""
    async with connection(target) as (_, writer):
        await send(writer, request_head(None))
        while True:
            await send(writer, b"1;" + b"x" * 2**14 + b"\r\n{\r\n")


async def upgrades(target: Target) -> None:
    """Offer to upgrade, with requests in the body."""
    async with connection(target) as (reader, writer):
        offer = request_head(2 * MIB, b"connection: upgrade", b"upgrade: websocket")
        await send(
            writer, offer + b"\r\n" * MIB + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 99
        )
        await reader.read(1)


async def idle(target: Target) -> None:
    """Say nothing."""
    async with connection(target) as (reader, _):
        await reader.read()


async def leave(target: Target) -> None:
    """Leave before the first token."""
    async with connection(target) as (_, writer):
        data = json.dumps(
            {**STREAM, "messages": [{"role": "user", "content": "x " * 9999}]}
        ).encode()
        await send(writer, request_head(len(data)) + data)
        await asyncio.sleep(0.01)


async def unknown_keys(target: Target) -> None:
    """Try keys that do not exist."""
    async with connection(target) as (reader, writer):
        for _ in range(100):
            await send(writer, request_head(2, key=token_hex(16).encode()) + b"{}")
            await reader.readuntil(b"\r\n\r\n")
