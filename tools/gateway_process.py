"""A gateway without a cluster, for tests and benchmarks: its directory comes from a file.

`python gateway_process.py PORT FOLDER [ANNOUNCE_SECONDS [DRAIN_SECONDS]]` serves what
`FOLDER/directory` describes, which is read again at SIGHUP. Everything else is as in a pod without
a database.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from tessera.domain.gateway.directory import Directory, RateLimits
from tessera.gateway.fleet.polling import EnginePoller, read_page
from tessera.gateway.gateway import Gateway, GatewayParts
from tessera.gateway.http.connections import Connections, raise_descriptor_limit
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.main import ENGINE_IDLE_SECONDS, serve, stop_event
from tessera.gateway.requests.authentication import Authenticator
from tessera.gateway.requests.token_verifier import TokenVerifier
from tessera.gateway.server import GatewayServer, listen
from tessera.gateway.usage.logs import AccessLog, BackgroundStream
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import Recording


def write_directory(folder: Path, directory: Directory) -> None:
    """Write the directory of a gateway in a folder."""
    (folder / "directory").write_bytes(msgspec.msgpack.encode(directory))


def command(port: int, folder: Path, *options: float) -> Sequence[str]:
    """Return the command that runs a gateway."""
    return (sys.executable, str(Path(__file__)), str(port), str(folder), *map(str, options))


async def _run(port: int, folder: Path, announce_seconds: float, drain_seconds: float) -> None:
    stop = stop_event()
    async with contextlib.AsyncExitStack() as stack:
        engines = EngineSession(ENGINE_IDLE_SECONDS)
        stack.push_async_callback(engines.close)
        output = BackgroundStream(sys.stdout.buffer)
        recording = await Recording.open(
            None,
            folder,
            GatewayMetrics(),
            observers=[AccessLog(output).write],
            retention=timedelta(days=1),
        )
        stack.push_async_callback(recording.close)
        await recording.recover()
        gateway = Gateway(
            GatewayParts(
                name="gateway",
                observe=lambda: None,
                changed=asyncio.Event(),
                default_limits=RateLimits(),
                poller=EnginePoller(partial(read_page, engines)),
                identifier=Authenticator(TokenVerifier(None, {}).verify),
                lender=recording.lender,
                recorder=recording,
                engines=engines,
            )
        )

        def read_directory() -> None:
            content = (folder / "directory").read_bytes()
            gateway.publish(msgspec.msgpack.decode(content, type=Directory))

        read_directory()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, read_directory)
        server = GatewayServer(
            gateway.app,
            announce_seconds=announce_seconds,
            drain_seconds=drain_seconds,
            clients=Connections(raise_descriptor_limit()),
        )
        parts = {"usage": recording.run, "log": output.run, "gateway": gateway.run}
        await serve(server, listen("127.0.0.1", port), parts, stop)


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    port, folder, *times = sys.argv[1:]
    announce_seconds, drain_seconds = [*map(float, times), *(0.0, 300.0)[len(times) :]]
    uvloop.run(_run(int(port), Path(folder), announce_seconds, drain_seconds))


if __name__ == "__main__":
    main()
