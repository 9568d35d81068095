"""What a client may do wrong, on raw sockets: each gets an error in OpenAI's shape, or is cut."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from secrets import token_hex
from typing import Any

import msgspec
import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.http.protocol import MAX_WAITING_REQUESTS, GatewayProtocol
from tessera.gateway.http.reading import MAX_HEADER_BYTES, MAX_HEADERS
from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 30
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tsk-team-a\r\n"
BODY = json.dumps(CHAT).encode()
TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_WHOLE = b"content-length: %d\r\n\r\n" % len(BODY) + BODY
_CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
_LAST_CHUNK = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
_CHUNKS = _LAST_CHUNK + b"\r\n"


def _with(version: bytes) -> bytes:
    return POST.replace(b"HTTP/1.1", version)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as scripted:
        yield scripted


@pytest.fixture
def body_seconds() -> float:
    return WAIT_SECONDS


@pytest.fixture
async def gateway(engine: ScriptedEngine, body_seconds: float) -> AsyncIterator[RunningGateway]:
    directory = a_directory(
        a_model(a_replica(engine.address), names=("chat", "chat-large")),
        a_model(names=("secret-chat",), uid="uid-2", tenant="team-b"),
        keys=(an_api_key(), an_api_key("tsk-scoped", name="scoped", models=("other",))),
    )
    bounds = BodyBounds(max_bytes=100_000, seconds=body_seconds)
    async with a_gateway(directory, bounds) as running:
        yield running


async def exchange(gateway: RunningGateway, *parts: bytes) -> bytes:
    """Send parts one after the other, and return all that comes until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(WAIT_SECONDS):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def error_of(response: bytes) -> Any:
    return json.loads(response.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        # Two lengths, a length beside chunks, and lengths and encodings that are none.
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"content-length: +5\r\n\r\nhello",
        POST + b"content-length: 0x5\r\n\r\nhello",
        POST + b"content-length: 99999999999999999999\r\n\r\nhello",
        POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        # Names and values that others would read differently.
        POST + b"content-length : 5\r\n\r\nhello",
        POST + b" folded: x\r\ncontent-length: 5\r\n\r\nhello",
        POST + b"x-bad: a\x00b\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/9.9\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET http:// HTTP/1.1\r\n\r\n",
        # Encodings that nobody decodes here, or that HTTP/1.0 does not have.
        POST + b"transfer-encoding: gzip, chunked\r\n\r\n" + _CHUNKS,
        POST + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n" + _CHUNKS,
        POST + b"transfer-encoding: ,chunked\r\n\r\n" + _CHUNKS,
        _with(b"HTTP/1.0") + _CHUNKED + _CHUNKS,
        # Versions that are none, and hosts and targets that others would read differently.
        _with(b"HTTP/2.0") + _WHOLE,
        b"PRI * HTTP/2.0\r\n\r\n",
        _with(b"HTTP/0.9") + _WHOLE,
        POST.replace(b" HTTP/1.1", b"") + _WHOLE,
        POST.replace(b"host: x\r\n", b"") + _WHOLE,
        POST + b"host: y\r\n" + _WHOLE,
        POST.replace(b"/v1", b"ftp://x/v1") + _WHOLE,
        POST.replace(b"completions", b"completions#/../x") + _WHOLE,
    ],
)
async def test_a_request_that_could_be_read_in_two_ways_reaches_no_engine(
    gateway: RunningGateway, engine: ScriptedEngine, request_bytes: bytes
) -> None:
    response = await exchange(gateway, request_bytes)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert error_of(response)["code"] in ("invalid_http", "invalid_json")
    assert not engine.calls


# As Java's client sends it with each request, and as a proxy forwards any other.
_UPGRADES = [
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\nsec-websocket-version: 13\r\n",
    b"upgrade: x\r\nconnection: keep-alive, upgrade\r\nUPGRADE: y\r\n",
]
_LENGTH = b"content-length: %d\r\n\r\n"
_LAST = POST + b"connection: close\r\n" + _LENGTH % len(BODY) + BODY


@pytest.mark.parametrize("upgrade", _UPGRADES)
@pytest.mark.parametrize(
    "framed",
    [
        _LENGTH % len(BODY) + BODY,
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    ],
    ids=["length", "chunks"],
)
@pytest.mark.parametrize("parts", [1, 2, 7])
async def test_an_offer_to_upgrade_is_ignored(
    gateway: RunningGateway, engine: ScriptedEngine, upgrade: bytes, framed: bytes, parts: int
) -> None:
    request = POST + upgrade + framed
    sent = request * 2 + _LAST
    size = -(-len(sent) // parts)
    response = await exchange(
        gateway, *[sent[start : start + size] for start in range(0, len(sent), size)]
    )
    assert response.count(b"HTTP/1.1 200 ") == 3
    assert [call.json["messages"] for call in engine.calls] == [CHAT["messages"]] * 3


@pytest.mark.parametrize("upgrade", _UPGRADES)
async def test_a_body_after_an_offer_to_upgrade_is_no_request(
    gateway: RunningGateway, engine: ScriptedEngine, upgrade: bytes
) -> None:
    hidden = _LENGTH % len(_LAST) + _LAST
    response = await exchange(
        gateway,
        b"POST /v1/models HTTP/1.1\r\nhost: x\r\n" + upgrade + hidden,
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    assert [each.split()[0] for each in response.split(b"HTTP/1.1")[1:]] == [b"405", b"200"]
    assert not engine.calls


async def test_a_tunnel_is_refused_and_what_follows_is_no_request(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    response = await exchange(gateway, b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n" + _LAST)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert error_of(response)["code"] == "invalid_http"
    assert not engine.calls


@pytest.mark.parametrize(
    "rest",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        POST + b"x-large: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["no-http", "lengths", "headers", "tunnel"],
)
async def test_what_is_wrong_after_a_request_changes_nothing_of_its_response(
    gateway: RunningGateway, engine: ScriptedEngine, rest: bytes
) -> None:
    response = await exchange(gateway, POST + _LENGTH % len(BODY) + BODY + rest + _LAST)
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.startswith(b"HTTP/1.1 200 ")
    assert len(engine.calls) == 1


@pytest.mark.parametrize("rest", [_LAST, _LAST[:-1], b"\x16\x03\x01", b"\r\n"])
async def test_nothing_after_the_last_request_is_a_request(
    gateway: RunningGateway, engine: ScriptedEngine, rest: bytes
) -> None:
    response = await exchange(gateway, _LAST + rest)
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.startswith(b"HTTP/1.1 200 ")
    assert len(engine.calls) == 1


async def test_no_more_than_a_few_requests_wait_behind_another(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    request = b"GET /healthz HTTP/1.1\r\nhost:\r\n\r\n"
    sent = POST + _WHOLE + request * 10_000
    responses = (await exchange(gateway, sent)).split(b"HTTP/1.1 200 ")[1:]
    assert len(responses) == 1 + MAX_WAITING_REQUESTS
    assert [b"connection: close" in each for each in responses[-2:]] == [False, True]
    assert len(engine.calls) == 1


_UNKNOWN = POST.replace(b"tsk-team-a", b"tsk-unknown")


@pytest.mark.parametrize("head", [_UNKNOWN, _UNKNOWN + b"expect: 100-continue\r\n"])
async def test_a_response_before_the_end_of_its_request_is_the_last(
    gateway: RunningGateway, engine: ScriptedEngine, head: bytes
) -> None:
    """Who sent that request may leave its body out, and send another request instead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(head + _LENGTH % len(BODY))
        refusal = await reader.readuntil(b"\r\n\r\n")
        writer.write(POST + _LENGTH % len(BODY) + BODY)
        rest = await reader.read()
    writer.close()
    assert refusal.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in refusal
    assert b"HTTP/1.1" not in rest
    assert not engine.calls


async def test_a_trailer_that_closes_the_connection_closes_it(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    request = POST + _CHUNKED + _LAST_CHUNK + b"connection: close\r\n\r\n"
    response = await exchange(gateway, request + _LAST)
    assert response.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in response
    assert len(engine.calls) == 1


async def test_a_client_of_http_1_0_gets_one_response(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    head = _with(b"HTTP/1.0") + b"connection: keep-alive\r\nexpect: 100-continue\r\n"
    response = await exchange(gateway, head + _WHOLE, _LAST)
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.startswith(b"HTTP/1.1 200 ")
    assert len(engine.calls) == 1


async def test_blank_lines_keep_no_connection(gateway: RunningGateway) -> None:
    gateway.server.config.timeout_keep_alive = 1
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"\r\n")
            await asyncio.wait((reading,), timeout=0.1)
    writer.close()
    assert reading.result().count(b"HTTP/1.1 200 ") == 1


async def test_a_request_whose_chunks_break_is_answered_once(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    head = POST.replace(b"tsk-team-a", b"tsk-unknown") + b"transfer-encoding: chunked\r\n\r\n"
    response = await exchange(gateway, head + b"zz\r\n" + _LAST)
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.startswith(b"HTTP/1.1 400 ")
    assert not engine.calls


async def test_a_request_before_one_that_breaks_is_given_up(
    gateway: RunningGateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(call: EngineCall) -> None:
        begun.set()
        await cut.wait()
        await call.whole(COMPLETION)

    begun, cut = asyncio.Event(), asyncio.Event()
    engine.script = script
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(POST + _WHOLE)
        await begun.wait()
        writer.write(POST + _CHUNKED + b"zz\r\n")
        assert await reader.read() == b""
        cut.set()
        await gateway.record()
    writer.close()
    assert "ASGI" not in caplog.text


async def test_no_body_answers_a_head_request_whose_chunks_break(gateway: RunningGateway) -> None:
    head = POST.replace(b"POST", b"HEAD").replace(b"tsk-team-a", b"tsk-unknown") + _CHUNKED
    response = await exchange(gateway, head + b"zz\r\n")
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.endswith(b"\r\n\r\n")


async def test_an_offer_to_upgrade_with_the_end_of_the_connection_is_answered_once(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    upgrade = b"upgrade: h2c\r\nconnection: upgrade, close\r\n"
    response = await exchange(gateway, POST + upgrade + _WHOLE + _LAST)
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.startswith(b"HTTP/1.1 200 ")
    assert len(engine.calls) == 1


async def test_headers_and_bodies_have_bounds(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    close = b"connection: close\r\n"
    large = POST + b"x-large: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n"
    assert b" 431 " in await exchange(gateway, large)
    # Three have other names.
    many = POST + close + b"x: y\r\n" * (MAX_HEADERS - 4)
    assert b" 200 " in await exchange(gateway, many + _WHOLE)
    assert b" 431 " in await exchange(gateway, many + b"x: y\r\n" + _WHOLE)
    assert b" 431 " in await exchange(gateway, many + _CHUNKED + _LAST_CHUNK + b"x: y\r\n\r\n")
    assert len(engine.calls) == 1
    engine.calls.clear()
    declared = POST + close + b"content-length: 100001\r\n\r\n"
    assert error_of(await exchange(gateway, declared))["code"] == "body_too_large"
    chunk = b"c350\r\n" + b"x" * 50_000 + b"\r\n"
    chunked = POST + close + b"transfer-encoding: chunked\r\n\r\n" + chunk * 2 + b"1\r\nx\r\n"
    assert b" 413 " in await exchange(gateway, chunked)
    zipped = POST + close + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello"
    assert b" 415 " in await exchange(gateway, zipped)
    assert not engine.calls


_TRAILERS = [
    [b"a: b\r\n" * (MAX_HEADER_BYTES // 6 + 1)],
    [b"a: b\r\n" * 1000] * 20,
    [b"a" * 10_000] * 60,
    [b"a: ", *[b"b" * 10_000] * 60],
]


@pytest.mark.parametrize("trailers", _TRAILERS, ids=["at once", "lines", "name", "value"])
async def test_trailers_have_the_bounds_of_headers(
    gateway: RunningGateway, engine: ScriptedEngine, trailers: list[bytes]
) -> None:
    response = await exchange(gateway, POST + _CHUNKED + _LAST_CHUNK, *trailers)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert error_of(response)["code"] == "headers_too_large"
    assert not engine.calls


@pytest.mark.parametrize("trailers", _TRAILERS, ids=["at once", "lines", "name", "value"])
async def test_trailers_after_a_refusal_end_the_connection(
    gateway: RunningGateway, trailers: list[bytes]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(POST.replace(b"tsk-team-a", b"tsk-unknown") + _CHUNKED)
        assert b" 401 " in await reader.readline()
        writer.writelines([_LAST_CHUNK, *trailers])
        rest = await reader.read()
    writer.close()
    # One request has one response.
    assert b"HTTP/1.1" not in rest


async def test_an_idle_connection_keeps_nothing_of_its_last_request(
    gateway: RunningGateway,
) -> None:
    value = token_hex().encode()

    async def is_forgotten() -> None:
        assert _headers_kept(value) == 0

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(POST + b"x-kept: " + value + b"\r\n" + _WHOLE)
        assert b" 200 " in await reader.readline()
        await eventually(is_forgotten)
    writer.close()


def _headers_kept(value: bytes) -> int:
    lists = [each for each in gc.get_objects() if type(each) is list]
    return sum(type(each) is tuple and each[1:] == (value,) for each in chain(*lists))


async def test_trailers_are_no_headers(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    head = POST.replace(b"authorization: Bearer tsk-team-a", b"connection: close") + _CHUNKED
    key = b"authorization: Bearer tsk-team-a\r\n\r\n"
    assert b" 401 " in await exchange(gateway, head + _LAST_CHUNK + key)
    head = POST + b"connection: close\r\nx-request-id: my-id\r\n" + _CHUNKED
    response = await exchange(gateway, head + _LAST_CHUNK + b"x-request-id: other\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 ")
    assert [call.headers["x-request-id"] for call in engine.calls] == ["my-id"]


async def test_many_chunks_are_no_trailers(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    body = json.dumps({**CHAT, "user": "x" * 90_000}).encode()
    # Each part ends with the size of a chunk whose bytes are in the next one.
    sizes = [1, *[9_000] * (len(body) // 9_000), len(body) % 9_000 - 1]
    parts, start = [POST + b"connection: close\r\n" + _CHUNKED], 0
    for size in sizes:
        parts[-1] += b"%x\r\n" % size
        parts.append(body[start : start + size] + b"\r\n")
        start += size
    response = await exchange(gateway, *parts, b"0\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 ")
    assert engine.calls[0].json["messages"] == CHAT["messages"]


async def test_many_small_chunks_are_a_body(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    body = json.dumps({**CHAT, "user": "x" * 90_000}).encode()
    padded = body.ljust(-(-len(body) // 48) * 48)
    chunks = [b"30\r\n%b\r\n" % padded[at : at + 48] for at in range(0, len(padded), 48)]
    head = POST + b"connection: close\r\n" + _CHUNKED
    response = await exchange(gateway, head, b"".join(chunks), b"0\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 ")
    assert engine.calls[0].json["messages"] == CHAT["messages"]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"1;" + b"x" * 2**14 + b"\r\n{\r\n"] * 5,
        [b"5;", *[b"x" * 2**14] * 5],
        [b"1\r\n{\r\n" * 15_000],
        [b"1\r\n{\r\n" * 10] * 1500,
    ],
    ids=["extensions", "extension", "at once", "chunks"],
)
async def test_chunks_have_no_more_beside_the_body_than_headers_may_have(
    gateway: RunningGateway, engine: ScriptedEngine, chunks: list[bytes]
) -> None:
    response = await exchange(gateway, POST + _CHUNKED, *chunks)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert error_of(response)["code"] == "headers_too_large"
    assert not engine.calls


async def test_the_start_of_a_head_after_a_large_body_is_no_large_header(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    body = json.dumps({**CHAT, "user": "x" * 90_000}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    connections = gateway.server.server_state.connections
    async with asyncio.timeout(WAIT_SECONDS):
        while not connections:  # noqa: ASYNC110 - it says so by nothing else
            await asyncio.sleep(0)
        (connection,) = connections
        # At once, as a read of 256 KiB has it.
        connection.data_received(POST + _LENGTH % len(body) + body + _LAST[:20])
        connection.data_received(_LAST[20:])
        response = await reader.read()
    writer.close()
    assert response.count(b"HTTP/1.1 200 ") == len(engine.calls) == 2


@pytest.fixture
def impatient() -> Iterator[None]:
    before = GatewayProtocol.header_seconds
    GatewayProtocol.header_seconds = 0.2
    yield
    GatewayProtocol.header_seconds = before


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("body_seconds", [0.2])
async def test_slow_clients_are_given_up(gateway: RunningGateway) -> None:
    assert b" 408 " in await exchange(gateway)
    assert b" 408 " in await exchange(gateway, b"POST /v1/chat")
    assert b" 408 " in await exchange(gateway, POST)
    slow_body = await exchange(gateway, POST + b"content-length: 50\r\n\r\nhello", b"x")
    assert error_of(slow_body)["code"] == "body_timeout"


@pytest.mark.parametrize("body_seconds", [0.2])
@pytest.mark.parametrize(
    "sent",
    [
        b"content-length: 50\r\n\r\n",
        _CHUNKED,
        _CHUNKED + b"5",
        _CHUNKED + b"5;" + b"x" * 50_000,
        b"expect: 100-continue\r\ncontent-length: 50\r\n\r\n",
    ],
    ids=["length", "chunks", "size", "extension", "expect"],
)
async def test_a_body_that_never_begins_is_given_up(gateway: RunningGateway, sent: bytes) -> None:
    response = await exchange(gateway, POST + sent)
    response = response.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 408 ")
    assert error_of(response)["code"] == "body_timeout"


async def test_a_key_that_is_revoked_while_its_body_comes_is_refused(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(POST + b"expect: 100-continue\r\nconnection: close\r\n" + _LENGTH % len(BODY))
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        others = (an_api_key("tsk-other"),)
        gateway.admission.update(a_directory(a_model(a_replica(engine.address)), keys=others))
        writer.write(BODY)
        assert b" 401 " in await reader.read()
    writer.close()
    assert not engine.calls


async def test_headers_from_outside_do_not_pass(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    forged = {
        "x-tessera-tenant": "team-b",
        "x-tessera-replica": "other",
        "x-forwarded-user": "admin",
        "x-auth-request-email": "a@b",
        "forwarded": "for=1.2.3.4",
        "cookie": "a=b",
        "te": "trailers",
        "proxy-authorization": "Basic eA==",
        "x-request-id": "my-id",
        "traceparent": TRACE_PARENT,
    }
    answer = await gateway.post(CHAT, **forged)
    assert set(engine.calls[0].headers) == {
        "host",
        "content-type",
        "content-length",
        "x-request-id",
        "traceparent",
    }
    assert engine.calls[0].headers["x-request-id"] == "my-id"
    assert answer.headers["x-request-id"] == "my-id"
    assert (await gateway.record()).request_id == "my-id"


@pytest.mark.parametrize(
    ("parent", "state", "passed"),
    [
        (TRACE_PARENT, "a=1,b=2", {"traceparent": TRACE_PARENT, "tracestate": "a=1,b=2"}),
        (TRACE_PARENT, "x" * 513, {"traceparent": TRACE_PARENT}),
        (TRACE_PARENT + "-00", "a=1", {}),
        (TRACE_PARENT.upper(), "a=1", {}),
        ("0" * 60_000, "a=1", {}),
    ],
)
async def test_a_trace_passes_in_its_form_alone(
    gateway: RunningGateway, engine: ScriptedEngine, parent: str, state: str, passed: dict[str, str]
) -> None:
    await gateway.post(CHAT, traceparent=parent, tracestate=state)
    headers = engine.calls[0].headers
    assert {name: headers[name] for name in headers if name.startswith("trace")} == passed
    assert (await gateway.record()).trace_parent == passed.get("traceparent", "")


async def test_no_text_of_a_client_makes_a_record_large(gateway: RunningGateway) -> None:
    long = {"traceparent": "0" * 20_000, "x-request-id": "x" * 5000, "user-agent": "x" * 5000}
    await gateway.post(CHAT, **long)
    await gateway.post({**CHAT, "model": "x" * 10_000}, **long)
    await gateway.post({**CHAT, "model": "é" * 256}, **long)
    await gateway.post(CHAT, f"/v1/{'x' * 30_000}", **long)
    await gateway.post(CHAT, **{"x-tessera-tags": "x" * 256})
    sizes = [len(msgspec.msgpack.encode(record)) for record in gateway.records]
    assert len(sizes) == 5
    assert max(sizes) < 2048


@pytest.mark.parametrize("request_id", ["a b", "x" * 129, "<script>", ""])
async def test_a_request_id_of_no_known_form_is_replaced(
    gateway: RunningGateway, request_id: str
) -> None:
    answer = await gateway.post(CHAT, **{"x-request-id": request_id})
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/models/chat"])
@pytest.mark.parametrize("authorization", ["Bearer nope", "Basic eA==", "Bearer ", "x" * 9000])
async def test_nothing_is_said_without_a_valid_key(
    gateway: RunningGateway, engine: ScriptedEngine, path: str, authorization: str
) -> None:
    method = "GET" if "models" in path else "POST"
    async with gateway.client.request(
        method,
        gateway.url + path,
        data=BODY if method == "POST" else None,
        headers={"authorization": authorization},
    ) as response:
        body = await response.json()
        status = response.status
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert not engine.calls


async def test_an_unknown_model_is_answered_with_names_that_the_key_may_use(
    gateway: RunningGateway,
) -> None:
    answer = await gateway.post({**CHAT, "model": "secret-cha"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "`chat`" in answer.error["message"]
    assert "secret-chat" not in answer.error["message"]
    foreign = await gateway.post({**CHAT, "model": "secret-chat"})
    assert foreign.status == 404
    scoped = await gateway.post(CHAT, authorization="Bearer tsk-scoped")
    assert "this key may use no model" in scoped.error["message"]


async def test_models_are_those_of_the_key(gateway: RunningGateway) -> None:
    async with gateway.client.get(f"{gateway.url}/v1/models") as response:
        models = await response.json()
    assert [model["id"] for model in models["data"]] == ["chat", "chat-large"]
    async with gateway.client.get(f"{gateway.url}/v1/models/chat-large") as response:
        assert (await response.json())["id"] == "chat-large"
    async with gateway.client.get(f"{gateway.url}/v1/models/secret-chat") as response:
        assert response.status == 404


async def test_an_alias_reaches_the_engine_as_the_served_name(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    await gateway.post({**CHAT, "model": "chat-large"})
    assert engine.calls[0].json["model"] == "chat"


async def test_no_error_shows_a_traceback(gateway: RunningGateway) -> None:
    for body in (b"", b"{", b"[]", b'{"model":[]}', b"\xff", b"[" * 50_000, b'{"model":"chat"'):
        answer = await gateway.post(body)
        assert answer.status == 400
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert b"Traceback" not in answer.body
        assert KEY.encode() not in answer.body


async def test_a_body_that_outlasts_the_gateway_is_told_so(engine: ScriptedEngine) -> None:
    directory = a_directory(a_model(a_replica(engine.address)))
    async with a_gateway(directory, drain_seconds=1) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(POST + b"content-length: 9\r\n\r\n{")
        await gateway.wait_for_held_bytes(1, 1)
        await gateway.server.drain()
        response = await reader.read()
        writer.close()
        record = await gateway.record()
    assert response.startswith(b"HTTP/1.1 503 ")
    assert error_of(response)["code"] == "gateway_draining"
    assert record.reason == RequestReason.GATEWAY_DRAINING
