"""Clients that leave before their answer: known within a second, whatever they sent."""

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.directory import Directory, Identity, TenantLimits
from tessera.gateway.http.protocol import GatewayProtocol
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    TENANT,
    EngineCall,
    KeyIdentifier,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from world.keys import Authority
from world.testing import eventually

WAIT_SECONDS = 60
GONE_SECONDS = 1
KB, MB = 1000, 1_000_000
# At once, a body of 200 kB to 900 kB ends in the middle of what the event loop reads.
SIZES = (KB, 140 * KB, 200 * KB, 262 * KB, 600 * KB, 2 * MB, 8 * MB)
PIECE_BYTES = 16 * 2**10
# What the event loop reads of a connection before it hands it on.
READ_BYTES = 2**18
ADDRESS = "127.0.0.1"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run on the event loop of the product, whose flow control is looked at here."""
    return "asyncio", {"use_uvloop": True}


def request(size: int = KB, **fields: Any) -> bytes:
    """Return a request with a prompt of so many bytes."""
    body = {**CHAT, "messages": [{"role": "user", "content": "x" * size}], **fields}
    data = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (KEY.encode(), len(data), data)
    )


async def is_silent(call: EngineCall) -> None:
    await call.gone.wait()


@asynccontextmanager
async def a_client(
    gateway: RunningGateway, tls: ssl.SSLContext | None = None
) -> AsyncIterator[asyncio.StreamWriter]:
    _, writer = await asyncio.open_connection(ADDRESS, gateway.port, ssl=tls)
    try:
        yield writer
    finally:
        writer.transport.abort()


async def send(writer: asyncio.StreamWriter, data: bytes, *, in_pieces: bool = False) -> None:
    step = PIECE_BYTES if in_pieces else len(data)
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
        await writer.drain()


async def is_noticed(gateway: RunningGateway, writer: asyncio.StreamWriter) -> None:
    """Close the connection, and expect the record of a client that is gone soon."""
    left_at = time.monotonic()
    writer.close()
    record = await gateway.record()
    assert (record.phase, record.reason) == ("Aborted", "ClientGone")
    assert time.monotonic() - left_at < GONE_SECONDS


async def is_at_engine(engine: ScriptedEngine, requests: int = 1) -> None:
    async def are_sent() -> None:
        assert len(engine.calls) == requests

    await eventually(are_sent)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sending", ["at once", "in pieces"])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_a_client_that_leaves_is_noticed_and_its_engine_is_stopped(
    size: int, sending: str, streams: bool
) -> None:
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(is_silent) as engine:
        model = a_model(a_replica(engine.address), max_model_len=131_072)
        async with a_gateway(a_directory(model)) as gateway, a_client(gateway) as writer:
            await send(writer, request(size, stream=streams), in_pieces=sending == "in pieces")
            await is_at_engine(engine)
            await is_noticed(gateway, writer)
            await engine.calls[0].gone.wait()


@pytest.mark.parametrize("size", [KB, 600 * KB, 8 * MB])
async def test_it_is_noticed_over_tls(size: int, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "keys")
    pair = authority.server("gateway", ADDRESS)
    shutil.copy(pair.key, tmp_path / "tls.key")
    shutil.copy(pair.certificate, tmp_path / "tls.crt")
    tls = ssl.create_default_context(cafile=str(authority.own.certificate))
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(is_silent) as engine:
        directory = a_directory(a_model(a_replica(engine.address), max_model_len=131_072))
        async with (
            a_gateway(directory, tls_directory=tmp_path) as gateway,
            a_client(gateway, tls) as writer,
        ):
            await send(writer, request(size))
            await is_at_engine(engine)
            await is_noticed(gateway, writer)
            await engine.calls[0].gone.wait()


class _SlowAfterTheBody(KeyIdentifier):
    """Takes its time when it is asked again, after the body came."""

    def __init__(self) -> None:
        self.asked = 0
        self.goes_on = asyncio.Event()

    @override
    async def identify(
        self, headers: Mapping[bytes, bytes], directory: Directory, address: str
    ) -> Identity:
        self.asked += 1
        if self.asked == 2:
            await self.goes_on.wait()
        return await super().identify(headers, directory, address)


async def test_who_leaves_while_his_key_is_looked_up_again_reaches_no_engine() -> None:
    identifier = _SlowAfterTheBody()
    # One that does not expire is looked up again in another directory alone.
    key = an_api_key(expires=datetime(2100, 1, 1, tzinfo=UTC))
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(is_silent) as engine:
        directory = a_directory(a_model(a_replica(engine.address)), keys=(key,))
        async with (
            a_gateway(directory, identifier=identifier) as gateway,
            a_client(gateway) as writer,
        ):
            await send(writer, request(600 * KB))

            async def is_asked_again() -> None:
                assert identifier.asked == 2

            await eventually(is_asked_again)
            writer.close()

            async def is_closed() -> None:
                assert not gateway.server.server_state.connections

            await eventually(is_closed)
            identifier.goes_on.set()
            record = await gateway.record()
            assert (record.phase, record.reason) == ("Aborted", "ClientGone")
            assert not engine.calls


@asynccontextmanager
async def a_full_listener() -> AsyncIterator[str]:
    """Yield an address that takes no further connection and refuses none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((ADDRESS, 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        yield f"{ADDRESS}:{listener.getsockname()[1]}"


async def leaves_while_it_waits(
    directory: Directory, data: bytes, waits: Callable[[RunningGateway], Awaitable[object]]
) -> None:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        a_gateway(directory) as gateway,
        a_client(gateway) as writer,
    ):
        await send(writer, data)
        await waits(gateway)
        await is_noticed(gateway, writer)


@pytest.mark.parametrize("size", [KB, 600 * KB])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_it_is_noticed_while_it_waits_for_a_sleeping_model(size: int, streams: bool) -> None:
    directory = a_directory(a_model(may_sleep=True, is_asleep=True))
    data = request(size, stream=streams)
    await leaves_while_it_waits(directory, data, lambda gateway: gateway.woken.wait())


@pytest.mark.parametrize("size", [KB, 600 * KB])
async def test_it_is_noticed_while_the_engine_takes_no_connection(size: int) -> None:
    async with a_full_listener() as address:
        directory = a_directory(a_model(a_replica(address)))
        data = request(size)
        await leaves_while_it_waits(directory, data, lambda gateway: gateway.wait_for_in_flight(1))


@pytest.mark.parametrize("size", [KB, 600 * KB])
async def test_it_is_noticed_while_all_places_are_taken(size: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(is_silent) as engine:
        directory = a_directory(a_model(a_replica(engine.address, max_num_seqs=1)))
        async with a_gateway(directory) as gateway, contextlib.AsyncExitStack() as clients:
            for running in (1, 2):
                await send(await clients.enter_async_context(a_client(gateway)), request())
                await is_at_engine(engine, running)
            writer = await clients.enter_async_context(a_client(gateway))
            await send(writer, request(size))
            await gateway.wait_for_queue(1)
            await is_noticed(gateway, writer)
            assert gateway.queued_requests == 0


@pytest.mark.parametrize("size", [KB, 600 * KB])
async def test_it_is_noticed_while_limits_are_borrowed(size: int) -> None:
    limits = RateLimitsSpec(total_tokens=PeriodLimits(per_minute=10 * MB))
    tenants = {TENANT: TenantLimits(name=TENANT, namespaces=(TENANT,), limits=limits)}
    directory = a_directory(a_model(a_replica(f"{ADDRESS}:1")), tenants=tenants)
    async with asyncio.timeout(WAIT_SECONDS), a_gateway(directory) as gateway:
        gateway.accounts.is_reachable.clear()
        async with a_client(gateway) as writer:
            await send(writer, request(size))
            await gateway.accounts.asked.wait()
            await is_noticed(gateway, writer)


@pytest.mark.parametrize("size", [KB, 200 * KB, 2 * MB])
async def test_a_request_behind_a_large_body_is_answered_after_it(size: int) -> None:
    answers = asyncio.Event()

    async def answer(call: EngineCall) -> None:
        await answers.wait()
        await call.whole(COMPLETION)

    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(answer) as engine:
        directory = a_directory(a_model(a_replica(engine.address), max_model_len=131_072))
        async with a_gateway(directory) as gateway:
            reader, writer = await asyncio.open_connection(ADDRESS, gateway.port)
            sending = asyncio.create_task(send(writer, request(size) + request(size)))
            await is_at_engine(engine)
            answers.set()
            for _ in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length)) == COMPLETION
            await sending
            writer.close()


@pytest.mark.parametrize("following", [200 * KB, 20 * MB], ids=["sent", "in sending"])
async def test_of_what_follows_a_large_body_little_is_held_and_its_sender_may_leave(
    following: int,
) -> None:
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(is_silent) as engine:
        directory = a_directory(a_model(a_replica(engine.address), max_model_len=131_072))
        async with a_gateway(directory) as gateway, a_client(gateway) as writer:
            writer.write(request(600 * KB) + request(following))
            await is_at_engine(engine)
            (connection,) = gateway.server.server_state.connections
            assert isinstance(connection, GatewayProtocol)

            async def is_behind() -> None:
                assert connection.pipeline

            await eventually(is_behind)
            assert sum(len(cycle.body) for cycle, _ in connection.pipeline) <= READ_BYTES
            assert connection.flow.read_paused
            if following > READ_BYTES:
                # The end of the connection would wait behind what is not read, a reset does not.
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                writer.transport.abort()
            await is_noticed(gateway, writer)
