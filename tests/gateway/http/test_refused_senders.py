"""A client that is refused while it sends reads its error, and is not reset before."""

import asyncio
import json
import shutil
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import pytest

from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.harness import RunningGateway, a_directory, a_gateway, a_model
from world.keys import Authority

_SECONDS = 60
# Far more than the buffers of both sockets have room for.
_REST = b"x" * (32 * 2**20)
_POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tsk-team-a\r\n"
_BOUNDS = BodyBounds(max_bytes=100_000)


def _send_all_then_read(port: int, request: bytes, tls: ssl.SSLContext | None) -> bytes:
    """Send the whole request before reading anything; return the response.

    Without TLS it also has to be followed by the end of the connection.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), _SECONDS))
        if tls is not None:
            connection = stack.enter_context(
                tls.wrap_socket(connection, server_hostname="127.0.0.1")
            )
        connection.sendall(request)
        response = b""
        while part := connection.recv(65_536):
            response += part
            if tls is not None and response.endswith(b"}}"):
                break
        return response


async def _answer(
    gateway: RunningGateway, request: bytes, tls: ssl.SSLContext | None = None
) -> tuple[int, str]:
    response = await asyncio.to_thread(_send_all_then_read, gateway.port, request, tls)
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


_DECLARED = _POST + b"content-length: %d\r\n\r\n" % len(_REST) + _REST
_REFUSED = [
    (_DECLARED, (413, "body_too_large")),
    (
        _POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(_REST) + _REST,
        (413, "body_too_large"),
    ),
    (_POST + b"x-large: " + _REST, (431, "headers_too_large")),
    (b"\x16\x03\x01\x02\x00\x01\x00" + _REST, (400, "invalid_http")),
]


@pytest.mark.parametrize(
    ("request_bytes", "expected"), _REFUSED, ids=["declared", "chunked", "headers", "no-http"]
)
async def test_a_client_that_sends_on_reads_why_it_was_refused(
    request_bytes: bytes, expected: tuple[int, str]
) -> None:
    async with a_gateway(a_directory(a_model()), _BOUNDS) as gateway:
        assert await _answer(gateway, request_bytes) == expected


async def test_a_client_that_sends_on_by_tls_reads_why_it_was_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "keys")
    pair = authority.server("gateway", "127.0.0.1")
    shutil.copy(pair.key, tmp_path / "tls.key")
    shutil.copy(pair.certificate, tmp_path / "tls.crt")
    trusted = ssl.create_default_context(cafile=str(authority.own.certificate))
    async with a_gateway(a_directory(a_model()), _BOUNDS, tls_directory=tmp_path) as gateway:
        assert await _answer(gateway, _DECLARED, trusted) == (413, "body_too_large")


async def test_a_client_that_never_stops_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayProtocol, "discarded_bytes", 2**20)
    async with a_gateway(a_directory(a_model()), _BOUNDS) as gateway:
        with pytest.raises(ConnectionError):
            await _answer(gateway, _DECLARED)


async def test_what_a_refused_client_sends_on_is_read_in_turns() -> None:
    async with a_gateway(a_directory(a_model())) as gateway, asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"no HTTP\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"400"
        (connection,) = gateway.server.server_state.connections
        connection.data_received(b"x" * 2**14)
        reads_on = [connection.transport.is_reading()]
        await asyncio.sleep(0)
        reads_on.append(connection.transport.is_reading())
        writer.close()
    assert reads_on == [False, True], "others have their turn between"


_UNKNOWN_KEY = _POST.replace(b"tsk-team-a", b"tsk-unknown") + b"transfer-encoding: chunked\r\n\r\n"


async def test_a_refused_client_whose_body_never_ends_is_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GatewayProtocol, "discard_seconds", 0.1)
    async with a_gateway(a_directory(a_model())) as gateway, asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(_UNKNOWN_KEY)
        assert (await reader.readline()).split()[1] == b"401"
        with pytest.raises(ConnectionError):
            await _send_chunks_for_ever(writer)


async def _send_chunks_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"1\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)
