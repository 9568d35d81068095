"""The metrics endpoint that Prometheus scrapes."""

import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

from tessera.controller.https_server import HttpsHandler, HttpsServer
from tessera.controller.token_access import METRICS_PATH

_MAX_SECONDS = 10
# Clients that ask more often get the page of a moment ago.
_PAGE_SECONDS = 0.5


class MetricsServer(HttpsServer):
    """Any pod may connect; many clients cost no more than one."""

    def __init__(
        self,
        address: tuple[str, int],
        page: Callable[[], bytes],
        *,
        tls: Callable[[], ssl.SSLContext],
        check: Callable[[str], HTTPStatus],
        seconds: float,
    ) -> None:
        self._page = page
        self._rendered, self._rendered_at = b"", float("-inf")
        self._rendering = threading.Lock()
        super().__init__(address, _MetricsHandler, tls=tls, check=check, seconds=seconds)

    def page(self) -> bytes:
        """Return the page."""
        with self._rendering:
            if time.monotonic() - self._rendered_at >= _PAGE_SECONDS:
                self._rendered, self._rendered_at = self._page(), time.monotonic()
            return self._rendered


class _MetricsHandler(HttpsHandler):
    server: MetricsServer

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        if self.path.partition("?")[0] != METRICS_PATH:
            self.respond(HTTPStatus.NOT_FOUND)
            return
        status = self.token_status()
        page = self.server.page() if status is HTTPStatus.OK else b""
        self.respond(status, page, CONTENT_TYPE_LATEST)


def serve_metrics(
    address: tuple[str, int],
    page: Callable[[], bytes],
    *,
    tls: Callable[[], ssl.SSLContext],
    check: Callable[[str], HTTPStatus],
    seconds: float = _MAX_SECONDS,
) -> MetricsServer:
    """Serve the page at `/metrics` until the process ends."""
    server = MetricsServer(address, page, tls=tls, check=check, seconds=seconds)
    server.start("metrics")
    return server
