"""The load test reads responses, whatever the packets in which their bytes arrive."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tessera_lab.load.openai_client import CHAT, OpenAiClient, ServerError
from tests.bench_builders import a_job

pytestmark = pytest.mark.anyio
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def server_sending(*pieces: bytes) -> AsyncIterator[OpenAiClient]:
    """Start a server that answers any request with these pieces, each in its own packet."""
    done = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):  # a client that has read enough leaves
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        done.set()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    api = OpenAiClient(f"http://127.0.0.1:{port}", None, timeout_seconds=60)
    try:
        yield api
        async with asyncio.timeout(60):
            await done.wait()
    finally:
        await api.close()
        server.close()
        await server.wait_closed()


def chunk(text: str, end: str | None = None) -> bytes:
    choice = {"delta": {"content": text}, "finish_reason": end}
    return b"data: %b\r\n\r\n" % json.dumps({"choices": [choice]}).encode()


async def test_a_body_that_comes_in_pieces_is_read_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    async with server_sending(head, b"first ", b"second ", b"third") as api:
        assert await api.get(f"{api.base}/metrics") == (200, b"first second third")


async def test_events_that_are_split_anywhere_are_reassembled() -> None:
    events = chunk("a") + chunk("b") + chunk("c", "length")
    async with server_sending(
        STREAM, events[:30], events[30:-20], events[-20:], b"data: [DONE]\n\n"
    ) as api:
        outcome = await api.send(CHAT, {}, a_job())
    assert (outcome.failure, outcome.chunks) == ("", 3)
    assert outcome.first_token_at is not None
    assert outcome.sent_at <= outcome.first_token_at <= outcome.ended_at


async def test_a_stream_without_lines_is_not_collected_for_ever() -> None:
    async with server_sending(STREAM, *[b"x" * 600_000] * 2) as api:
        outcome = await api.send(CHAT, {}, a_job())
    assert outcome.failure == "NotAStream"


async def test_what_is_no_http_is_an_error_and_a_failure() -> None:
    async with server_sending(b"SSH-2.0-OpenSSH_9\r\n") as api:
        with pytest.raises(ServerError):
            await api.get(f"{api.base}/v1/models")
    async with server_sending(b"SSH-2.0-OpenSSH_9\r\n") as api:
        assert (await api.send(CHAT, {}, a_job())).failure == "ConnectionClosed"


async def test_an_answer_that_is_no_stream_is_a_failure() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
    async with server_sending(head, b"<html>") as api:
        outcome = await api.send(CHAT, {}, a_job())
    assert (outcome.failure, outcome.detail) == ("NotAStream", "it sends text/html")


async def test_a_missing_server_is_no_connection() -> None:
    async with server_sending(b"") as api:
        away = OpenAiClient("http://127.0.0.1:9", None, timeout_seconds=60)
        outcome = await away.send(CHAT, {}, a_job())
        await away.close()
        assert outcome.failure == "NoConnection"
        with pytest.raises(ServerError):
            await api.get(f"{api.base}/v1/models")
