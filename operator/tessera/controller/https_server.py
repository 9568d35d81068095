"""Servers that any pod may reach: TLS and bearer tokens, in threads of their own."""

import contextlib
import io
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

MAX_CONNECTIONS = 16
_CHUNK_BYTES = 64 * 1024
_HEADER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The one thing that a server does."""

    method: str
    path: str
    """The path that is answered; empty for every path."""
    answer: Callable[[bytes], tuple[HTTPStatus, bytes]]
    """Takes a body and returns a response; each connection calls it in its own thread."""
    max_body_bytes: int = 0
    content_type: str = ""
    """Of the response."""


@dataclass(slots=True)
class _Connection:
    address: str
    since: float
    """Monotonic seconds."""
    is_known: bool = False
    """It sent a token that may use the server."""


class HttpsServer(ThreadingHTTPServer):
    """Connections beyond a number and a time are cut.

    Of too many, the oldest of the address with most, of those that sent no token which may use the
    server.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        endpoint: Endpoint,
        *,
        tls: Callable[[], ssl.SSLContext],
        check: Callable[[str, str], HTTPStatus] | None,
        seconds: float,
        most: int = MAX_CONNECTIONS,
    ) -> None:
        """Take `tls`, which is asked for each connection, so a renewed certificate counts at once.

        `check` gets a token and an address, and returns OK where it may use the server; None where
        anybody may, without a token. There are at most so many connections.
        """
        self.endpoint, self._check, self._most = endpoint, check, most
        self._tls, self._seconds = tls, seconds
        self._open: dict[socket.socket, _Connection] = {}
        self._connections = threading.Lock()
        super().__init__(address, _Handler)

    def start(self) -> None:
        """Serve until the process ends."""
        name = self.endpoint.path.strip("/") or "reviews"
        threading.Thread(target=self.serve_forever, name=name, daemon=True).start()

    @override
    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # The thread of the connection makes the handshake: a slow client delays no other.
        tls_connection = self._tls().wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        return tls_connection, address

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections:
            while len(self._open) >= self._most:
                self._cut(self._first_to_leave())
            self._open[request] = _Connection(client_address[0], time.monotonic())
        super().process_request(request, client_address)

    @override
    def service_actions(self) -> None:
        with self._connections:
            for request, connection in tuple(self._open.items()):
                if time.monotonic() - connection.since > self._seconds:
                    self._cut(request)

    @override
    def shutdown_request(self, request: Any) -> None:
        with self._connections:
            self._open.pop(request, None)
        super().shutdown_request(request)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that goes away is no news
            super().handle_error(request, client_address)

    @property
    def is_open(self) -> bool:
        """Return whether the server answers without a token."""
        return self._check is None

    def check(self, request: socket.socket, token: str, address: str) -> HTTPStatus:
        """Return OK where a token may use the server, or the status that refuses it."""
        status = HTTPStatus.OK if self._check is None else self._check(token, address)
        if status is HTTPStatus.OK:
            with self._connections:
                if request in self._open:
                    self._open[request].is_known = True
        return status

    def _first_to_leave(self) -> socket.socket:
        strangers = [each for each, known in self._open.items() if not known.is_known]
        counts = Counter(self._open[each].address for each in strangers)
        # Of equal ones the oldest.
        return max(strangers or self._open, key=lambda request: counts[self._open[request].address])

    def _cut(self, request: socket.socket) -> None:
        del self._open[request]
        with contextlib.suppress(OSError):
            # Below TLS, whose own shutdown would let the connection's thread go on without it.
            socket.socket.shutdown(request, socket.SHUT_RDWR)


class _BoundedReader(io.BufferedIOBase):
    """Bytes of a request, up to a number of them; what follows is as if it were never sent."""

    def __init__(self, file: io.BufferedIOBase, limit: int) -> None:
        self._file, self._limit, self._left = file, limit, limit

    def renew(self) -> None:
        """Begin the next request."""
        self._left = self._limit

    @override
    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        content = self._file.read(min(size, self._left) if size and size > 0 else 0)
        self._left -= len(content)
        return content

    @override
    def close(self) -> None:
        self._file.close()
        super().close()


class _Handler(BaseHTTPRequestHandler):
    """Bounds what it reads, and answers without a word about the server."""

    protocol_version = "HTTP/1.1"
    server: HttpsServer
    request: ssl.SSLSocket

    @override
    def setup(self) -> None:
        self.request.do_handshake()
        super().setup()
        self._max_bytes = _HEADER_BYTES + self.server.endpoint.max_body_bytes
        self.rfile = self._bounded = _BoundedReader(self.rfile, self._max_bytes)

    @override
    def handle_one_request(self) -> None:
        self._bounded.renew()
        super().handle_one_request()

    @override
    def finish(self) -> None:
        """Wait for the client's end: a close with unread bytes would reset the connection.

        A client that still sends would then fail before it reads the response.
        """
        super().finish()
        left = self._max_bytes
        with contextlib.suppress(OSError):
            # Below TLS: these bytes are not looked at.
            socket.socket.shutdown(self.request, socket.SHUT_WR)
            while left > 0 and (content := socket.socket.recv(self.request, _CHUNK_BYTES)):
                left -= len(content)

    def _serve(self) -> None:
        endpoint = self.server.endpoint
        if self.command != endpoint.method:
            self.send_error(HTTPStatus.NOT_IMPLEMENTED, f"Unsupported method ({self.command!r})")
        elif endpoint.path and self.path.partition("?")[0] != endpoint.path:
            self._respond(HTTPStatus.NOT_FOUND)
        elif not self.server.is_open and (status := self._token_status()) is not HTTPStatus.OK:
            self._respond(status)
        elif not endpoint.max_body_bytes:
            self._respond(*endpoint.answer(b""))
        else:
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                self._respond(HTTPStatus.LENGTH_REQUIRED)
            elif int(length) > endpoint.max_body_bytes:
                self._respond(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            else:
                self._respond(*endpoint.answer(self.rfile.read(int(length))))

    do_GET = do_POST = _serve  # noqa: N815 - the names that http.server calls

    def _token_status(self) -> HTTPStatus:
        """Return OK, or the status that refuses the token of the request."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer" and token.strip()
        if not is_bearer:
            return HTTPStatus.UNAUTHORIZED
        return self.server.check(self.request, token.strip(), self.client_address[0])

    def _respond(self, status: HTTPStatus, body: bytes = b"") -> None:
        """Respond; the connection goes on only after a success without a body."""
        self.send_response(status)
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        if status is HTTPStatus.OK:
            self.send_header("Content-Type", self.server.endpoint.content_type)
        if status is not HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: requests are not news."""
