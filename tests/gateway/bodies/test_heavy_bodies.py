"""Bodies of many small values cost little more than the same bytes as text."""

import asyncio
import json
import time
import tracemalloc
from typing import Any

import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.gateway.bodies.json_values import MAX_FIELDS, MAX_MARKS
from tessera.gateway.bodies.media import read_media
from tessera.gateway.bodies.parsing import body_for_engine, parse, parse_with_unlisted
from tessera.gateway.bodies.prompt_size import MAX_MEDIA
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import RequestError
from tests.gateway.harness import KEY, a_directory, a_gateway, a_model

MIB = 2**20
CHAT, EMBEDDINGS, RERANK = "/v1/chat/completions", "/v1/embeddings", "/v1/rerank"
STREAM_OPTIONS = b'"stream":true,"stream_options":{'
A_FIELD = b'"%07x":1000,'
# Path, the beginning of its body, what is repeated, and the end.
HEAVY = {
    "escapes": (CHAT, b'"messages":"', b"\\u0041", b'"'),
    "escaped letters": (CHAT, b'"messages":"', b"\\u0061 ", b'"'),
    "escapes of inputs": (EMBEDDINGS, b'"input":"', b"\\u0041", b'"'),
    "escapes of documents": (RERANK, b'"query":"a","documents":["', b"\\u0041", b'"]'),
    "nested documents": (RERANK, b'"query":"a","documents":[[', b"[],", b'1],"a"]'),
    "quotation marks": (CHAT, b'"messages":"', b'\\"', b'"'),
    "images": (CHAT, b'"messages":[', b'{"image_url":1},', b"1]"),
    "names of images": (CHAT, b'"messages":[', b'"image_url",', b"1]"),
    "tokens": (EMBEDDINGS, b'"input":[', b"1,", b"1]"),
    "fields": (CHAT, b'"priority":-1,', A_FIELD, b'"messages":[]'),
    "fields of options": (CHAT, STREAM_OPTIONS, A_FIELD, b'"b":1}'),
    "a long name": (CHAT, b'"priority":-1,"', b"\\n", b'":1'),
    "messages": (CHAT, b'"messages":[{"content":[{"image_url":"data:,"}]},', b"{},", b"1]"),
    "lists": (CHAT, b'"messages":[{"image_url":"data:,"},', b"[1,1,1,1,1,1,1],", b"1]"),
    "deep lists": (CHAT, b'"messages":[{"image_url":"data:,"},', b"[[[[[[[[1]]]]]]]],", b"1]"),
    "parts": (CHAT, b'"messages":[{"content":[{"image_url":"data:,"},', b'{"a":{}},', b"1]}]"),
    "an image": (CHAT, b'"messages":[{"content":[{"image_url":"data:,', b"AAAA", b'"}]}]'),
    "an escaped image": (CHAT, b'"messages":[{"content":[{"image_url":"', b"\\u0041", b'"}]}]'),
}
# Its text is in the error that refuses it.
TWICE = ("a long name",)


def a_body(name: str, size: int) -> tuple[str, bytes]:
    path, first, unit, last = HEAVY[name]
    repeated = several_fields(size // 15) if unit is A_FIELD else unit * (size // len(unit))
    return path, b'{"model":"chat",%b%b%b}' % (first, repeated, last)


def several_fields(count: int) -> bytes:
    return b"".join([A_FIELD % number for number in range(count)])


def for_engine(path: str, body: bytes) -> bytes:
    """Do all that the gateway does with a body."""
    fields, _ = parse_with_unlisted(PATHS[path].decoder, PATHS[path].listed, body)
    if fields.prompt_size(body).media_tokens:
        read_media(fields.media, a_model(media_domains=("a",)))
    return body_for_engine(body, fields, "served", None, "a salt")


def read(path: str, body: bytes) -> None:
    try:
        for_engine(path, body)
    except RequestError as error:
        assert error.status == 400  # noqa: PT017 - what is not too much is not refused


@pytest.mark.parametrize("name", HEAVY)
def test_no_body_takes_long(name: str) -> None:
    path, body = a_body(name, 31 * MIB)
    began = time.process_time()
    read(path, body)
    # Those that were read value by value took 1 to 5 s, now none takes more than 0.3 s.
    assert time.process_time() - began < 0.9


@pytest.mark.parametrize("name", HEAVY)
def test_no_body_takes_memory_but_for_one_copy(name: str) -> None:
    path, body = a_body(name, 8 * MIB)
    tracemalloc.start()
    try:
        read(path, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (2 if name in TWICE else 1.1) * len(body)


LEGITIMATE: dict[str, tuple[str, dict[str, Any], int]] = {
    "tokens": ("/v1/completions", {"prompt": list(range(100_000, 1_100_000))}, 1_000_001),
    "images": (CHAT, {"messages": [{"image_url": {"url": "A" * (20 * MIB)}}]}, 4096),
    "escaped text": (CHAT, {"messages": [{"content": "夜班火车" * 50_000}]}, 400_000),
    "most images": (
        CHAT,
        {"messages": [{"image_url": {"url": "https://a"}}] * MAX_MEDIA},
        MAX_MEDIA * 4096,
    ),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_large_requests_of_honest_clients_are_taken(name: str) -> None:
    path, fields, tokens = LEGITIMATE[name]
    body = json.dumps({"model": "chat", "priority": -1, **fields}).encode()
    parsed = parse(PATHS[path].decoder, body)
    assert parsed.prompt_size(body).estimate(None) >= tokens
    sent = json.loads(body_for_engine(body, parsed, "chat", None))
    assert sent == json.loads(body) | {"priority": 0}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'"messages":[%b1]' % (b"1," * MAX_MARKS), f"more than {MAX_MARKS} commas"),
        (b'%b"priority":-1' % (several_fields(MAX_FIELDS)), f"at most {MAX_FIELDS} fields"),
        (b"%b%b}" % (STREAM_OPTIONS, several_fields(MAX_FIELDS) + b'"a":1'), "at most"),
        (b'"messages":[%b1]' % (b'{"image_url":1},' * 2 * (MAX_MEDIA + 1)), f"{MAX_MEDIA} images"),
        (b'"messages":"%b"' % (b"\\u0061 " * 5000), "letters as they are"),
    ],
)
def test_what_is_too_much_is_refused_with_its_bound(body: bytes, text: str) -> None:
    body = b'{"model":"chat",%b}' % body
    with pytest.raises(RequestError, match=text) as caught:
        for_engine(CHAT, body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","priority":-1}',
        b' { "priority" : -1 , "model" : "a" } ',
        b'\n{"priority":-1,"x":"\\"}, {\\\\","model":"a","y":{"priority":-2,"z":["}"]}}',
        b'{"model":"a","pri\\u006frity":-1,"priority":-3,"":0,"x":[],"y":{},"z":[{"model":1}]}',
        b'{"model":"a","priority":-1,"x":1.5e-3,"y":null,"":"\xe2\x82\xac"}',
        b'{"model":"a","stream":true,"stream_options":{},"stream_options":null}',
        b'{"model":"a","stream":true,"stream_options": { } ,"stream_options":{ "x":{"y":"}"} } }',
    ],
)
@pytest.mark.parametrize("padding", [b"", b" " * 2**15])
def test_a_changed_field_is_found_wherever_it_is(body: bytes, padding: bytes) -> None:
    body = padding + body.replace(b",", b",%b" % padding)
    expected = json.loads(body) | {"model": "served", "cache_salt": "a salt"}
    if "priority" in expected:
        expected["priority"] = 0
    if "stream" in expected:
        expected["stream_options"] = {**(expected["stream_options"] or {}), "include_usage": True}
    sent = for_engine(CHAT, body)
    assert json.loads(sent) == expected
    assert sent.count(b'"served"') == sent.count(b'"model":"served"') == 1
    assert b"-1" not in sent


@pytest.mark.anyio
async def test_large_bodies_that_end_together_leave_turns_to_others() -> None:
    path, body = a_body("escapes of inputs", 4 * MIB)
    began = time.thread_time()
    parse(PATHS[path].decoder, body).prompt_size(body)
    body_seconds = time.thread_time() - began
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
    head %= (path.encode(), KEY.encode(), len(body))
    # It is refused after its size is known.
    limits = RateLimitsSpec(input_tokens=PeriodLimits(per_day=1000))
    async with a_gateway(a_directory(a_model(limits=limits))) as gateway:
        clients = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(8)]
        for _, writer in clients:
            writer.write(head + body[:-1])
        size = 8 * (len(body) - 1)
        await gateway.wait_for_held_bytes(size, size)
        for _, writer in clients:
            writer.write(body[-1:])
        answers = asyncio.gather(*(reader.readline() for reader, _ in clients))
        longest, turn_began = 0.0, time.thread_time()
        while not answers.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, turn_began = max(longest, now - turn_began), now
        assert set(await answers) == {b"HTTP/1.1 400 Bad Request\r\n"}
        for _, writer in clients:
            writer.close()
    assert longest < 3 * body_seconds
