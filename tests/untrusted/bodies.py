"""Bodies that a client may send: valid ones, and what a few changes make of them."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

MESSAGES = [{"role": "user", "content": "hi"}]
_PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 8},
    "/v1/completions": {"prompt": "hi", "max_tokens": 8},
    "/v1/responses": {"input": "hi", "max_output_tokens": 8},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 8},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/pooling": {"input": ["a"]},
    "/rerank": {"query": "q", "documents": ["a", "b"]},
    "/score": {"text_1": "a", "text_2": ["b", "c"]},
}
_FIELDS = (
    *("model", "messages", "prompt", "input", "max_tokens", "max_completion_tokens", "stream", "n"),
    *("max_output_tokens", "best_of", "stream_options", "documents", "query", "text_1", "text_2"),
    *("prompt_embeds", "use_beam_search", "system", "instructions", "tools", "response_format"),
)
_DEPTH = 2000


def a_body(random: Random, model: str) -> tuple[str, bytes]:
    """Return a path and a body for it."""
    path = random.choice(list(_PATHS))
    fields = {"model": model, **_PATHS[path]}
    if random.random() < 0.3:
        fields["stream"] = True
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        fields[random.choice(_FIELDS)] = _value(random)
    body = json.dumps(fields, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        body = random.choice(_DAMAGES)(random, body)
    return path, body


def _value(random: Random) -> Any:
    number = random.choice((0, -1, 1, 2**31, 2**63, 10**40, 1.5, 1e308, float("nan"), float("inf")))
    text = random.choice(("", "chat", "\ud800", "\x00", "é" * 50, "image_url", "x" * 5000))
    return random.choice(
        (
            *(None, True, False, number, text, [number] * 3, [text] * 3, {"type": text}),
            *({"include_usage": number}, [[number]], [{"role": text, "content": text}], {}, []),
            [{"type": "image_url", "image_url": {"url": text}}] * random.choice((1, 40)),
            [random.randrange(10**5) for _ in range(random.choice((1, 3000)))],
        )
    )


def cut(random: Random, body: bytes) -> bytes:
    """Leave out the end."""
    return body[: random.randrange(len(body) + 1)]


def flip(random: Random, body: bytes) -> bytes:
    """Put a few other bytes in place of one."""
    place = random.randrange(len(body) + 1)
    return body[:place] + random.randbytes(random.randint(1, 4)) + body[place + 1 :]


def _repeat(random: Random, body: bytes) -> bytes:
    """Give a field twice."""
    name = random.choice(_FIELDS)
    value = json.dumps(_value(random)).encode("utf-8", "surrogatepass")
    return b'{"%b":%b,%b' % (name.encode(), value, body[1:])


def _hide(random: Random, body: bytes) -> bytes:
    """Write a letter of a name as an escape."""
    name = random.choice(_FIELDS)
    return body.replace(name.encode(), b"\\u%04x%b" % (ord(name[0]), name[1:].encode()))


def _nest(random: Random, body: bytes) -> bytes:
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opening * _DEPTH + b"1" + closing * _DEPTH
    return b'{"%b":%b,%b' % (random.choice(_FIELDS).encode(), deep, body[1:])


def _mark(_: Random, body: bytes) -> bytes:
    return b"\xef\xbb\xbf" + body


def _follow(_: Random, body: bytes) -> bytes:
    return body + body


_DAMAGES: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(cut, flip, _repeat, _hide, _nest, _mark, _follow),
)
