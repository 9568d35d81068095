"""The driver across processes: a server in the process with the GPUs, and its client in others.

A process that finds `fakegpu/shim` first on its PYTHONPATH, and e2e somewhere, gets this by
`import pynvml`; FAKE_NVML_SOCKET names the server's socket. One line of JSON each way.
"""

import asyncio
import json
import socket
import threading
from pathlib import Path

from fakegpu.gpu_driver import Code, GpuDriver, RefusedError
from fakegpu.nvml_session import NvmlSession, Plain

SHIM = Path(__file__).parent / "shim"
SOCKET = "FAKE_NVML_SOCKET"


async def serve(driver: GpuDriver, path: Path) -> asyncio.Server:
    """Listening when it returns; every connection is a process with its own handles."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = NvmlSession(driver)
        try:
            while line := await reader.readline():
                writer.write(_reply(session, line))
                await writer.drain()
        except ConnectionError:
            pass  # the process is gone
        finally:
            writer.close()

    return await asyncio.start_unix_server(connected, path)


def _reply(session: NvmlSession, line: bytes) -> bytes:
    name, *arguments = json.loads(line)
    try:
        reply = {"result": session.call(name, *arguments)}
    except RefusedError as refused:
        reply = {"code": refused.code}
    return json.dumps(reply).encode() + b"\n"


class NvmlClient:
    """Calls a server; GPU_IS_LOST when it does not answer."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: socket.SocketIO | None = None

    def call(self, name: str, *arguments: Plain) -> Plain:
        with self._lock:
            try:
                stream = self._stream()
                stream.write(json.dumps([name, *arguments]).encode() + b"\n")
                stream.flush()
                line = stream.readline()
            except OSError as error:
                self._file = None
                raise RefusedError(Code.GPU_IS_LOST) from error
            if not line:
                self._file = None
                raise RefusedError(Code.GPU_IS_LOST)
        reply = json.loads(line)
        if "code" in reply:
            raise RefusedError(reply["code"])
        result: Plain = reply["result"]
        return result

    def _stream(self) -> "socket.SocketIO":
        if self._file is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self._path)
            self._file = connection.makefile("rwb", buffering=0)
            connection.close()  # the file keeps it open
        return self._file
