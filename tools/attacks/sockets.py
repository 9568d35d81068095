"""Attacks by many connections, whose requests never begin or end."""

import asyncio
import json
from itertools import count

from attacks.engines import send
from attacks.sending import Attack, Target, connection, request_head
from tests.gateway.harness import STREAM

# A record of TLS that announces 16,000 bytes, all of which a greeting may have, but for some.
_HELLO = b"\x16\x03\x01\x3e\x80\x01\x00\x3e\x7c\x03\x03" + b"x" * 15_900
_numbers = count()


def _address() -> str:
    """Return another address of this machine each time, of some 60,000."""
    number = next(_numbers) % 60_000
    return f"127.{64 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


def handshakes(*, spread: bool) -> Attack:
    """Return the attack that begins a handshake, from one address or from many."""

    async def attack(target: Target) -> None:
        source = _address() if spread else "127.0.0.1"
        async with connection(Target(target.port, None), source) as (reader, writer):
            await send(writer, _HELLO)
            await reader.read()

    return attack


async def headers_without_end(target: Target) -> None:
    """Send as much of the headers of a request as may be, and wait."""
    async with connection(target) as (reader, writer):
        await send(writer, request_head(2)[:-2])
        for number in range(56):
            await send(writer, b"x-%d: %b\r\n" % (number, b"y" * 1000))
        await reader.read()


async def pipelined(target: Target) -> None:
    """Send requests behind a stream that does not end."""
    async with connection(target) as (reader, writer):
        body = json.dumps(STREAM).encode()
        request = request_head(len(body), b"x-large: " + b"y" * 40_000) + body
        await send(writer, request * 9)
        await reader.read()


async def new_addresses(target: Target) -> None:
    """Connect from another address, and say nothing for a while."""
    async with connection(target, _address()) as (reader, _), asyncio.timeout(2):
        await reader.read()


def listing(*, reads: bool) -> Attack:
    """Return the attack that asks for all models again and again, and reads them or not."""
    request = request_head(0).replace(b"POST /v1/chat/completions", b"GET /v1/models")

    async def attack(target: Target) -> None:
        async with connection(target) as (reader, writer):
            while True:
                await send(writer, request * 8)
                if not reads:
                    await asyncio.Event().wait()
                await reader.readuntil(b'"data":')

    return attack
