"""The metrics endpoint that Prometheus scrapes, in threads of its own."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import override

MAX_CONNECTIONS = 16
_MAX_SECONDS = 10
# Clients that ask more often get the page of a moment ago.
_PAGE_SECONDS = 0.5


class MetricsServer(ThreadingHTTPServer):
    """Any pod may connect: connections beyond a number and a time are cut, the oldest first."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, page: Callable[[], bytes], seconds: float) -> None:
        self._page, self._seconds = page, seconds
        self._rendered, self._rendered_at = b"", float("-inf")
        self._rendering = threading.Lock()
        self._since: dict[socket.socket, float] = {}
        self._connections = threading.Lock()
        super().__init__((host, port), _Handler)

    def page(self) -> bytes:
        """Return the page; many clients cost no more than one."""
        with self._rendering:
            if time.monotonic() - self._rendered_at >= _PAGE_SECONDS:
                self._rendered, self._rendered_at = self._page(), time.monotonic()
            return self._rendered

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections:
            while len(self._since) >= MAX_CONNECTIONS:
                self._cut(next(iter(self._since)))
            self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    @override
    def service_actions(self) -> None:
        with self._connections:
            for request, since in tuple(self._since.items()):
                if time.monotonic() - since > self._seconds:
                    self._cut(request)

    @override
    def shutdown_request(self, request: Any) -> None:
        with self._connections:
            self._since.pop(request, None)
        super().shutdown_request(request)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that goes away is no news
            super().handle_error(request, client_address)

    def _cut(self, request: socket.socket) -> None:
        del self._since[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = self.server.page()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: scrapes are not news."""


def serve_metrics(
    host: str, port: int, page: Callable[[], bytes], seconds: float = _MAX_SECONDS
) -> MetricsServer:
    """Serve the page at `/metrics` until the process ends."""
    server = MetricsServer(host, port, page, seconds)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
