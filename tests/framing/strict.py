"""Reads HTTP/1.1 as RFC 9112 says it and in no other way; shares no code with the gateway.

It takes what changes no end of a message: blank lines before a request, more than one space between
the parts of its first line, and extensions of chunks with an empty value.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

Headers = tuple[tuple[bytes, bytes], ...]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_BLANK = re.compile(rb"[\r\n]*")
_FIRST_LINE = re.compile(rb"([A-Z][A-Z-]*) +([!-~]+) +HTTP/(1\.[01])\r\n")
_TARGET = re.compile(rb'(?:https?://[a-z0-9.:-]+)?(/[!"$-~]*)|\*')
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*?)[ \t]*\r\n")
_FIELD_BEGUN = re.compile(rb"(?:" + _TOKEN + rb"(?::[\t -~\x80-\xff]*)?)?\r?")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_CHUNK = re.compile(
    rb"(0*[0-9A-Fa-f]{1,16})(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb")?)?)*\r\n"
)
_CHUNK_BEGUN = re.compile(rb"[0-9A-Fa-f]*(?:[ \t]*;.*|\r)?", re.DOTALL)
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\t -~]*\r\n")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"))


class End(Enum):
    """What follows the last complete request."""

    NOTHING = auto()
    """Another request may come."""
    PARTIAL = auto()
    """A part of a request."""
    CLOSED = auto()
    """It was the last: whatever follows is none."""
    INVALID = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one request says."""

    method: bytes
    target: bytes
    """A path, perhaps with a query."""
    headers: Headers
    """Names in lower case, in their order."""
    body: bytes = b""

    @property
    def id(self) -> str:
        """Return its `x-request-id`, if it has one that the gateway takes."""
        given = dict(self.headers).get(b"x-request-id", b"").decode("latin-1")
        return given if _ID.fullmatch(given) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The requests of a connection, in their order."""

    requests: tuple[Request, ...]
    end: End
    started: Request | None = None
    """A request whose head is complete, and whose body is not, or is invalid."""
    size: int
    """Bytes up to the end of the last complete request."""


@dataclass(frozen=True, slots=True)
class Response:
    """What one response says."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class _InvalidError(Exception):
    pass


class _PartialError(Exception):
    pass


def read(sent: bytes) -> Reading:
    """Read all requests that a connection brings."""
    requests: list[Request] = []
    size = 0
    while True:
        started: list[Request] = []
        try:
            request, size, last = _request(sent, size, started)
        except (_InvalidError, _PartialError) as error:
            end = End.INVALID if isinstance(error, _InvalidError) else End.PARTIAL
            if end is End.PARTIAL and _blank_end(sent, size) == len(sent):
                end = End.NOTHING
            pending = started[0] if started else None
            return Reading(requests=tuple(requests), end=end, started=pending, size=size)
        requests.append(request)
        if last:
            return Reading(requests=tuple(requests), end=End.CLOSED, size=size)


def read_responses(received: bytes, methods: Iterable[bytes]) -> list[Response]:
    """Read the responses to requests of these methods, and at most one more.

    Raises ValueError where they are none, or end in the middle.
    """
    responses: list[Response] = []
    expected = iter(methods)
    at = 0
    while at < len(received):
        line = _STATUS_LINE.match(received, at)
        if line is None:
            raise ValueError(f"no response: {received[at : at + 80]!r}")
        status = int(line[1])
        headers, at = _response_headers(received, line.end())
        if status < 200:
            continue
        if next(expected, b"") == b"HEAD":
            responses.append(Response(status, headers, b""))
            continue
        body, at = _response_body(received, at, headers)
        responses.append(Response(status, headers, body))
    return responses


def _response_body(received: bytes, at: int, headers: dict[bytes, bytes]) -> tuple[bytes, int]:
    try:
        if headers.get(b"transfer-encoding") == b"chunked":
            body, at = _chunks(received, at)
            return body, _fields(received, at)[1]
        size = int(headers[b"content-length"])
    except (_InvalidError, _PartialError, KeyError):
        raise ValueError(f"no body: {received[at : at + 80]!r}") from None
    if at + size > len(received):
        raise ValueError(f"half a response: {received[-80:]!r}")
    return received[at : at + size], at + size


def _response_headers(received: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
    try:
        fields, at = _fields(received, at)
    except (_InvalidError, _PartialError):
        raise ValueError(f"no headers: {received[at : at + 80]!r}") from None
    return dict(fields), at


def _request(sent: bytes, at: int, started: list[Request]) -> tuple[Request, int, bool]:
    """Return a request, its end, and whether the connection ends with it."""
    line = _match(_FIRST_LINE, sent, _blank_end(sent, at))
    method, target, version = line.groups()
    path = _TARGET.fullmatch(target)
    if path is None or method not in _METHODS:
        raise _InvalidError
    headers, at = _fields(sent, line.end())
    names = [name for name, _ in headers]
    if names.count(b"host") > 1 or (version == b"1.1" and b"host" not in names):
        raise _InvalidError
    request = Request(method=method, target=path[1] or b"*", headers=headers)
    lengths, codings = _values(headers, b"content-length"), _values(headers, b"transfer-encoding")
    last = version == b"1.0" or _closes(headers)
    if codings:
        if version == b"1.0" or lengths or [each.lower() for each in codings] != [b"chunked"]:
            raise _InvalidError
        started.append(request)
        body, at = _chunks(sent, at)
        trailers, at = _fields(sent, at)
        if {b"content-length", b"transfer-encoding"} & {name for name, _ in trailers}:
            raise _InvalidError
        last = last or _closes(trailers)
    else:
        size = _length(lengths)
        started.append(request)
        if at + size > len(sent):
            raise _PartialError
        body, at = sent[at : at + size], at + size
    return (
        Request(method=method, target=request.target, headers=headers, body=body),
        at,
        last,
    )


def _length(lengths: list[bytes]) -> int:
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise _InvalidError
    return int(lengths[0])


def _fields(sent: bytes, at: int) -> tuple[Headers, int]:
    """Return the lines up to a blank one, and the end of that."""
    fields = []
    while sent[at : at + 2] != b"\r\n":
        field = _match(_FIELD, sent, at, _FIELD_BEGUN)
        fields.append((field[1].lower(), field[2]))
        at = field.end()
    return tuple(fields), at + 2


def _chunks(sent: bytes, at: int) -> tuple[bytes, int]:
    """Return the bytes of all chunks, and the end of the size of the last."""
    parts: list[bytes] = []
    while True:
        line = _match(_CHUNK, sent, at, _CHUNK_BEGUN)
        size, at = int(line[1], 16), line.end()
        if size == 0:
            return b"".join(parts), at
        parts.append(sent[at : at + size])
        at += size
        after = sent[at : at + 2]
        if not b"\r\n".startswith(after):
            raise _InvalidError
        if after != b"\r\n":
            raise _PartialError
        at += 2


def _match(
    pattern: re.Pattern[bytes], sent: bytes, at: int, begun: re.Pattern[bytes] | None = None
) -> re.Match[bytes]:
    """Match a line, which is partial as long as its end has not come, and as `begun` allows."""
    matched = pattern.match(sent, at)
    if matched is None:
        rest = sent[at:]
        impossible = begun is not None and not begun.fullmatch(rest)
        raise _InvalidError if b"\n" in rest or impossible else _PartialError
    return matched


def _blank_end(sent: bytes, at: int) -> int:
    blank = _BLANK.match(sent, at)
    assert blank is not None
    return blank.end()


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for each, value in headers if each == name]


def _closes(headers: Headers) -> bool:
    values = b",".join(_values(headers, b"connection"))
    return b"close" in [each.strip(b" \t").lower() for each in values.split(b",")]
