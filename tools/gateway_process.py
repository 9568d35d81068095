"""A gateway without a cluster, for tests and benchmarks: its directory comes from a file.

`python gateway_process.py PORT FOLDER [ANNOUNCE_SECONDS [DRAIN_SECONDS]]` serves what
`FOLDER/directory` describes, which is read again at SIGHUP, or what an API server has whose address
is in `FOLDER/api`. Clients come by TLS where there is `FOLDER/tls`, and providers on loopback are
asked where `FOLDER/provider.crt` is their authority. Everything else is as in a pod without a
database.
"""

import asyncio
import contextlib
import logging
import os
import pickle
import resource
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import uvloop

from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import Connection
from tessera.api.rate_limits import RateLimitsSpec
from tessera.domain.gateway.directory import Directory
from tessera.domain.observed.providers import ProviderSecret
from tessera.gateway.fleet.polling import EnginePoller, read_page
from tessera.gateway.fleet.watching import FleetWatch
from tessera.gateway.gateway import Gateway, GatewayParts
from tessera.gateway.http.connections import Connections, raise_descriptor_limit
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.identify.authentication import Authenticator
from tessera.gateway.identify.token_verifier import TokenVerifier
from tessera.gateway.main import ENGINE_IDLE_SECONDS, serve, stop_event
from tessera.gateway.outside.client import OutsideClient
from tessera.gateway.outside.keys import ProviderKeys
from tessera.gateway.server import GatewayServer, listen
from tessera.gateway.settle.settlement import GATEWAY_NAME
from tessera.gateway.usage.logs import BackgroundStream, access_line
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import Recording
from world.keys import Authority
from world.slots import free_port

KEYS_NAMESPACE = "tessera"


def write_directory(folder: Path, directory: Directory) -> None:
    """Write the directory of a gateway in a folder."""
    (folder / "directory").write_bytes(pickle.dumps(directory))


def write_certificate(folder: Path) -> Path:
    """Write a certificate as a gateway has it, by an authority `keys/ca.crt`; return its folder."""
    pair = Authority(folder / "keys").server("gateway", "127.0.0.1")
    (directory := folder / "tls").mkdir()
    pair.certificate.rename(directory / "tls.crt")
    pair.key.rename(directory / "tls.key")
    return directory


def command(port: int, folder: Path, *options: float) -> Sequence[str]:
    """Return the command that runs a gateway."""
    return (sys.executable, str(Path(__file__)), str(port), str(folder), *map(str, options))


@asynccontextmanager
async def running(
    folder: Path,
    directory: Directory | str,
    *,
    descriptors: int | None = None,
    tls: bool = False,
) -> AsyncIterator[tuple[str, int]]:
    """Run a gateway, with so many descriptors if given; yield its address and its process.

    Its directory may be the address of an API server.
    """
    if tls:
        write_certificate(folder)
    if isinstance(directory, str):
        (folder / "api").write_text(directory, encoding="ascii")
    else:
        write_directory(folder, directory)
    address = f"127.0.0.1:{(port := free_port())}"
    process = await asyncio.create_subprocess_exec(
        *command(port, folder),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: _limit(descriptors) if descriptors else None,
    )
    try:
        await answers(address, "/readyz", tls=tls)
        yield address, process.pid
    finally:
        process.kill()
        await process.wait()


def _limit(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


def any_certificate() -> ssl.SSLContext:
    """Return the context of a client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def answers(address: str, path: str, *, tls: bool = False) -> None:
    """Wait until a server answers 200."""
    context = any_certificate() if tls else None
    host, _, port = address.partition(":")
    async with asyncio.timeout(180):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
                writer.write(
                    f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
                )
                status = (await reader.readline()).split()[1:2]
                writer.close()
            except OSError:
                status = []
            if status == [b"200"]:
                return
            await asyncio.sleep(0.1)


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
            observers=[lambda record: output.write(access_line(record))],
            retention=timedelta(days=1),
            name=GATEWAY_NAME,
        )
        stack.push_async_callback(recording.close)
        await recording.recover()
        outside = _provider_client(folder / "provider.crt")
        stack.push_async_callback(outside.close)
        watch = _watch(folder / "api", changed := asyncio.Event(), stack)
        gateway = Gateway(
            GatewayParts(
                name=GATEWAY_NAME,
                observe=watch.observations if watch else lambda: None,
                changed=changed,
                default_limits=RateLimitsSpec(),
                poller=EnginePoller(partial(read_page, engines)),
                identifier=Authenticator(TokenVerifier(None, {}).verify),
                borrow=recording.lender.borrow,
                meet=recording.store.meet,
                recorder=recording,
                engines=engines,
                outside=outside,
            )
        )

        def read_directory() -> None:
            content = (folder / "directory").read_bytes()
            gateway.publish(pickle.loads(content))  # noqa: S301 - a test wrote it

        if watch is None:
            read_directory()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, read_directory)
        tls = folder / "tls"
        server = GatewayServer(
            gateway.app,
            announce_seconds=announce_seconds,
            drain_seconds=drain_seconds,
            clients=Connections(raise_descriptor_limit()),
            tls_directory=tls if tls.exists() else None,
        )
        parts = {"usage": recording.run, "log": output.run, "gateway": gateway.run}
        if watch is not None:
            parts["watch"] = watch.run
        await serve({server: listen("127.0.0.1", port)}, parts, stop)


def _provider_client(authority: Path) -> OutsideClient:
    """Return a client of providers on loopback whose certificates an authority signed."""
    if not authority.exists():
        return OutsideClient()
    keys = ProviderKeys()
    keys.update([ProviderSecret(name="acme", keys={"key": "sk-provider"})])
    tls = ssl.create_default_context(cafile=str(authority))
    return OutsideClient(keys, [ip_network("127.0.0.0/8")], tls=tls)


def _watch(
    api: Path, changed: asyncio.Event, stack: contextlib.AsyncExitStack
) -> FleetWatch | None:
    if not api.exists():
        return None
    connection = Connection()
    connection.host = f"http://{api.read_text(encoding='ascii')}"
    cluster = KubeCluster(connection)
    stack.push_async_callback(cluster.close)
    return FleetWatch(cluster, cluster, changed.set, lambda _: None, KEYS_NAMESPACE)


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    port, folder, *times = sys.argv[1:]
    announce_seconds, drain_seconds = [*map(float, times), *(0.0, 300.0)[len(times) :]]
    uvloop.run(_run(int(port), Path(folder), announce_seconds, drain_seconds))


if __name__ == "__main__":
    main()
