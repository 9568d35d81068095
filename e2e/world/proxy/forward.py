"""One TCP connection passed on to one of several backends, with little work per byte."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from typing_extensions import override

Address = tuple[str, int]
# The backends to try, the preferred one first.
Choose = Callable[[], list[Address]]

CONNECT_SECONDS = 2.0


class _Half(asyncio.Protocol):
    """One end: what it receives is written to the other end."""

    transport: asyncio.Transport
    other: "_Half | None" = None
    ended = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    @override
    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)

    @override
    def eof_received(self) -> bool:
        """A closed direction is closed at the other end too; the opposite one stays open."""
        self.ended = True
        other = self.other
        if other is None or other.transport.is_closing():
            return False
        other.transport.write_eof()
        return not other.ended

    @override
    def pause_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    @override
    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


class _Client(_Half):
    """The end that came to the Service; it is not read before a backend has answered."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._connecting: asyncio.Task[None] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        self._connecting = asyncio.create_task(self._connect())

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        super().connection_lost(exc)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for host, port in self._choose():
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    _, backend = await loop.create_connection(_Half, host, port)
            except (OSError, TimeoutError):
                continue
            backend.other, self.other = self, backend
            if self.transport.is_closing():
                backend.transport.close()
            else:
                self.transport.resume_reading()
            return
        self._reset()

    def _reset(self) -> None:
        """As near as a listener comes to a Service without endpoints, which refuses."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


async def listen(address: Address, choose: Choose) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Client(choose), *address, backlog=512)
