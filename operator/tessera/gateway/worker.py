"""One process of the gateway that serves requests."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from typing_extensions import override

from tessera.adapters.run_forever import run_forever
from tessera.gateway.app import GatewayApp
from tessera.gateway.engine_connection import EngineSession
from tessera.gateway.journal import UsageJournal
from tessera.gateway.protocol import GatewayProtocol
from tessera.gateway.worker_link import SupervisedWorker

log = logging.getLogger("tessera")

_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2048
# An engine that sends nothing for so long has stalled: its replica is replaced after 120 s.
ENGINE_IDLE_SECONDS = 300.0
_CERTIFICATE_SECONDS = 10.0
# Objects between two collections of the youngest; Python's default is 700.
_GC_THRESHOLD = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How one worker serves."""

    host: str
    port: int
    link: Path
    """Socket of the supervisor."""
    tls_directory: Path | None = None
    """Folder with `tls.crt` and `tls.key`; HTTP without it."""
    journals: Path | None = None
    """Folder for what would be lost if the worker were killed; without it that is lost."""
    announce_seconds: float = 5
    drain_seconds: float = 300


class GatewayServer(uvicorn.Server):
    """Serves an application, and drains it before it ends.

    While it drains, `/readyz` answers 503 for `announce_seconds` and every response closes its
    connection; then nothing new is accepted, and streams have `drain_seconds` to end.
    """

    def __init__(
        self,
        app: GatewayApp,
        *,
        announce_seconds: float,
        drain_seconds: float,
        tls_directory: Path | None = None,
    ) -> None:
        certificate = tls_directory / "tls.crt" if tls_directory else None
        key = tls_directory / "tls.key" if tls_directory else None
        super().__init__(
            uvicorn.Config(
                app,
                http=GatewayProtocol,
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
        self._gateway = app
        self._announce_seconds = announce_seconds

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield

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
                if changed != used and self.config.ssl is not None:
                    # A key that does not fit would spoil a context that serves.
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
                    self.config.ssl.load_cert_chain(certificate, key)
                    used = changed
            except OSError as error:
                log.error("the certificate in %s cannot be used: %s", directory, error)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that several processes may bind; the kernel spreads connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def run(options: WorkerOptions) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    uvloop.run(_serve(options))


async def _serve(options: WorkerOptions) -> None:
    worker = SupervisedWorker(options.link, _open_journal(options.journals))
    engines = EngineSession(ENGINE_IDLE_SECONDS)
    app = GatewayApp(worker.admission, engines, worker.usage.add)
    app.can_record = lambda: worker.usage.has_room
    # A request leaves few cycles, and looking for them often took 5 % of the time.
    gc.set_threshold(_GC_THRESHOLD)
    worker.running, worker.awaiting = app.running, app.awaiting
    worker.partial_records = app.partial_records
    app.note_begun = worker.usage.note_begun
    server = GatewayServer(
        app,
        announce_seconds=options.announce_seconds,
        drain_seconds=options.drain_seconds,
        tls_directory=options.tls_directory,
    )
    draining: list[asyncio.Task[None]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(
            number, lambda: draining.append(asyncio.create_task(server.drain()))
        )
    background = [asyncio.create_task(worker.run())]
    if options.tls_directory is not None:
        renew = partial(server.renew_certificate, options.tls_directory)
        background.append(asyncio.create_task(run_forever("certificate", renew)))
    await server.serve(sockets=[listen(options.host, options.port)])
    await worker.flush()
    for task in background:
        task.cancel()
    await asyncio.wait(background)
    worker.usage.close()
    await engines.close()


def _open_journal(folder: Path | None) -> UsageJournal | None:
    if folder is None:
        return None
    try:
        return UsageJournal(folder)
    except OSError as error:
        log.error("usage is lost if this process is killed: no journal: %s", error)
        return None
