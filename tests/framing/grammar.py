"""Inputs for one connection: requests that are right, nearly right, or hide others."""

import json
from collections.abc import Callable, Sequence
from random import Random

from tests.framing.recording import AUTHORIZATION, CHAT_PATH
from tests.gateway.harness import CHAT

Bytes = Sequence[bytes]

_PATHS = (
    *[CHAT_PATH] * 6,
    b"/v1/models",
    b"/healthz",
    b"/v1/chat/completions?a=b",
    b"http://x/healthz",
    b"http://evil/v1/chat/completions",
    b"/none",
    b"//v1/chat/completions",
)
_ODD_PATHS = (
    b"*",
    b"x:443",
    b"ftp://x/",
    b"/healthz#a",
    b"/a?\xff",
    b"",
    b"/a b",
    b"/\x00",
    b"/\tb",
)
_METHODS = (*[b"POST"] * 6, b"GET", b"GET", b"HEAD", b"PUT", b"OPTIONS", b"DELETE")
_ODD_METHODS = (b"CONNECT", b"PRI", b"post", b"POST\t", b"GE T", b"", b"FOO", b" GET")
_ODD_VERSIONS = (
    b" HTTP/1.0",
    b" HTTP/1.0",
    b" HTTP/1.0",
    b" HTTP/2.0",
    b" HTTP/0.9",
    b" HTTP/1.2",
    b"",
    b"  HTTP/1.1",
    b" HTTP/1.1 ",
    b"HTTP/1.1",
    b" http/1.1",
    b" HTTP/11",
    b"\tHTTP/1.1",
)
_LINES = (
    b"x-a: b",
    b"X-Long: " + b"v" * 300,
    b"x-empty:",
    b"x-tab:\tb\t",
    b"x-high: \xc3\xbf\xff",
    b"x_under: a",
    b"te: trailers",
    b"accept: a, b",
    b'x-quoted: "a,b"',
    b"transfer_encoding: chunked",
    b"trailer: x-request-id",
    b"content_length: 3",
    b"x-forwarded-for: 10.0.0.1",
    b"keep-alive: timeout=5",
)
_ODD_LINES = (
    b" folded: a",
    b"x-a: b\r\n c",
    b"x-a: b\r\n\tcontent-length: 3",
    b"x-a : b",
    b"x-a",
    b": b",
    b"x\x00a: b",
    b"x\xffa: b",
    b"x-a: \x01",
    b"x-a: b\x7f",
    b"x-a: b\rx-b: c",
    b"x-a: b\nx-b: c",
    b"x-a: b\r",
    b"host: y",
    b"x-a: b\n",
    b"(x): y",
    b"x-a: \x0b",
    b"content-length\x0b: 3",
)
_UPGRADES = (
    (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAEAAEAA"),
    (b"Upgrade: websocket", b"Connection: upgrade", b"sec-websocket-version: 13"),
    (b"upgrade: x", b"connection: keep-alive, upgrade", b"UPGRADE: y"),
    (b"connection: upgrade",),
    (b"upgrade: h2c",),
    (b"upgrade: TLS/1.0, HTTP/1.1", b"connection: upgrade, close"),
)
_EXPECTS = (
    b"expect: 100-continue",
    b"Expect: 100-Continue",
    b"expect: y",
    b"expect: y 100-continue",
)
_CONNECTIONS = (
    b"connection: close",
    b"connection: keep-alive",
    b"Connection: Keep-Alive, x",
    b"connection: x, CLOSE",
    b"connection: content-length",
    b"connection: transfer-encoding, host",
)
_LENGTHS = (
    b"content-length: %d\r\ncontent-length: %d",
    b"content-length: %d, %d",
    b"content-length: +%d%.0d",
    b"content-length: 0x%x%.0d",
    b"content-length: %d %d",
    b"content-length: 00%d%.0d",
    b"content-length : %d%.0d",
    b"content-length: \t%d%.0d ",
    b"content-length:%.0d%.0d",
    b"content-length: %d%.0d_0",
    b"content-length: -%d%.0d",
    b"content-length: %d.%.0d",
    b"Content-Length: %d%.0d\x0b",
    b"content-length:\r\n %d%.0d",
    b"content-length: 1e%d%.0d",
    b"content-length: 99999999999999999999%.0d%.0d",
    b"content-length: %d%.0d\ncontent-length: 0",
    b"content-length: \xb2%.0d%.0d",
)
_CODINGS = (
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: chunked, identity",
    b"transfer-encoding: xchunked",
    b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    b"transfer-encoding: gzip\r\ntransfer-encoding: chunked",
    b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
    b"transfer-encoding:",
    b"transfer-encoding: ,chunked",
    b"transfer-encoding: chunked,",
    b"transfer-encoding: \tchunked",
    b"transfer-encoding: \x0bchunked",
    b"transfer-encoding: chunked;q=1",
    b"transfer-encoding : chunked",
    b"transfer-encoding:\r\n chunked",
    b'transfer-encoding: "chunked"',
    b"transfer-encoding: identity",
    b"transfer-encoding: chunked\ncontent-length: 0",
    b"transfer-encoding: chun\xffked",
    b"transfer-encoding: chunked\x00",
)
_EXTENSIONS = (b";a", b";a=b", b';a="b\\"c;"', b";a=b;c=d", b";" + b"x" * 500)
_ODD_EXTENSIONS = (
    b" ",
    b";",
    b";a\nb",
    b";a\rb",
    b" ;a",
    b"; a",
    b";\x00",
    b';a="\r\n"',
    b"\x0b",
    b"\n",
    b";\xff",
    b";a=",
)
_TRAILERS = (
    b"x-a: b",
    b"x-md5: " + b"c" * 200,
    b"x-request-id: hidden-trailer",
    b"authorization: Bearer tsk-other",
    b"connection: close",
    b"connection: upgrade\r\nupgrade: h2c",
    b"host: y",
    b"expect: 100-continue",
)
_BETWEEN = (b"\r\n", b"\r\n" * 40, b"\n", b"\r")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_GARBAGE = (
    _PREFACE,
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"0\r\n\r\n",
    b"}",
    b"GET /\r\n",
    b"\x00",
    b":\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
)
_MUTANTS = b'\r\n :;,0159afx\x00\x0b\x7f\xff"-'


def an_input(seed: str) -> list[bytes]:
    """Return the pieces that one connection sends; equal for equal seeds."""
    random = Random(seed)  # noqa: S311 - a seeded choice
    # Some connections have nothing wrong, so that they have all their responses.
    oddness = random.choice((0.0, 0.0, 0.03, 0.15))
    sent = b"".join(
        _message(random, f"{seed}-{number}", oddness) for number in range(random.randint(1, 4))
    )
    if random.random() < oddness:
        sent = _mutated(random, sent)
    if random.random() < oddness:
        sent = sent[: random.randrange(len(sent))]
    else:
        last = b"host: x\r\nx-request-id: %b-last\r\nconnection: close\r\n" % seed.encode()
        sent += b"GET /healthz HTTP/1.1\r\n%b\r\n" % last
    return _cut(random, sent)


def _cut(random: Random, sent: bytes) -> list[bytes]:
    kind = random.random()
    if kind < 0.5:
        return [sent]
    if kind < 0.53 and len(sent) < 1500:
        return [sent[at : at + 1] for at in range(len(sent))]
    cuts = sorted(random.sample(range(len(sent) + 1), min(len(sent), random.randint(1, 5))))
    return [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True) if a < b]


def _mutated(random: Random, sent: bytes) -> bytes:
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(sent))
        new = random.choice((b"", bytes((random.choice(_MUTANTS),)), sent[at : at + 1] * 2))
        sent = sent[:at] + new + sent[at + 1 :] or b"\r"
    return sent


def _message(random: Random, name: str, oddness: float) -> bytes:
    odd: Callable[[], bool] = lambda: random.random() < oddness  # noqa: E731 - said in a word
    if odd() and random.random() < 0.3:
        return random.choice(_GARBAGE)
    method = random.choice(_ODD_METHODS if odd() else _METHODS)
    path = random.choice(_ODD_PATHS if odd() else _PATHS)
    version = random.choice(_ODD_VERSIONS) if odd() else b" HTTP/1.1"
    key = AUTHORIZATION if random.random() < 0.9 else b"Bearer tsk-unknown"
    lines = [b"authorization: " + key, b"content-type: application/json"]
    lines.append(b"%b: %b" % (random.choice((b"x-request-id", b"X-Request-ID")), name.encode()))
    if not odd():
        lines.append(b"host: x")
    lines += random.sample(_LINES, random.choice((0, 0, 1, 3)))
    if odd():
        lines.append(random.choice(_ODD_LINES))
    if random.random() < 0.15:
        lines += random.choice(_UPGRADES)
    if random.random() < 0.1:
        lines.append(random.choice(_EXPECTS))
    if random.random() < 0.1:
        lines.append(random.choice(_CONNECTIONS))
    body = _body(random, name)
    framing, framed = _framed(random, body, odd)
    lines += framing
    random.shuffle(lines)
    end = b"\n" if odd() and random.random() < 0.3 else b"\r\n"
    between = random.choice(_BETWEEN) if random.random() < 0.1 else b""
    head = b"%b %b%b%b" % (method, path, version, end)
    return between + head + b"".join(line + b"\r\n" for line in lines) + end + framed


def _hidden(random: Random, name: str) -> bytes:
    body = json.dumps(CHAT).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\nauthorization: %b\r\nx-request-id: hidden-%b\r\n%b" % (
        CHAT_PATH,
        AUTHORIZATION,
        name.encode(),
        random.choice((b"\r\n", b"content-length: %d\r\n\r\n%b" % (len(body), body))),
    )


def _body(random: Random, name: str) -> bytes:
    kind = random.random()
    whole = json.dumps({**CHAT, "user": name}).encode()
    if kind < 0.6:
        return whole
    if kind < 0.7:
        return b""
    if kind < 0.8:
        return whole[:-1] + b"\r\n" * random.randint(1, 60) + b"}"
    if kind < 0.9:
        return _hidden(random, name)
    return random.choice((b"0\r\n\r\n", b"\r\n" * 30, b"5\r\nhello\r\n0\r\n\r\n")) + _hidden(
        random, name
    )


def _framed(random: Random, body: bytes, odd: Callable[[], bool]) -> tuple[list[bytes], bytes]:
    """Return the lines that say where the body ends, and the body as it is sent."""
    size = len(body)
    length = b"content-length: %d" % size
    if odd():
        wrong = random.choice((0, 1, size - 1, size + 1, size + 2, 10 * size, 2**40))
        odd_length = random.choice(_LENGTHS) % (size, random.choice((size, wrong)))
        return [random.choice((odd_length, b"content-length: %d" % max(0, wrong)))], body
    if random.random() < 0.55:
        return [length] if body or random.random() < 0.5 else [], body
    coding = random.choice((b"transfer-encoding: chunked", b"Transfer-Encoding: Chunked"))
    lines = [random.choice(_CODINGS) if odd() else coding]
    if odd():
        lines.append(length)
    return lines, _chunks(random, body, odd)


def _chunks(random: Random, body: bytes, odd: Callable[[], bool]) -> bytes:
    length = b"content-length: %d" % len(body)
    sizes: list[int] = []
    while sum(sizes) < len(body):
        sizes.append(random.choice((1, 7, len(body), len(body))))
    sent, at = b"", 0
    for each in [*sizes, 0]:
        part = body[at : at + each]
        at += each
        size = random.choice((b"%x", b"%x", b"%X", b"0%x", b"00000000000000000%x")) % len(part)
        if odd():
            size = random.choice(
                (b"0x%x", b"-%x", b"+%x", b" %x", b"%x0", b"%xg", b"ffffffffffffffff%x")
            ) % len(part)
        if odd():
            size += random.choice(_ODD_EXTENSIONS)
        elif random.random() < 0.1:
            size += random.choice(_EXTENSIONS)
        sent += size + (random.choice((b"\n", b"\r", b"\r\r\n")) if odd() else b"\r\n")
        if part:
            sent += part + (random.choice((b"\n", b"", b"\r", b"xx")) if odd() else b"\r\n")
    if random.random() < 0.3:
        for _ in range(random.randint(1, 3)):
            sent += random.choice(_TRAILERS) + b"\r\n"
    if odd():
        sent += random.choice((*_ODD_LINES, length, b"transfer-encoding: chunked")) + b"\r\n"
    return sent + (random.choice((b"\n", b"\r", b"")) if odd() else b"\r\n")
