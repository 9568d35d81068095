"""What an engine may answer: valid responses, and what a few changes make of them."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.untrusted.bodies import cut, flip

_NUMBERS: tuple[Any, ...] = (0, -1, 1, 7, 2**31, 2**63, 10**30, 1.5, "7", None, True, [], {})
_TYPES = (b"application/json", b"text/event-stream", b"text/event-stream; charset=x", b"", b"\xff")
_STATUSES = (200, 200, 200, 200, 201, 100, 101, 204, 301, 304, 400, 401, 404, 429, 500, 503, 999)
_LENGTH, _CHUNKED, _END = range(3)
_DEPTH = 2000


def a_page(random: Random, *, streams: bool) -> list[bytes]:
    """Return the pieces of what an engine sends before it closes the connection."""
    if random.random() < 0.02:
        return [random.randbytes(random.choice((0, 1, 100, 70_000)))]
    body = _events(random) if streams != (random.random() < 0.1) else _whole(random)
    for _ in range(random.choice((0, 0, 1))):
        body = random.choice(_DAMAGES)(random, body)
    status = random.choice(_STATUSES)
    content_type = _TYPES[streams] if random.random() < 0.8 else random.choice(_TYPES)
    framing = random.choice((_LENGTH, _CHUNKED, _CHUNKED, _END))
    head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\n" % (status, content_type)
    head += random.choice((b"", b"", b"connection: close\r\n", b"x: %b\r\n" % (b"y" * 70_000)))
    if framing == _LENGTH:
        wrong = random.choice((0, 0, 0, 1, -1, 10**6))
        head += b"content-length: %d\r\n" % max(0, len(body) + wrong)
    elif framing == _CHUNKED:
        head += b"transfer-encoding: chunked\r\n"
        body = _chunked(random, body)
    sent = random.choice((head + b"\r\n" + body,) * 20 + (b"\r\n" + head, head[:-5], body))
    if random.random() < 0.1:
        sent += b"HTTP/1.1 200 X\r\ncontent-length: 6\r\n\r\nforged"
    return _pieces(random, sent)


def metrics_page(random: Random) -> bytes:
    """Return a page of metrics that tells anything of an engine's load."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    lines = []
    for _ in range(random.randint(0, 40)):
        name = random.choice((*names, "x", "", "vllm:" * 100, "# TYPE " + names[0]))
        labels = random.choice(("", "{}", '{a="b"}', '{a="' + "}" * 50 + '"}', "{" * 50))
        value = random.choice(("0", "1", "-1", "NaN", "+Inf", "1e400", "", "x", "9" * 400, "1 2"))
        lines.append(f"{name}{labels} {value}")
    page = random.choice(("\n", "\n", "\r\n", "")).join(lines).encode()
    if random.random() < 0.1:
        page += random.randbytes(300)
    return page * random.choice((1, 1, 1, 30))


def _usage(random: Random) -> dict[str, Any]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens")
    usage: dict[str, Any] = {name: random.choice(_NUMBERS) for name in names}
    usage["prompt_tokens_details"] = random.choice((None, {"cached_tokens": usage["total_tokens"]}))
    return usage


def _choice(random: Random) -> dict[str, Any]:
    text = random.choice(("", " word", "\x00", "é" * 100, '"usage"', "x" * 5000))
    reason = random.choice((None, None, None, "stop", "abort", 7))
    return {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": reason}


def _whole(random: Random) -> bytes:
    value: Any = {"choices": [_choice(random)], "usage": _usage(random)}
    if random.random() < 0.2:
        value = random.choice(
            ([], 7, None, {"error": {"message": "x" * 5000, "code": random.choice(_NUMBERS)}})
        )
    return json.dumps(value).encode()


def _events(random: Random) -> bytes:
    end = random.choice((b"\n\n", b"\n\n", b"\r\n\r\n"))
    events = [b"data: " + _event(random) + end for _ in range(random.choice((0, 1, 3, 30)))]
    events += [b"data: [DONE]" + end] * (random.random() < 0.7)
    if random.random() < 0.1:
        events.insert(0, random.choice((end * 500, b": comment" + end, b"data:\n" * 1500 + end)))
    return b"".join(events)


def _event(random: Random) -> bytes:
    value: Any = {"choices": [_choice(random)]}
    if random.random() < 0.1:
        value = {"choices": [], "usage": _usage(random)}
    elif random.random() < 0.03:
        value = {"error": {"message": "failed", "code": random.choice(_NUMBERS)}}
    return json.dumps(value).encode()


def _nest(_: Random, body: bytes) -> bytes:
    return body.replace(b"[", b"[" * _DEPTH, 1)


_DAMAGES: tuple[Callable[[Random, bytes], bytes], ...] = (cut, flip, _nest)


def _chunked(random: Random, body: bytes) -> bytes:
    size = random.choice((1, 100, 10_000)) if len(body) < 5000 else 10_000
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return framed + random.choice((b"0\r\n\r\n",) * 6 + (b"", b"0\r\na: b\r\n\r\n", b"-1\r\n"))


def _pieces(random: Random, sent: bytes) -> list[bytes]:
    if random.random() < 0.7 or len(sent) < 2:
        return [sent]
    place = random.randrange(1, len(sent))
    return [sent[:place], sent[place:]]
