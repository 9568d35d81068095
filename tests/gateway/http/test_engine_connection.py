"""Connections to engines, which may be anything: against scripted engines on real sockets."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tessera.gateway.http.engine_connection import (
    MAX_READ_BYTES,
    ConnectionLostError,
    EngineConnection,
    EngineSession,
    InvalidHttpError,
)
from tests.gateway.harness import EngineCall, Script, ScriptedEngine

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def sending(*parts: bytes, then_cut: bool = False) -> Script:
    async def script(call: EngineCall) -> None:
        for part in parts:
            await call.send(part)
        if then_cut:
            call.writer.close()

    return script


@asynccontextmanager
async def connected(script: Script) -> AsyncIterator[tuple[EngineSession, EngineConnection, str]]:
    session = EngineSession(idle_seconds=WAIT_SECONDS)
    async with ScriptedEngine(script) as engine, asyncio.timeout(WAIT_SECONDS):
        try:
            yield session, await session.connect(engine.address), engine.address
        finally:
            await session.close()


async def test_a_connection_is_used_again() -> None:
    async with connected(lambda call: call.whole(b"[1]")) as (session, connection, address):
        for _ in range(3):
            await connection.send(REQUEST)
            assert (connection.status, connection.content_type) == (200, b"application/json")
            assert await connection.read(100) == b"[1]"
            session.release(connection, address)
            assert await session.connect(address) is connection


async def test_a_peer_that_vanishes_is_noticed_within_half_a_minute() -> None:
    async with connected(lambda call: call.whole(b"[1]")) as (_, connection, _):
        assert connection._transport is not None
        peer = connection._transport.get_extra_info("socket")

        def tcp(option: int) -> int:
            return int(peer.getsockopt(socket.IPPROTO_TCP, option))

        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        probes = tcp(socket.TCP_KEEPINTVL) * tcp(socket.TCP_KEEPCNT)
        assert 0 < tcp(socket.TCP_KEEPIDLE) + probes <= 30
        assert 0 < tcp(socket.TCP_USER_TIMEOUT) <= 30_000


async def test_a_connection_whose_response_is_not_complete_is_closed() -> None:
    async def script(call: EngineCall) -> None:
        calls.append(call)
        await call.begin()
        await call.gone.wait()

    calls: list[EngineCall] = []
    async with connected(script) as (session, connection, address):
        await connection.send(REQUEST)
        session.release(connection, address)
        assert not connection.reusable
        await calls[0].gone.wait()
        assert await session.connect(address) is not connection


@pytest.mark.parametrize("size", [2, MAX_READ_BYTES - len(OK + b"content-length: 00000\r\n\r\n")])
async def test_a_connection_on_which_comes_what_nobody_asked_for_is_closed(size: int) -> None:
    response = OK + b"content-length: %d\r\n\r\n%b" % (size, b"x" * size)
    async with connected(sending(response + response)) as (session, connection, address):
        await connection.send(REQUEST)
        assert await connection.read(MAX_READ_BYTES) == b"x" * size
        session.release(connection, address)
        assert await session.connect(address) is not connection


async def test_the_end_of_a_body_that_comes_with_what_is_no_response_is_handed_on() -> None:
    async def script(call: EngineCall) -> None:
        await call.send(OK + b"content-length: 6\r\n\r\nabc")
        await taken.wait()
        await call.send(b"def" + OK + b"content-length: 6\r\n\r\nforged")

    def take(data: bytes) -> bool:
        parts.append(data)
        taken.set()
        return True

    parts: list[bytes] = []
    taken = asyncio.Event()
    async with connected(script) as (session, connection, address):
        await connection.send(REQUEST)
        assert await connection.forward(take)
        assert parts == [b"abc", b"def"]
        session.release(connection, address)
        assert not connection.reusable


async def test_a_response_that_is_only_announced_is_waited_for() -> None:
    continued = b"HTTP/1.1 100 Continue\r\n\r\n"
    async with connected(sending(continued, OK + b"content-length: 2\r\n\r\n[]")) as (
        _,
        connection,
        _,
    ):
        await connection.send(REQUEST)
        assert (connection.status, await connection.read(100)) == (200, b"[]")


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async with connected(sending(OK + b"\r\n", b"[1", b"]", then_cut=True)) as (
        _,
        connection,
        _,
    ):
        await connection.send(REQUEST)
        assert await connection.read(100) == b"[1]"
        assert not connection.reusable


@pytest.mark.parametrize(
    "head", [b"content-length: 10\r\n\r\n[1]", b"transfer-encoding: chunked\r\n\r\n3\r\n[1]\r\n"]
)
async def test_a_body_that_breaks_off_is_no_body(head: bytes) -> None:
    async with connected(sending(OK + head, then_cut=True)) as (_, connection, _):
        await connection.send(REQUEST)
        with pytest.raises(ConnectionLostError):
            await connection.read(100)


@pytest.mark.parametrize(
    "response",
    [
        OK + b"x: " + b"y" * 100_000,
        OK + b"transfer-encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\nx: " + b"y" * 1_000_000,
        OK + b"transfer-encoding: chunked\r\n\r\nzzz\r\n",
        OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=["large head", "large trailer", "no chunk", "two lengths", "upgrade"],
)
async def test_what_is_no_response_ends_the_connection(response: bytes) -> None:
    async with connected(sending(response)) as (session, connection, address):
        with pytest.raises(InvalidHttpError):  # noqa: PT012 - in the head or in the body
            await connection.send(REQUEST)
            await connection.read(100)
        session.release(connection, address)
        assert not connection.reusable


async def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        while not call.gone.is_set():
            await call.chunk(b"x" * 50)

    async with connected(script) as (_, connection, _):
        await connection.send(REQUEST)
        assert await connection.read(100) is None


async def test_a_consumer_gets_what_came_while_it_took_nothing() -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        for number in range(200):
            await call.chunk(b"%05d" % number * 1000)
        await call.finish()

    def take_a_part(data: bytes) -> bool:
        parts.append(data)
        return False

    parts: list[bytes] = []
    async with connected(script) as (_, connection, _):
        await connection.send(REQUEST)
        while not await connection.forward(take_a_part):
            pass
    assert b"".join(parts) == b"".join(b"%05d" % number * 1000 for number in range(200))


async def test_a_connection_that_was_held_back_to_the_end_is_not_used_again() -> None:
    async with connected(lambda call: call.begin()) as (session, connection, address):
        await connection.send(REQUEST)
        connection.data_received(b"186a0\r\n" + b"x" * 10_000)
        for _ in range(9):
            connection.data_received(b"x" * 10_000)
        connection.data_received(b"\r\n0\r\n\r\n")
        assert await connection.forward(lambda _: False)
        session.release(connection, address)
        assert await session.connect(address) is not connection


async def test_others_have_their_turn_while_much_comes_at_once() -> None:
    taken = 0

    def take(data: bytes) -> bool:
        nonlocal taken
        taken += len(data)
        return True

    async def watch() -> None:
        while not forwarding.done():
            seen.append(taken)
            await asyncio.sleep(0)

    size, seen = 64 * MAX_READ_BYTES, [0]
    async with connected(lambda call: call.begin()) as (_, connection, _):
        await connection.send(REQUEST)
        forwarding = asyncio.create_task(connection.forward(take))
        await asyncio.sleep(0)
        connection.data_received(b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size))
        await watch()
        assert await forwarding
    assert taken == size
    assert max(after - before for before, after in itertools.pairwise(seen)) <= MAX_READ_BYTES


async def test_parts_that_take_long_take_a_fifth_of_the_time_of_a_namespace() -> None:
    session = EngineSession(idle_seconds=WAIT_SECONDS)
    rests = [session.rest_seconds("team-a", 1.0) for _ in range(3)]
    # Streams that rest at the same time go on one after another.
    assert rests == pytest.approx([4, 8, 12], abs=1)
    assert session.rest_seconds("team-b", 0.01) == pytest.approx(0.04, abs=0.01)
