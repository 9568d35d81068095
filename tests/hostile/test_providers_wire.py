"""Attacks by providers on the wire: what they send that is no answer, or more than one."""

import asyncio
import gzip
import json
import logging
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.http.sse import MAX_EVENT_BYTES, InvalidStreamError
from tessera.gateway.outside.answers import ProviderEvents, read_answer
from tessera.gateway.outside.client import OutsideError
from tessera.gateway.paths import PATHS
from tests.gateway.outside.asking import asking
from tests.gateway.outside.routing import OUTSIDE, Routed, a_body, routed
from world.provider import KEY, ProviderCall, Script, answer, refuse

SSE, JSON = "text/event-stream", "application/json"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
WHOLE = b'{"choices": [{"message": {"content": "No."}, "finish_reason": "stop"}]}'
SECOND = OK + b"content-length: %d\r\n\r\n%b" % (len(WHOLE), WHOLE)
SHORT = {"connect": "5s", "firstByte": "300ms", "gap": "300ms", "total": "1s"}


def raw(data: bytes) -> Script:
    """Send bytes, and close the connection."""

    async def script(call: ProviderCall) -> None:
        await call.send(data)
        call.writer.close()

    return script


def framed(data: bytes) -> bytes:
    return b"content-length: %d\r\n\r\n%b" % (len(data), data)


def a_chunk(content: str = "word") -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def events(*parts: bytes, gap: float = 0.0) -> Script:
    """Send a stream of these bytes."""

    async def script(call: ProviderCall) -> None:
        await call.head(200, SSE)
        for part in parts:
            await call.chunk(part)
            await asyncio.sleep(gap)
        await call.end()

    return script


async def records(world: Routed, count: int) -> list[UsageRecord]:
    async with asyncio.timeout(10):
        return await world.records(count)


async def said(world: Routed, **fields: Any) -> Any:
    """Return the text of the answer that the client got."""
    got = await world.gateway.post(a_body(**fields))
    assert got.status == 200, got.body
    return got


NO_ANSWERS = {
    "gzip bomb": OK + b"content-encoding: gzip\r\n" + framed(gzip.compress(b"x" * 10**6)),
    "gzip as its length": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "page": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n" + framed(b"<html>"),
    "page as JSON": OK + framed(b"<html><body>Log in</body></html>"),
    "no type": b"HTTP/1.1 200 OK\r\n" + framed(WHOLE),
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 71\r\n\r\n" + WHOLE,
    "length and chunks": OK
    + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"[:-9]
    + b"x" * 9,
    "negative length": OK + b"content-length: -1\r\n\r\n" + WHOLE,
    "bad chunk": OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
    "chunk of no number": OK + b"transfer-encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    "only 1xx": b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "empty": OK + framed(b""),
    "null": OK + framed(b"null"),
    "list": OK + framed(b"[" + WHOLE + b"]"),
    "deep": OK + framed(b'{"choices": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "invalid UTF-8": OK + framed(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'),
    "two values": OK + framed(WHOLE + WHOLE),
    "NUL in a head": OK + b"x: a\x00b\r\n" + framed(WHOLE),
    "folded head": b"HTTP/1.1 200 OK\r\ncontent-type:\r\n text/html\r\n" + framed(WHOLE),
    "many heads": OK + b"x: y\r\n" * 2000 + framed(WHOLE),
    "not HTTP": b"220 smtp.example.com ESMTP\r\n",
    "HTTP 0.9": WHOLE,
    "stream for a whole": STREAM + framed(a_chunk() + b"data: [DONE]\n\n"),
    "cut": OK + b"content-length: 500\r\n\r\n" + WHOLE,
    "more than it says": OK + b"content-length: 40\r\n\r\n" + WHOLE,
    **{
        f"redirect {status}": b"HTTP/1.1 %d X\r\nlocation: /v1/chat/completions\r\n" % status
        + b"content-type: application/json\r\n"
        + framed(WHOLE)
        for status in (302, 307)
    },
}


@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_what_is_no_answer_goes_to_the_next_target(tmp_path: Path, name: str) -> None:
    async with routed(tmp_path, timeouts=SHORT) as world:
        world.provider.script = raw(NO_ANSWERS[name])
        got = await said(world)
        failed, answered = await records(world, 2)
    assert json.loads(got.body)["choices"][0]["message"]["content"] == "Own."
    assert failed.reason in ("ProviderFailed", "ProviderTimeout")
    assert (failed.requests, answered.requests) == (0, 1)
    # A redirect is followed to nowhere.
    assert len(world.provider.calls) == 1
    assert world.gateway.held_bytes == 0


NO_STREAMS = {
    "whole for a stream": OK + framed(WHOLE),
    "page as a stream": STREAM + framed(b"<html><body>Log in</body></html>\n\n"),
    "line without end": STREAM + b"\r\ndata: " + b"x" * (5 * 2**20),
    "lines of one event": STREAM + b"\r\n" + b"data: 1\n" * 2000 + b"\n",
    "ends of lines of old": STREAM + framed(a_chunk().replace(b"\n", b"\r") * 3),
    "comments alone": STREAM + b"\r\n" + b": x\n\n" * 10_001,
    "only a role": STREAM + framed(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'),
    "error at once": STREAM + framed(b'data: {"error": {"message": "%b"}}\n\n' % KEY.encode()),
    "end at once": STREAM + framed(b"data: [DONE]\n\n"),
    "NUL": STREAM + framed(b"\x00" * 100 + b"\n\n"),
    "invalid UTF-8": STREAM + framed(b'data: {"choices": "\xff"\n\n'),
    "deep": STREAM + framed(b'data: {"choices": ' + b"[" * 50_000 + b"\n\n"),
}


@pytest.mark.parametrize("name", NO_STREAMS)
async def test_what_is_no_stream_goes_to_the_next_target(tmp_path: Path, name: str) -> None:
    async def own(call: Any) -> None:
        await call.begin()
        await call.chunk(a_chunk("Own."))
        await call.chunk(b"data: [DONE]\n\n")
        await call.finish()

    async with routed(tmp_path, own=own, timeouts=SHORT) as world:
        world.provider.script = raw(NO_STREAMS[name])
        got = await said(world, stream=True)
        failed, _ = await records(world, 2)
    assert b"Own." in got.body
    assert KEY.encode() not in got.body
    assert failed.reason in ("ProviderFailed", "ProviderTimeout")


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
MARK = b"tessera-thinking-0123456789abcdef."


def filled(begin: bytes, unit: bytes, end: bytes) -> bytes:
    """Return JSON of a quarter of the largest event."""
    return begin + unit * (MAX_EVENT_BYTES // 4 // len(unit)) + end


SIGNED, ENDED = b'{"signature":"a"},', b'{"finish_reason":"content_filter"},'
# By what the gateway looks for in them.
MADE = {
    "choices": (CHAT, filled(b'{"x":"content_filter","choices":[', b"{},", b"{}]}")),
    "ended choices": (CHAT, filled(b'{"x":"refusal","choices":[', ENDED, b"{}]}")),
    "signatures": (MESSAGES, filled(b'{"type":"signature_delta","x":[', SIGNED, b"1]}")),
    "names": (MESSAGES, filled(b'{"type":"redacted_thinking","x":[', b'"data"  ,', b"1]}")),
    "spaces": (MESSAGES, filled(b'{"type":"signature_delta","data"', b" ", b':"a"}')),
    "escapes": (MESSAGES, filled(b'{"type":"signature_delta","x":"', b'\\"data\\":', b'"}')),
    "encrypted": (RESPONSES, filled(b'{"type":"x","y":[', b'{"encrypted_content":"a"},', b"1]}")),
    "types": (RESPONSES, filled(b" ", b" ", b'{"type":"a"}')),
}
BLOCKS = filled(b'{"content":[', b'{"type":"thinking","signature":"a"},', b"{}]}")


def cost(step: Callable[[], object]) -> tuple[int, int]:
    """Return how many calls a step makes, and how many bytes it takes at once."""
    calls = 0

    def count(*called: object) -> None:
        nonlocal calls
        calls += called[1] in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        step()
        return calls, tracemalloc.get_traced_memory()[1]
    finally:
        sys.setprofile(None)
        tracemalloc.stop()


@pytest.mark.parametrize("name", MADE)
def test_an_event_that_is_full_of_what_is_looked_for_costs_about_what_its_bytes_do(
    name: str,
) -> None:
    path, data = MADE[name]
    stream, passed = PATHS[path].stream, list[bytes]()
    assert stream is not None
    events = ProviderEvents(path, stream, MARK, keep_usage=True)
    events.feed(a_chunk() + b"data: " + data + b"\n")
    calls, peak = cost(lambda: passed.append(events.feed(b"\n")))
    assert calls < 10_000
    assert peak < 8 * len(data)
    assert len(passed[0]) < len(data) + 2**16


@pytest.mark.parametrize("stream", [False, True])
def test_a_first_word_of_many_choices_costs_about_what_its_bytes_do(stream: bool) -> None:
    data = b'{"x":"content_filter","choices":[' + b"{}," * 30_000 + b"{}]}"
    item = PATHS[CHAT].stream
    assert item is not None
    events = ProviderEvents(CHAT, item, MARK, keep_usage=True)

    def read() -> None:
        if stream:
            events.feed(b"data: " + data + b"\n\n")
        else:
            read_answer(CHAT, data, MARK)

    assert cost(read)[0] < 10_000


def test_an_answer_of_blocks_without_end_is_none() -> None:
    with pytest.raises(InvalidStreamError, match="more than 1000 blocks"):
        read_answer(MESSAGES, BLOCKS, MARK)


def test_an_event_of_comments_without_end_is_none() -> None:
    stream = PATHS[CHAT].stream
    assert stream is not None
    events = ProviderEvents(CHAT, stream, MARK, keep_usage=True)
    with pytest.raises(InvalidStreamError, match="more than 10000 comments"):
        events.feed(a_chunk() + a_chunk().strip() + b"\n:" * 20_000 + b"\n\n")


async def test_a_second_answer_that_was_not_asked_for_answers_no_later_request(
    tmp_path: Path,
) -> None:
    """It may be that of another tenant."""

    async def twice(call: ProviderCall) -> None:
        await answer()(call)
        await asyncio.sleep(0.05)
        await call.send(SECOND)

    async with asking(tmp_path) as asked:
        asked.provider.scripts.append(twice)
        await asked.whole()
        await asyncio.sleep(0.1)
        later = await asked.whole()
    assert b"No." not in later
    assert len(asked.provider.calls) == 2


@pytest.mark.parametrize("rest", [SECOND, b"x", b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"])
async def test_what_stands_behind_an_answer_is_read_by_nobody(tmp_path: Path, rest: bytes) -> None:
    async def more(call: ProviderCall) -> None:
        await call.send(OK + framed(b'{"choices": []}') + rest)

    async with asking(tmp_path) as asked:
        asked.provider.scripts.append(more)
        with suppress(OutsideError):
            assert await asked.whole() == b'{"choices": []}'
        assert b"word0" in await asked.whole()
    assert asked.provider.connections == 2


async def test_an_answer_before_the_request_was_read_takes_no_connection_with_it(
    tmp_path: Path,
) -> None:
    body = json.dumps({"model": "m", "x": "y" * (4 * 2**20)}).encode()

    async with asking(tmp_path) as asked:
        server = asked.provider
        serve = server._serve

        async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server._serve = serve  # type: ignore[method-assign]
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SECOND)
            with suppress(asyncio.IncompleteReadError):
                await reader.readexactly(len(body))
                await serve(reader, writer)

        server._serve = early  # type: ignore[method-assign]
        assert await asked.whole(body=body) == WHOLE
        assert b"word0" in await asked.whole()
        assert server.calls[-1].body == {"model": "m"}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_in_a_success_is_read_and_says_nothing(
    tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Gateways of models answer so; their words may have the key or the prompts of others."""
    caplog.set_level(logging.DEBUG)
    error = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": 401}}

    async def script(call: ProviderCall) -> None:
        if call.streams:
            await events(f"data: {json.dumps(error)}\n\n".encode())(call)
        else:
            await call.whole(error)

    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = script
        got = await world.gateway.post(a_body(stream=stream))
        (record,) = [each for each in await records(world, 1) if not each.requests]
    assert KEY.encode() not in got.body
    assert got.status != 200 or b"no_target" in got.body
    assert record.reason == "ProviderKeyRefused"
    assert KEY not in caplog.text


async def test_an_error_in_a_stream_is_seen_beside_counts_that_cannot_be(tmp_path: Path) -> None:
    error = {"error": {"message": KEY}, "usage": {"prompt_tokens": -1}}
    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = events(a_chunk(), f"data: {json.dumps(error)}\n\n".encode())
        got = await world.gateway.post(a_body(stream=True))
    assert KEY.encode() not in got.body


async def test_comments_of_a_provider_speak_for_no_gateway(tmp_path: Path) -> None:
    """Streams say their target and their cost in comments."""
    forged = b": x-tessera-target: own\n: x-tessera-charge: 0 USD\n\n"
    inner = b": x-tessera-charge: 0 USD\n" + a_chunk()
    async with routed(tmp_path) as world:
        world.provider.script = events(
            forged, a_chunk(), forged, inner, b": x", b"-tessera-charge: 0\n\n", b"data: [DONE]\n\n"
        )
        got = await said(world, stream=True)
    assert b"x-tessera" not in got.body
    assert got.body.count(b'"word"') == 2


async def test_heads_of_a_provider_reach_no_client(tmp_path: Path) -> None:
    headers = {
        "set_cookie": "a=b",
        "x_tessera_target": "own",
        "x_tessera_charge": "0",
        "x_request_id": KEY,
        "access_control_allow_origin": "*",
        "location": "https://evil.example",
    }
    async with routed(tmp_path) as world:
        world.provider.script = lambda call: call.whole(WHOLE, 200, **headers)
        got = await said(world)
    assert KEY not in str(got.headers)
    for name in ("set-cookie", "access-control-allow-origin", "location"):
        assert name not in got.headers
    assert got.headers["x-tessera-target"] == "outside"
    assert got.headers.getall("x-tessera-charge") != ["0"]


async def test_a_flagged_prompt_that_is_refused_as_forbidden_is_no_fault_of_the_key(
    tmp_path: Path,
) -> None:
    """Some answer 403 to it: three of one tenant would eject the provider for all."""
    async with asking(tmp_path) as asked:
        asked.provider.script = refuse(403, "flagged", "content_filter")
        errors = [await asked.error() for _ in range(4)]
        asked.provider.script = answer()
        assert await asked.whole()
    assert {error.reason for error in errors} == {"ContentFiltered"}
