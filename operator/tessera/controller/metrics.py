"""The metrics endpoint that Prometheus scrapes."""

import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

from tessera.controller.https_server import Endpoint, HttpsServer
from tessera.controller.token_access import METRICS_PATH

_MAX_SECONDS = 10
# Clients that ask more often get the page of a moment ago.
_PAGE_SECONDS = 0.5


class MetricsPage:
    """The page, which many clients ask for at the cost of one."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._rendered, self._rendered_at = b"", float("-inf")
        self._rendering = threading.Lock()

    def read(self) -> bytes:
        """Return the page."""
        with self._rendering:
            if time.monotonic() - self._rendered_at >= _PAGE_SECONDS:
                self._rendered, self._rendered_at = self._render(), time.monotonic()
            return self._rendered


def serve_metrics(
    address: tuple[str, int],
    render: Callable[[], bytes],
    *,
    tls: Callable[[], ssl.SSLContext],
    check: Callable[[str, str], HTTPStatus],
    seconds: float = _MAX_SECONDS,
) -> HttpsServer:
    """Serve the page at `/metrics` until the process ends."""
    page = MetricsPage(render)
    endpoint = Endpoint(
        method="GET",
        path=METRICS_PATH,
        answer=lambda _: (HTTPStatus.OK, page.read()),
        content_type=CONTENT_TYPE_LATEST,
    )
    server = HttpsServer(address, endpoint, tls=tls, check=check, seconds=seconds)
    server.start()
    return server
