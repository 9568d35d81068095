"""Clients that ask for more than they read: what they get is whole, and holds nothing elsewhere."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tessera.gateway.http.protocol import GatewayProtocol
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    KEY,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.resumed import going_on, replicas
from world.testing import eventually

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


def post(body: object) -> bytes:
    data = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (KEY.encode(), len(data), data)
    )


@asynccontextmanager
async def a_client(
    gateway: RunningGateway, send_bytes: int = 2**12
) -> AsyncIterator[socket.socket]:
    """Connect with small buffers, so that what is not read stays in the gateway."""
    gateway.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
        yield client


async def connection_of(gateway: RunningGateway) -> GatewayProtocol:
    """Return the only connection, once it is there."""

    async def is_one() -> None:
        assert len(gateway.server.server_state.connections) == 1

    await eventually(is_one)
    (connection,) = gateway.server.server_state.connections
    assert isinstance(connection, GatewayProtocol)
    return connection


@pytest.mark.parametrize(
    "asked",
    [post(CHAT), post({**CHAT, "model": "unknown"}), GET],
    ids=["chat", "refused", "healthz"],
)
async def test_an_answer_whose_head_fills_the_buffer_comes_whole(
    asked: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def answer(call: EngineCall) -> None:
        await call.whole(COMPLETION)

    async with (
        ScriptedEngine(answer) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
        a_client(gateway) as client,
    ):
        loop, connection = asyncio.get_running_loop(), await connection_of(gateway)
        transport = connection.transport
        # Stands for responses before, up to the mark at which nothing more is to be written.
        while not transport.get_write_buffer_size():
            transport.write(b"#" * 1000)
        for _ in range(10):
            # The kernel takes more for a while.
            transport.write(b"#" * (65_436 - transport.get_write_buffer_size()))
            await asyncio.sleep(0.05)
        await loop.sock_sendall(client, asked)

        async def is_full() -> None:
            assert connection.reads_slowly

        await eventually(is_full)
        read = b""
        while not read.endswith(b"}") and (part := await loop.sock_recv(client, 2**16)):
            read += part
    assert read.count(b"HTTP/1.1 ") == 1
    assert read.endswith(b"}")
    assert not caplog.records


async def test_what_a_client_reads_counts_at_once_however_much_its_machine_was_sent() -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        for _ in range(8):
            await call.chunk(a_delta("x" * 2**20))
        await call.gone.wait()

    async with (
        ScriptedEngine(script) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
        a_client(gateway, send_bytes=2**22) as client,
    ):
        loop, connection = asyncio.get_running_loop(), await connection_of(gateway)
        await loop.sock_sendall(client, post(STREAM))

        async def is_full() -> None:
            size = connection.transport.get_write_buffer_size()
            await asyncio.sleep(0.2)
            assert size == connection.transport.get_write_buffer_size() > 2**20

        await eventually(is_full)
        before, waiting = connection.read_bytes, connection.transport.get_write_buffer_size()
        read = 0
        while read < 50_000:
            read += len(await loop.sock_recv(client, 2000))

        async def is_counted() -> None:
            assert 30_000 < connection.read_bytes - before < 70_000

        await eventually(is_counted)
        # Its machine says that there is room for more once much of it is gone.
        assert connection.transport.get_write_buffer_size() == waiting


async def test_a_resumed_stream_frees_its_place_while_its_client_reads_slowly() -> None:
    large = a_delta("x" * 50_000)

    async def first(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        for _ in range(4):
            await call.chunk(large)
        await asyncio.sleep(0.1)
        call.cut()

    second = going_on(ROLE, *[large] * 10, END, USAGE, DONE)
    async with replicas(first, second) as (gateway, engines), a_client(gateway) as client:
        await asyncio.get_running_loop().sock_sendall(client, post(STREAM))

        async def has_ended() -> None:
            # Two questions for its tokens, and the stream.
            assert len(engines[1].calls) == 3
            assert gateway.admission.demand == {}
            # Its client has not read all.
            assert gateway.app.running(1)[1] == 1

        await eventually(has_ended)


async def test_the_end_of_a_request_leaves_the_next_one_of_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first has its whole answer, but for the trailer of its engine, when it is cancelled."""
    caplog.set_level(logging.ERROR)
    second = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.begin()
        if call.json.get("user") == "second":
            await call.chunk(ROLE + a_delta("one"))
            second.set()
            await call.gone.wait()
        else:
            await call.chunk(ROLE + a_delta("one") + END + USAGE + DONE)
            await call.gone.wait()

    async with (
        ScriptedEngine(script) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        async with a_client(gateway) as client:
            asked = post(STREAM) + post({**STREAM, "user": "second"})
            await asyncio.get_running_loop().sock_sendall(client, asked)
            await second.wait()
            first, _ = sorted(gateway.server.server_state.tasks, key=number)
            first.cancel()
            await asyncio.wait((first,))
            assert gateway.admission.demand != {}

        async def is_idle() -> None:
            assert not gateway.server.server_state.tasks
            assert gateway.admission.demand == {}

        # Its client is gone, which the second hears of.
        await eventually(is_idle)
    assert not caplog.records


def number(task: asyncio.Task[None]) -> int:
    """Return the number of a task, in the order in which they began."""
    return int(task.get_name().partition("-")[2])
