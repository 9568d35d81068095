"""How much of clients without an accepted key is read in each turn of the event loop.

The event loop reads all that has come of all connections before anybody else has a turn: of
thousands that send at once for a second, and all of that into memory. Here the system keeps what
came of these clients until it is their turn.
"""

import asyncio
import contextlib
import fcntl
import select
import sys
import termios
from collections import OrderedDict
from typing import Protocol

from uvicorn.server import ServerState

from tessera.gateway.http.connections import SMALL_BYTES, Connections

# To parse 64 KiB of headers takes 0.5 ms. A few bytes take as long as 4 KiB do.
TURN_BYTES = 2**16
# It is looked of how many of those that have sent something how much came: 2 us for each.
_LOOKS = 64
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT


class UnreadConnection(Protocol):
    """A connection that is not read until its turn."""

    address: str
    descriptor: int

    def read_in_turn(self) -> None:
        """Read what has come."""
        ...


class _Lane:
    """Those of which something came, by address: the first in front, and the addresses in turn."""

    def __init__(self) -> None:
        self._readers: OrderedDict[str, OrderedDict[UnreadConnection, int]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._readers)

    def add(self, reader: UnreadConnection, size: int) -> None:
        self._readers.setdefault(reader.address, OrderedDict())[reader] = size

    def remove(self, reader: UnreadConnection) -> None:
        readers = self._readers.get(reader.address)
        if readers is not None and readers.pop(reader, None) is not None and not readers:
            del self._readers[reader.address]

    def serve(self) -> None:
        """Let some read, the first of each address before the second."""
        left = TURN_BYTES
        while self._readers and left > 0:
            address, readers = self._readers.popitem(last=False)
            reader, size = readers.popitem(last=False)
            if readers:
                self._readers[address] = readers
            # More may have come since then.
            left -= max(size, _waiting_bytes(reader.descriptor), SMALL_BYTES)
            reader.read_in_turn()


class ReadingTurns:
    """Which connections without an accepted key are read in a turn of the event loop.

    A few bytes, such as a whole request, do not wait behind much.
    """

    def __init__(self) -> None:
        self._readers: dict[int, UnreadConnection] = {}
        self._lanes = (_Lane(), _Lane())
        self._has_next = False
        self._epoll = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def close(self) -> None:
        """Let no connection read any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def wait(self, reader: UnreadConnection) -> None:
        """Let a connection read once in its turn, after something has come or it has ended."""
        if self._epoll.closed or reader.descriptor < 0:
            return
        self._readers[reader.descriptor] = reader
        try:
            self._epoll.modify(reader.descriptor, _EVENTS)
        except FileNotFoundError:
            self._epoll.register(reader.descriptor, _EVENTS)

    def remove(self, reader: UnreadConnection) -> None:
        """Forget a connection that ended, or reads by itself."""
        # Another one may have its descriptor by now.
        if self._readers.get(reader.descriptor) is reader:
            del self._readers[reader.descriptor]
            for lane in self._lanes:
                lane.remove(reader)

    def _look(self) -> None:
        for descriptor, _ in self._epoll.poll(0, _LOOKS):
            reader = self._readers.get(descriptor)
            if reader is not None:
                size = _waiting_bytes(descriptor)
                self._lanes[size > SMALL_BYTES].add(reader, size)
        self._go_on()

    def _go_on(self) -> None:
        if any(self._lanes) and not self._has_next:
            self._has_next = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        self._has_next = False
        for lane in self._lanes:
            lane.serve()
        self._go_on()


class GatewayServerState(ServerState):
    """What the connections of a server share."""

    turns: ReadingTurns | None = None
    """None until it listens."""

    def __init__(self, clients: Connections) -> None:
        super().__init__()
        self.clients = clients


def _waiting_bytes(descriptor: int) -> int:
    """Return how many bytes the system has of a connection."""
    with contextlib.suppress(OSError):
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    return 0
