"""The metrics endpoint holds no more than its limits, however many connect."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection

from tessera.controller.metrics import MAX_CONNECTIONS, MetricsServer, serve_metrics

DEADLINE_SECONDS = 10


@contextmanager
def a_server(seconds: float = 60) -> Iterator[tuple[MetricsServer, list[int]]]:
    """Yield a server, and a list that is as long as its page was rendered often."""
    rendered: list[int] = []

    def page() -> bytes:
        rendered.append(1)
        return b"up 1\n"

    server = serve_metrics("127.0.0.1", 0, page, seconds)
    try:
        yield server, rendered
    finally:
        server.shutdown()
        server.server_close()


def get(server: MetricsServer, path: str = "/metrics") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=DEADLINE_SECONDS)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


def half_a_request(server: MetricsServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.server_port), timeout=DEADLINE_SECONDS)
    client.sendall(b"GET /metrics HT")
    return client


def test_only_the_metrics_are_served() -> None:
    with a_server() as (server, _):
        assert get(server) == (200, b"up 1\n")
        assert get(server, "/metrics?name[]=up")[0] == 200
        assert get(server, "/")[0] == 404


def test_many_scrapes_cost_no_more_than_one() -> None:
    with a_server() as (server, rendered):
        for _ in range(20):
            assert get(server)[0] == 200
    assert len(rendered) < 20


def test_connections_that_say_nothing_hold_few_threads_and_keep_nobody_out() -> None:
    before = threading.active_count()
    with a_server() as (server, _), ExitStack() as clients:
        for _ in range(150):
            clients.enter_context(half_a_request(server))
        assert get(server) == (200, b"up 1\n")
        server.shutdown()
        assert threading.active_count() - before < 2 * MAX_CONNECTIONS


def test_a_request_that_does_not_end_is_cut() -> None:
    with a_server(seconds=0.2) as (server, _), half_a_request(server) as client:
        assert client.recv(1) == b""
