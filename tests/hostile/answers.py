"""What engines of a tenant who attacks answer."""

import json
from collections.abc import Mapping
from typing import Any

from tests.gateway.harness import (
    COMPLETION,
    DONE,
    END,
    ROLE,
    EngineCall,
    a_delta,
    event,
)
from tests.hostile.paths import HONEST, USED, Attack, honest, silent

MIB = 2**20
_WORD = a_delta(HONEST)


def _sends(*events: bytes, text: str = "", lies: bool = False) -> Attack:
    """Return the engine that sends a stream with so much text at most, and ends it."""

    async def script(call: EngineCall) -> None:
        await call.stream(*events)

    return Attack(answer=script, text=text, lies=lies)


def _writes(*parts: bytes, text: str = "") -> Attack:
    """Return the engine that writes bytes, whatever they are, and closes the connection."""

    async def script(call: EngineCall) -> None:
        for part in parts:
            await call.send(part)
        call.cut()

    return Attack(answer=script, text=text, rest=True)


def _refuses(status: int, body: object = b"rubbish") -> Attack:
    """Return the engine that refuses a request by a status."""

    async def script(call: EngineCall) -> None:
        await call.whole(body, status)

    return Attack(answer=script, text="", rest=True)


def _used(prompt: Any, completion: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 1}


def _reports(usage: Any) -> Attack:
    """Return the engine that sends a stream, and that it used so much."""
    said = event({"id": "chatcmpl-0", "choices": [], "usage": usage}).replace(b"Infinity", b"1e999")
    within = event({"choices": [{"index": 0, "delta": {"content": HONEST}}], "usage": usage})
    within = within.replace(b"Infinity", b"1e999")
    return _sends(ROLE, within, END, said, said, DONE, text=HONEST, lies=True)


def _head(**fields: Any) -> Attack:
    """Return the engine whose events have these fields beside their text."""
    delta = {"choices": [{"index": 0, "delta": {"content": HONEST}}]}
    return _sends(ROLE, event({**fields, **delta}), END, USED, DONE, text=HONEST)


def _choices(count: int) -> bytes:
    return event({"choices": [{"index": n, "delta": {"content": "x"}} for n in range(count)]})


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
_CHUNKED = _STREAM_HEAD + b"transfer-encoding: chunked\r\n\r\n"
_ANSWER = b'{"choices":[{"index":0,"message":{"content":"of another request"}}]}'
_SECOND = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_ANSWER), _ANSWER
)  # fmt: skip


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _twice(call: EngineCall) -> None:
    await honest(call)
    await call.send(_SECOND)


async def _with_trailer(call: EngineCall) -> None:
    await call.begin()
    await call.chunk(ROLE + _WORD + END + USED + DONE)
    await call.send(b"0\r\nset-cookie: a=b\r\ncontent-length: 5\r\n\r\n")


async def _informs(call: EngineCall) -> None:
    await call.send(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nset-cookie: a\r\n\r\n"
    )
    await honest(call)


async def _with_headers(call: EngineCall) -> None:
    await call.send(
        _STREAM_HEAD
        + b"set-cookie: a=b\r\nx-tessera-replica: set-cookie\r\nx-request-id: set-cookie\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    await call.chunk(ROLE + _WORD + END + USED + DONE)
    await call.finish()


_REFUSES_KEY = event({"error": {"message": "Incorrect API key", "code": 401}})
_ENDLESS = b"x" * MIB

_BROKEN: dict[str, Attack] = {
    "nothing": _writes(),
    "no HTTP": _writes(b"\x00\x01\xff rubbish\r\n\r\n"),
    "half a head": _writes(_STREAM_HEAD),
    "a head without end": _writes(_STREAM_HEAD, *[b"x-a: %b\r\n" % (b"y" * 1000)] * 200),
    "two lengths": _writes(
        _STREAM_HEAD + b"content-length: 5\r\ncontent-length: 900\r\n\r\n" + ROLE + _WORD + DONE
    ),
    "a length and chunks": _writes(
        _STREAM_HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        _chunk(ROLE + _WORD + DONE),
        text=HONEST,
    ),
    "chunks of no size": _writes(_CHUNKED + b"-5\r\n" + _WORD, text=HONEST),
    "a chunk too large": _writes(_CHUNKED + b"f" * 20 + b"\r\n" + _WORD, text=HONEST),
    "400": _refuses(400, {"error": {"message": "the request is at fault"}}),
    "401": _refuses(401, {"error": {"message": "Incorrect API key"}}),
    "404": _refuses(404),
    "429": _refuses(429),
    "500": _refuses(500),
    "503": _refuses(503),
    "599": _refuses(599, {"error": {"message": "x" * 100_000}}),
    "302": _refuses(302),
    "204": _refuses(204, b""),
    "999": _refuses(999),
}

STREAMS: Mapping[str, Attack] = {
    "an honest stream": Attack(),
    **_BROKEN,
    "a page": _refuses(200, b"<html>"),
    "rubbish": _sends(b"\x00\xff rubbish\n\n" * 3),
    "no JSON": _sends(b'data: {"choices":[{\n\n', DONE),
    "no JSON later": _sends(ROLE, _WORD, b'data: {"choices":[{\n\n', DONE, text=HONEST),
    "no JSON behind an odd field": _sends(b'data: {"usage":1\n\n', DONE),
    "no JSON behind an odd field later": _sends(
        ROLE, _WORD, b'data: {"usage":1\n\n', DONE, text=HONEST
    ),
    "no UTF-8": _sends(ROLE, b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', DONE),
    "half a character": _sends(ROLE, _WORD.replace(b" two", b"\\ud83d"), DONE, text="\ud83d"),
    "lists of lists": _sends(ROLE, _WORD, b"data: " + b"[" * 5000 + b"\n\n", DONE, text=HONEST),
    "no event": _sends(),
    "no token": _sends(DONE),
    "only a role": _sends(ROLE, DONE),
    "no end": _sends(ROLE, _WORD, text=HONEST),
    "two ends": _sends(ROLE, _WORD, END, USED, DONE, DONE, _WORD, DONE, text=HONEST),
    "cut in an event": _writes(_CHUNKED, _chunk(ROLE + _WORD + _WORD[:20]), text=HONEST),
    "cut in a chunk": _writes(_CHUNKED + _chunk(ROLE + _WORD)[:-20]),
    "two answers": Attack(answer=_twice, rest=True),
    "trailers": Attack(answer=_with_trailer, rest=True),
    "trailers without end": _writes(
        _CHUNKED, _chunk(ROLE + _WORD + DONE), b"0\r\n", b"x: yz\r\n" * 20_000, text=HONEST
    ),
    "headers of another": Attack(answer=_with_headers),
    "informational answers": Attack(answer=_informs, rest=True),
    "refuses a key": _sends(_REFUSES_KEY),
    "refuses a key later": _sends(ROLE, _WORD, _REFUSES_KEY, _WORD, DONE, text=HONEST),
    "a failure that is no object": _sends(ROLE, _WORD, event({"error": [5]}), text=HONEST),
    "aborted": _sends(ROLE, _WORD, a_delta("", finish_reason="abort"), DONE, text=HONEST),
    "usage of 10^9": _reports(_used(10**9, 10**9)),
    "usage of 10^400": _reports(_used(10**400, 10**400)),
    "negative usage": _reports(_used(-5, -5)),
    "usage without end": _reports(_used(float("inf"), float("inf"))),
    "usage in words": _reports(_used("many", [1])),
    "usage that is a list": _reports([1, 2]),
    "details of usage": _reports(
        {**_used(60, 3), "prompt_tokens_details": {"cached_tokens": 10**9}}
    ),
    "a head of 256 bytes": _head(id="x" * 254, model="m" * 254, object="o" * 254),
    "a head of 257 bytes": _head(id="x" * 255),
    "a head of lists": _head(id=[[1]], created={}, model=None),
    "64 choices": _sends(ROLE, _choices(64), END, USED, DONE, text="x" * 64),
    "65 choices": _sends(ROLE, _choices(65), END, USED, DONE, text="x" * 65),
    "another choice": _sends(ROLE, a_delta(HONEST, index=7), END, DONE, text=HONEST),
    "a choice before all": _sends(ROLE, a_delta(HONEST, index=-1), END, DONE, text=HONEST),
    "64 fields": _head(**{f"x{number}": number for number in range(63)}),
    "65 fields": _head(**{f"x{number}": number for number in range(64)}),
    "1,000 fields of a delta": _sends(
        ROLE,
        event({"choices": [{"delta": {"content": HONEST, **{f"x{n}": 1 for n in range(1000)}}}]}),
        DONE, text=HONEST,
    ),
    "a call of a tool": _sends(
        ROLE, _WORD, event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]}),
        END, DONE, text=HONEST,
    ),
}  # fmt: skip
# They cost too much for each path.
LARGE_STREAMS: Mapping[str, Attack] = {
    "a head of 2 MiB": _head(id="x" * (2 * MIB)),
    "blank lines": _sends(ROLE, _WORD, b"\n" * 21_000, DONE, text=HONEST),
    "comments": _sends(b":\n\n" * 1000, ROLE, _WORD, b":\n\n" * 2000, DONE, text=HONEST),
    "spaces": _sends(ROLE, a_delta(" " * 200_000), _WORD, DONE, text=" " * 200_000 + HONEST),
    "an event above 4 MiB": _writes(
        _CHUNKED, _chunk(ROLE + _WORD + b"data: "), *[_chunk(_ENDLESS)] * 5, text=HONEST
    ),
}  # fmt: skip


def _says(body: Any, text: str = "", *, lies: bool = False) -> Attack:
    async def script(call: EngineCall) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await call.whole(data.replace(b"Infinity", b"1e999"))

    return Attack(answer=script, text=text, lies=lies)


async def _above_32_mib(call: EngineCall) -> None:
    await call.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for _ in range(33):
        await call.chunk(_ENDLESS)


_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE: Mapping[str, Attack] = {
    "an honest answer": Attack(),
    **_BROKEN,
    "rubbish": _says(b"\x00\xff rubbish"),
    "a list": _says([1]),
    "lists of lists": _says(b"[" * 100_000),
    "no UTF-8": _says(b'{"choices":[{"message":{"content":"\xff"}}]}'),
    "no fields": _says({}),
    "events": _sends(ROLE, _WORD, DONE),
    "usage of 10^9": _says({**COMPLETION, "usage": _used(10**9, 10**9)}, lies=True),
    "usage without end": _says({**COMPLETION, "usage": _used(float("inf"), 1)}, lies=True),
    "negative usage": _says({**COMPLETION, "usage": _used(-5, -5)}, lies=True),
    "usage in words": _says({**COMPLETION, "usage": _used("many", {})}, lies=True),
    "aborted": _says({**COMPLETION, "choices": [{"index": 0, "finish_reason": "abort"}]}),
    "cut": _writes(_JSON_HEAD + b"content-length: 900\r\n\r\n{"),
    "as long as its connection": _writes(_JSON_HEAD + b"\r\n" + _ANSWER),
    "says that it is above 32 MiB": _writes(
        _JSON_HEAD + b"content-length: %d\r\n\r\n{" % (33 * MIB)
    ),
    "two answers": Attack(answer=_twice, rest=True),
    "informational answers": Attack(answer=_informs, rest=True),
}
LARGE_WHOLE: Mapping[str, Attack] = {"above 32 MiB": Attack(answer=_above_32_mib)}


def _counts(body: Any, status: int = 200) -> Attack:
    """Return the engine that counts tokens like this, and may get no stream for it."""

    async def script(call: EngineCall) -> None:
        await call.whole(body, status)

    return Attack(counts=script, reaches=False, lies=True)


async def _cut(call: EngineCall) -> None:
    call.cut()


COUNTS: Mapping[str, Attack] = {
    "rubbish": _counts(b"\xff"),
    "500": _counts({}, 500),
    "no count": _counts({"tokens": [1]}),
    "10^9 tokens": _counts({"count": 10**9, "tokens": [1]}),
    "10^400 tokens": _counts({"count": 10**400, "tokens": [1]}),
    "fewer than none": _counts({"count": -1, "tokens": []}),
    "other tokens": _counts({"count": 2, "tokens": {"a": 1}}),
    "50,000 tokens": _counts({"count": 50_000, "tokens": [7] * 50_000}),
    "lists of lists": _counts(b'{"count":1,"tokens":' + b"[" * 9999 + b"]" * 9999 + b"}"),
    "above 2 MiB": _counts({"count": 1, "tokens": "x" * (2 * MIB)}),
    "cut": Attack(counts=_cut, reaches=False),
}


async def _begins(call: EngineCall) -> None:
    await call.begin()
    await call.chunk(ROLE + _WORD)
    await call.gone.wait()


SILENT_STREAMS: Mapping[str, Attack] = {
    "before its head": Attack(answer=silent, text=""),
    "after a token": Attack(answer=_begins),
}
SILENT_WHOLE: Mapping[str, Attack] = {"before its head": Attack(answer=silent)}
SILENT_COUNTS: Mapping[str, Attack] = {"a count": Attack(counts=silent, reaches=False)}
