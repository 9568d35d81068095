"""A second API server of a world, whose view of etcd a test can hold back.

A proxy between it and etcd reads the frames of HTTP/2 and drops those of watch streams. Reads
and writes of etcd pass, so that the server works and its cache stays in the past: lists at
resource version 0 are answered from there, and watches bring nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from world.client import World
from world.slots import free_port

_PREFACE_BYTES = 24
_HEADER_BYTES = 9
_DATA, _HEADERS, _WINDOW_UPDATE = 0, 1, 8
_END_STREAM = 1


@dataclass(slots=True)
class EtcdProxy:
    """Between one API server and etcd."""

    etcd: tuple[str, int]
    holding: bool = False
    """Whether the events of all watches, open and new ones, are kept from the API server."""
    held_frames: int = 0
    """Frames of watches that were kept from it, until now."""
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def release(self) -> None:
        """Let events pass again: the connections break, and watches resume where they were."""
        self.holding = False
        for connection in self._connections:
            connection.cancel()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        etcd_reader, etcd_writer = await asyncio.open_connection(*self.etcd)
        ended: set[int] = set()
        directions = {
            asyncio.create_task(_copy_requests(reader, etcd_writer, ended)),
            asyncio.create_task(self._copy_responses(etcd_reader, etcd_writer, writer, ended)),
        }
        self._connections |= directions
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections -= directions
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            writer.close()
            etcd_writer.close()

    async def _copy_responses(
        self,
        etcd_reader: asyncio.StreamReader,
        etcd_writer: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
        ended: set[int],
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, _, stream, frame = await _read_frame(etcd_reader)
                # A request that has ended has one answer; that of a watch never ends.
                if kind == _DATA and stream not in ended and self.holding:
                    self.held_frames += 1
                    size = len(frame) - _HEADER_BYTES
                    # As if it had been received, or etcd would soon send no answers either.
                    etcd_writer.write(_window_update(0, size) + _window_update(stream, size))
                else:
                    writer.write(frame)
                    await writer.drain()


def _window_update(stream: int, size: int) -> bytes:
    """Return the frame that allows the peer to send as many bytes more."""
    if not size:
        return b""
    header = (4).to_bytes(3) + bytes([_WINDOW_UPDATE, 0]) + stream.to_bytes(4)
    return header + size.to_bytes(4)


async def _copy_requests(
    reader: asyncio.StreamReader, etcd: asyncio.StreamWriter, ended: set[int]
) -> None:
    """Copy the requests, and note the streams whose request has ended."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        etcd.write(await reader.readexactly(_PREFACE_BYTES))
        while True:
            kind, flags, stream, frame = await _read_frame(reader)
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                ended.add(stream)
            etcd.write(frame)
            await etcd.drain()


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    """Return the type, flags, stream and bytes of a frame."""
    header = await reader.readexactly(_HEADER_BYTES)
    payload = await reader.readexactly(int.from_bytes(header[:3]))
    return header[3], header[4], int.from_bytes(header[5:]) & (2**31 - 1), header + payload


@contextlib.asynccontextmanager
async def lagging_api_server(world: World) -> AsyncIterator[tuple[EtcdProxy, Path]]:
    """Start one beside that of the world; yield its proxy, and a kubeconfig that leads to it."""
    arguments = _arguments_of_api_server(world)
    options = dict(argument.split("=", 1) for argument in arguments[1:])
    etcd = urlsplit(options["--etcd-servers"])
    address = options["--bind-address"]
    assert etcd.hostname is not None
    assert etcd.port is not None
    proxy = EtcdProxy((etcd.hostname, etcd.port))
    port, etcd_port = free_port(address), free_port(address)
    options |= {
        "--etcd-servers": f"http://{address}:{etcd_port}",
        "--secure-port": str(port),
        "--audit-log-path": str(world.folder / "logs" / "audit-lagging.log"),
    }
    server = await asyncio.start_server(proxy.handle, address, etcd_port)
    log = world.folder / "logs" / "kube-apiserver-lagging.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            arguments[0],
            *(f"{name}={value}" for name, value in options.items()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield proxy, _kubeconfig(world.folder, f"https://{address}:{port}")
    finally:
        process.kill()
        await process.wait()
        server.close()
        proxy.release()


def _arguments_of_api_server(world: World) -> list[str]:
    """Return the command line of the world's API server, from the process itself."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().decode().rstrip("\0").split("\0")
            is_api_server = Path(arguments[0]).name == "kube-apiserver"
            if is_api_server and f"--audit-log-path={world.audit_log}" in arguments:
                return arguments
    raise AssertionError("the world has an API server")


def _kubeconfig(folder: Path, server: str) -> Path:
    config = yaml.safe_load((folder / "kubeconfig").read_text())
    config["clusters"][0]["cluster"]["server"] = server
    path = folder / f"lagging-{urlsplit(server).port}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
