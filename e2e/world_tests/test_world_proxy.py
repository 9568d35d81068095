"""The Service proxy byte by byte, on its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from world.api import Json
from world.proxy.endpoints import endpoints
from world.proxy.forward import Address, listen
from world.testing import a_container, a_pod

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def start_proxy(talk: Talk, *before: Address) -> AsyncIterator[Address]:
    """Start a proxy whose backends are `before`, then a server with `talk`; yield its address."""
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)
        await close(writer)
        over.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        backend = server.sockets[0].getsockname()[:2]
        async with await listen(("127.0.0.1", 0), lambda: [*before, backend]) as proxy:
            yield proxy.sockets[0].getsockname()[:2]
            await over.wait()


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def exchange(address: Address, *, say: bytes = b"", chunk: int = 2**16) -> bytes:
    """Send something, close that direction, and read the other to its end."""
    reader, writer = await asyncio.open_connection(*address, limit=chunk)
    writer.write(say)
    writer.write_eof()
    try:
        pieces = [data async for data in chunks(reader, chunk)]
    finally:
        await close(writer)
    return b"".join(pieces)


async def chunks(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while data := await reader.read(size):
        yield data


async def test_a_closed_direction_is_passed_on_and_the_other_stays_open() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()  # to its end
        writer.write(question.upper())

    async with start_proxy(talk) as address:
        assert await exchange(address, say=b"hello") == b"HELLO"


async def test_a_long_stream_arrives_whole_behind_a_slow_reader() -> None:
    total = 8 * 2**20

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(total // 2**16):
            writer.write(b"x" * 2**16)
            await writer.drain()

    async with start_proxy(talk) as address:
        assert len(await exchange(address, chunk=2**12)) == total


async def test_the_next_backend_is_tried_when_one_refuses() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")

    async with start_proxy(talk, ("127.0.0.1", 1), ("127.0.0.1", 2)) as address:
        assert await exchange(address) == b"here"


async def test_without_backends_the_connection_is_reset() -> None:
    async with await listen(("127.0.0.1", 0), list) as proxy:
        with pytest.raises(ConnectionResetError):
            await exchange(proxy.sockets[0].getsockname()[:2])


def a_running_pod(name: str, *, ready: bool = True, deleted: bool = False, **ports: int) -> Json:
    container = a_container(
        ports=[{"name": key, "containerPort": number} for key, number in ports.items()]
    )
    pod = a_pod(name, container, labels={"app": "web"})
    pod["metadata"] |= {"namespace": "ns"} | ({"deletionTimestamp": "now"} if deleted else {})
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return pod | {"status": {"podIP": f"ip-{name}", "conditions": [condition]}}


def a_web_service(**spec: object) -> Json:
    return {"metadata": {"namespace": "ns"}, "spec": {"selector": {"app": "web"}} | spec}


def test_only_ready_and_staying_pods_of_the_selector_are_backends() -> None:
    pods = [
        a_running_pod("a", http=1),
        a_running_pod("b", ready=False, http=2),
        a_running_pod("c", deleted=True, http=3),
    ]
    elsewhere = a_running_pod("d", http=4)
    elsewhere["metadata"]["namespace"] = "other"

    addresses = list(
        endpoints(a_web_service(), {"port": 80, "targetPort": "http"}, [*pods, elsewhere])
    )

    assert addresses == [("ip-a", 1)]


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ({"port": 80}, 80),
        ({"port": 80, "targetPort": 8000}, 8000),
        ({"port": 80, "targetPort": "http"}, 9000),
        ({"port": 80, "targetPort": "grpc"}, None),
    ],
)
def test_a_target_port_is_a_number_or_a_name_of_the_pod(port: Json, expected: int | None) -> None:
    addresses = list(endpoints(a_web_service(), port, [a_running_pod("a", http=9000)]))

    assert addresses == ([("ip-a", expected)] if expected else [])


def test_a_service_may_want_pods_before_they_are_ready() -> None:
    service = a_web_service(publishNotReadyAddresses=True)

    assert list(endpoints(service, {"port": 80}, [a_running_pod("a", ready=False)]))


def test_a_service_without_selector_has_no_pods() -> None:
    service: Json = {"metadata": {"namespace": "ns"}, "spec": {}}

    assert not list(endpoints(service, {"port": 80}, [a_running_pod("a")]))
