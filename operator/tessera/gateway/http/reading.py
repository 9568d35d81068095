"""How requests are read from a client: framed as HTTP says, with bounds on all that is no body."""

import asyncio
import re
import select

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Also of chunk sizes and extensions, beside an eighth of the body.
MAX_HEADER_BYTES = 64 * 2**10
# With trailers.
MAX_HEADERS = 256
# The size of a chunk, and two ends of lines.
_MIN_CHUNK_BYTES = 5
# Between two looks whether a client is gone of which nothing is read.
GONE_SECONDS = 0.5
# A path, of this server or with the name of one; `*` is that of OPTIONS.
_TARGET = re.compile(rb'(?:https?://[^/?#]+)?/[!"$-~]*|\*')


class UnclearFramingError(Exception):
    """The head of a request is none of HTTP/1.1 or 1.0, or others may read it differently."""


class HeadersTooLargeError(Exception):
    """What a request has beside its body passes a bound."""


class BoundedReading(HttpToolsProtocol):
    """How requests are read: framed as HTTP says, with bounds on all that is no body."""

    # Of the request that is read, as the parser shows them: only whole lines.
    _header_bytes = 0
    _header_count = 0
    # Of this request: lines without an end, and extensions of chunks.
    _unseen_bytes = 0
    # What the parser showed of the bytes that came at once.
    _seen_bytes = 0
    _in_headers = False
    # Of all bodies of this connection.
    _body_bytes = 0
    # Most connections never wait with a request behind another one.
    _gone_check: asyncio.TimerHandle | None = None

    @override
    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        if self.parser.get_method() == b"PRI":
            # The parser would wait for the rest of the preface of HTTP/2.
            raise UnclearFramingError
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._count(len(name) + len(value) + 4)
        # A trailer is no header of the request.
        if self._in_headers:
            super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """Hear from the parser that the size of a chunk is read."""
        self._count(_MIN_CHUNK_BYTES)

    @override
    def on_body(self, body: bytes) -> None:
        self._seen_bytes += len(body)
        self._body_bytes += len(body)
        self._header_bytes -= len(body) // 8
        super().on_body(body)

    def _parse(self, data: bytes | memoryview) -> None:
        """Parse what came, as if no request offered to upgrade the connection.

        The parser ends a message with such an offer at its headers, and would read its body as the
        next requests. HTTP lets a server ignore the offer: the parser gets the headers again,
        without it, and reads the body by its length or its chunks.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("a tunnel") from None
                (end_of_headers,) = upgrade.args
                data = memoryview(data)[end_of_headers:]
                head = self._head_without_upgrade()
                # One that has seen `connection: close` reads nothing more.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (
            self.parser.get_method(),
            self.url,
            version,
            b"".join([b"%b: %b\r\n" % each for each in self.headers if each[0] != b"upgrade"]),
        )

    def _check_head(self) -> None:
        """Refuse what the parser lets pass, and a proxy may read differently."""
        version = self.parser.get_http_version()
        if version == "1.0":
            # Such a client takes a first response for the only one.
            self.expect_100_continue = False
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version != "1.1"):
                raise UnclearFramingError
        if version not in ("1.1", "1.0") or hosts > 1 or (hosts == 0 and version == "1.1"):
            raise UnclearFramingError
        if not _TARGET.fullmatch(self.url) and self.parser.get_method() != b"CONNECT":
            raise UnclearFramingError

    def _check_gone(self) -> None:
        """Close the connection of a client that is gone while nothing of it is read.

        The end of a connection is an event of those alone that are read.
        """
        self._gone_check = None
        if self.flow.read_paused and not self.transport.is_closing():
            poll = select.poll()
            poll.register(self.transport.get_extra_info("socket"), select.POLLRDHUP)
            if poll.poll(0):
                self.transport.abort()
            else:
                self._gone_check = self.loop.call_later(GONE_SECONDS, self._check_gone)

    def _count(self, size: int) -> None:
        self._seen_bytes += size
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES or self._header_count > MAX_HEADERS:
            raise HeadersTooLargeError
