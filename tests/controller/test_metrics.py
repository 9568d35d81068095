"""The metrics endpoint holds no more than its limits, however many connect."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tessera.adapters import certificates
from tessera.adapters.clock import now
from tessera.controller.certificates import certificate_files, server_context, write_pair
from tessera.controller.https_server import MAX_CONNECTIONS, HttpsServer, _Connection
from tessera.controller.metrics import MetricsPage, serve_metrics

DEADLINE_SECONDS = 60
READER = "reader"


@cache
def a_context(host: str) -> ssl.SSLContext:
    with TemporaryDirectory() as folder:
        files = certificate_files(Path(folder))
        write_pair(files, certificates.issue(host, now(), timedelta(days=1)).pair)
        return server_context(files)


def check(token: str, _: str) -> HTTPStatus:
    return HTTPStatus.OK if token == READER else HTTPStatus.FORBIDDEN


@contextmanager
def a_server(seconds: float = 60) -> Iterator[tuple[HttpsServer, list[int]]]:
    """Yield a server, and a list that is as long as its page was rendered often."""
    rendered: list[int] = []

    def page() -> bytes:
        rendered.append(1)
        return b"up 1\n"

    server = serve_metrics(
        ("127.0.0.1", 0), page, tls=lambda: a_context("first"), check=check, seconds=seconds
    )
    try:
        yield server, rendered
    finally:
        server.shutdown()
        server.server_close()


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def get(
    server: HttpsServer, path: str = "/metrics", authorization: str = f"Bearer {READER}"
) -> tuple[int, bytes]:
    connection = HTTPSConnection(
        "127.0.0.1", server.server_port, timeout=DEADLINE_SECONDS, context=client_context()
    )
    headers = {"Authorization": authorization} if authorization else {}
    connection.request("GET", path, headers=headers)
    with connection.getresponse() as response:
        return response.status, response.read()


def connected(server: HttpsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=DEADLINE_SECONDS)


def half_a_request(server: HttpsServer) -> socket.socket:
    client = client_context().wrap_socket(connected(server))
    client.sendall(b"GET /metrics HT")
    return client


def test_only_the_metrics_are_served() -> None:
    with a_server() as (server, _):
        assert get(server) == (200, b"up 1\n")
        assert get(server, "/metrics?name[]=up")[0] == 200
        assert get(server, "/")[0] == 404


def test_nobody_reads_without_the_token_of_a_reader() -> None:
    with a_server() as (server, rendered):
        assert get(server, authorization="") == (401, b"")
        assert get(server, authorization="Basic cmVhZGVy") == (401, b"")
        assert get(server, authorization="Bearer other") == (403, b"")
        assert rendered == []
        assert get(server, authorization="bearer reader") == (200, b"up 1\n")


def test_nothing_is_served_without_tls() -> None:
    with a_server() as (server, rendered), connected(server) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\nAuthorization: Bearer reader\r\n\r\n")
        assert b"HTTP" not in client.recv(1024)
        assert rendered == []


def test_a_renewed_certificate_counts_for_the_next_connection() -> None:
    contexts = [a_context("first"), a_context("second")]
    server = serve_metrics(("127.0.0.1", 0), bytes, tls=lambda: contexts[0], check=check)

    def presented() -> bytes | None:
        with client_context().wrap_socket(connected(server)) as client:
            return client.getpeercert(binary_form=True)

    try:
        first = presented()
        assert presented() == first
        del contexts[0]
        assert presented() != first
    finally:
        server.shutdown()
        server.server_close()


def test_of_a_request_without_end_few_bytes_are_read() -> None:
    with a_server() as (server, rendered), half_a_request(server) as client:
        header = b"X-Filler: %b\r\n" % (b"x" * 1024)
        client.sendall(b"TP/1.0\r\n" + header * 20 + b"Authorization: Bearer reader\r\n\r\n")
        assert b" 401 " in client.recv(1024)
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            client.sendall(header * 64 * 1024)
        assert rendered == []


def test_after_a_response_the_server_waits_for_the_end_of_the_client() -> None:
    with a_server() as (server, _), half_a_request(server) as client:
        client.sendall(b"TP/1.0\r\n\r\n")
        assert b" 401 " in client.recv(1024)
        # Below TLS, which ends with the server's half of the connection.
        while socket.socket.recv(client, 1024):
            pass
        for _ in range(10):
            socket.socket.sendall(client, b"x" * 1024)


def test_many_scrapes_cost_no_more_than_one() -> None:
    rendered: list[int] = []

    def render() -> bytes:
        rendered.append(1)
        return b"up 1\n"

    page = MetricsPage(render)
    assert {page.read() for _ in range(1000)} == {b"up 1\n"}
    assert len(rendered) < 1000


def test_connections_that_say_nothing_hold_few_threads_and_keep_nobody_out() -> None:
    before = threading.active_count()
    with a_server() as (server, _), ExitStack() as clients:
        for _ in range(150):
            clients.enter_context(connected(server))
            clients.enter_context(half_a_request(server))
        assert get(server) == (200, b"up 1\n")
        server.shutdown()
        deadline = time.monotonic() + DEADLINE_SECONDS
        # The threads of connections that were cut end when they get the processor.
        while threading.active_count() - before >= 2 * MAX_CONNECTIONS:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)


def test_a_request_that_does_not_end_is_cut() -> None:
    # Enough for the handshake on a busy machine.
    with a_server(seconds=3) as (server, _), half_a_request(server) as client:
        assert client.recv(1) == b""


def test_a_client_that_makes_no_handshake_is_cut() -> None:
    with a_server(seconds=0.2) as (server, _), connected(server) as client:
        assert client.recv(1) == b""


def connected_from(server: HttpsServer, address: str) -> socket.socket:
    return socket.create_connection(
        ("127.0.0.1", server.server_port), DEADLINE_SECONDS, source_address=(address, 0)
    )


def test_connections_of_one_address_displace_neither_others_nor_readers() -> None:
    with a_server() as (server, _), ExitStack() as stack:
        reader = HTTPSConnection(
            "127.0.0.1", server.server_port, timeout=DEADLINE_SECONDS, context=client_context()
        )
        reader.connect()
        honest = stack.enter_context(
            client_context().wrap_socket(connected_from(server, "127.0.0.3"))
        )
        for _ in range(3 * MAX_CONNECTIONS):
            stack.enter_context(connected_from(server, "127.0.0.2"))
        request = b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer reader\r\n\r\n"
        honest.sendall(request)
        assert b" 200 " in honest.recv(1024)
        reader.request("GET", "/metrics", headers={"Authorization": f"Bearer {READER}"})
        with reader.getresponse() as response:
            assert response.status == 200


def test_a_connection_whose_token_was_accepted_leaves_last() -> None:
    with a_server() as (server, _):
        stranger, reader = socket.socketpair()
        with stranger, reader:
            server._open[reader] = _Connection("127.0.0.1", 0.0)
            assert server.check(reader, READER, "127.0.0.1") is HTTPStatus.OK
            server._open[stranger] = _Connection("127.0.0.2", 1.0)
            assert server._first_to_leave() is stranger
            del server._open[stranger]
            assert server._first_to_leave() is reader
            del server._open[reader]
