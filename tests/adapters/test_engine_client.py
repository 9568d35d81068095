"""Responses of pods are read within a time and a size, whatever they send."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from tessera.adapters.engine_client import HttpEngines
from tests.adapters.small_server import OK, raw_server

DEADLINE_SECONDS = 60


def a_pod(answer: bytes, again: bytes = b"", every: float = 0) -> AbstractAsyncContextManager[str]:
    return raw_server(lambda _: (answer, again), every)


@pytest.fixture
async def engines() -> AsyncIterator[HttpEngines]:
    client = HttpEngines(completion_seconds=0.5, load_seconds=0.5)
    yield client
    await client.close()


EngineCall = Callable[[HttpEngines, str], Awaitable[object]]
CALLS: list[EngineCall] = [
    lambda engines, address: engines.progress(address),
    lambda engines, address: engines.in_flight(address),
    lambda engines, address: engines.probe(f"http://{address}", "small"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("again", "every"), [(b" " * 2**16, 0), (b" ", 0.05)], ids=["fast", "slowly"]
)
async def test_an_answer_without_end_is_not_read_to_its_end(
    engines: HttpEngines, call: EngineCall, again: bytes, every: float
) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS), a_pod(OK + b"\r\n{", again, every) as address:
        outcome = await call(engines, address)
    assert outcome is None or "POST" in str(outcome)


@contextlib.asynccontextmanager
async def a_closed_port() -> AsyncIterator[str]:
    async with a_pod(b"") as address:
        pass
    yield address


@contextlib.asynccontextmanager
async def a_pod_that(end: Callable[[asyncio.StreamWriter], None]) -> AsyncIterator[str]:
    """A pod that ends each connection before it reads a request."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"{host}:{port}"


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    ("pod", "seconds", "problem"),
    [
        (a_closed_port, 60, "the connection failed"),
        (lambda: a_pod_that(reset), 60, "the connection failed"),
        (lambda: a_pod_that(asyncio.StreamWriter.close), 60, "the connection failed"),
        (lambda: a_pod(OK + b"\r\n{", b" ", 0.05), 0.5, "no complete response within 0.5 s"),
        (lambda: a_pod(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), 60, "the response is not HTTP"),
        (lambda: a_pod(OK + b"Content-Length: 9\r\n\r\n{"), 60, "the connection failed"),
    ],
    ids=["refused", "reset", "closed", "slow", "another protocol", "incomplete"],
)
async def test_an_engine_that_does_not_answer_has_one_message_for_each_class_of_failure(
    pod: Callable[[], AbstractAsyncContextManager[str]], seconds: float, problem: str
) -> None:
    engines = HttpEngines(completion_seconds=seconds)
    async with pod() as address:
        texts = {await engines.probe(f"http://{address}", "small") for _ in range(5)}
        assert texts == {f"POST http://{address}/v1/completions: {problem}"}
    await engines.close()


async def test_an_answer_that_unpacks_to_more_is_no_answer(engines: HttpEngines) -> None:
    packed = OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"
    async with a_pod(packed) as address:
        assert await engines.progress(address) is None


async def test_answers_are_read() -> None:
    engines = HttpEngines(completion_seconds=DEADLINE_SECONDS, load_seconds=DEADLINE_SECONDS)

    def ok_response(body: bytes) -> bytes:
        return OK + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)

    async with a_pod(ok_response(b'{"attempt": 3, "done": 5}')) as address:
        progress = await engines.progress(address)
    assert progress is not None
    assert (progress.attempt, progress.done) == (3, 5)
    async with a_pod(ok_response(b'{"server_load": 2}')) as address:
        assert await engines.in_flight(address) == 2
    async with a_pod(ok_response(b'{"usage": {"completion_tokens": 1}}')) as address:
        assert await engines.probe(f"http://{address}", "small") is None
    async with a_pod(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nwho") as address:
        assert str(await engines.probe(f"http://{address}", "small")).endswith(
            "completions: 404 who"
        )
    await engines.close()


async def test_engines_that_hang_delay_no_call_of_another() -> None:
    engines = HttpEngines(completion_seconds=600, load_seconds=30)
    async with (
        a_pod(OK + b"\r\n{", b" ", 600) as silent,
        a_pod(OK + b'\r\n{"server_load": 2}') as address,
    ):
        hanging = [
            asyncio.create_task(engines.probe(f"http://{silent}", "small")) for _ in range(100)
        ]
        await asyncio.sleep(0)
        assert await engines.in_flight(address) == 2
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
    await engines.close()
