"""The server of the public API."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import uvicorn
from typing_extensions import override

from tessera.gateway.http.connections import Connections
from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.http.responses import Message, Receive, Send
from tessera.gateway.http.tls import Handshakes, TlsConnection
from tessera.gateway.http.turns import GatewayServerState, ReadingTurns

log = logging.getLogger("tessera")

_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2048
# The event loop takes one connection of a listening socket in each of its turns: so many of as many
# copies, or a new client would wait for as many turns as others are in front of it.
_ACCEPTS = 8
_CERTIFICATE_SECONDS = 10.0


class Application(Protocol):
    """What a port of the gateway answers with."""

    draining: bool
    """Every response closes its connection."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""


class GatewayServer(uvicorn.Server):
    """Serves an application, and drains it before it ends.

    While it drains, `/readyz` answers 503 for `announce_seconds` and every response closes its
    connection; then nothing new is accepted, and streams have `drain_seconds` to end.
    """

    def __init__(
        self,
        app: Application,
        *,
        announce_seconds: float,
        drain_seconds: float,
        clients: Connections | None = None,
        tls_directory: Path | None = None,
    ) -> None:
        clients = Connections() if clients is None else clients
        self.handshakes = Handshakes(clients)
        certificate = tls_directory / "tls.crt" if tls_directory else None
        key = tls_directory / "tls.key" if tls_directory else None
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(TlsConnection, self.handshakes) if certificate else GatewayProtocol,  # type: ignore[arg-type] # makes them
                loop="none",
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(drain_seconds),
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
        self.server_state: GatewayServerState = GatewayServerState(clients)
        self._gateway = app
        self._announce_seconds = announce_seconds

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; handshakes are made by the connections themselves, which count before them."""
        self.handshakes.context, self.config.ssl = self.config.ssl, None
        self.server_state.turns = ReadingTurns()
        await super().startup([each.dup() for each in sockets or () for _ in range(_ACCEPTS)])

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all connections."""
        await super().shutdown(sockets)
        if self.server_state.turns is not None:
            self.server_state.turns.close()

    async def drain(self) -> None:
        """Begin to drain; `serve` returns when it is done."""
        self._gateway.draining = True
        await asyncio.sleep(self._announce_seconds)
        self.should_exit = True

    async def renew_certificate(
        self, directory: Path, every_seconds: float = _CERTIFICATE_SECONDS
    ) -> None:
        """Use the certificate for new connections whenever its file changes, until cancelled.

        One that cannot be used is logged, and the last one stays.
        """
        certificate, key = directory / "tls.crt", directory / "tls.key"
        used = certificate.stat().st_mtime_ns
        while True:
            await asyncio.sleep(every_seconds)
            try:
                changed = certificate.stat().st_mtime_ns
                if changed != used and self.handshakes.context is not None:
                    # A key that does not fit would spoil a context that serves.
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
                    self.handshakes.context.load_cert_chain(certificate, key)
                    used = changed
            except OSError as error:
                log.error("the certificate in %s cannot be used: %s", directory, error)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket for connections of clients."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener
