"""An event loop whose time jumps to what happens next, with connections that stay in memory."""

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import override

from tessera.adapters.clock import Clock

# Of the first moment: both are no multiple of anything.
_MONOTONIC_NS, _UNIX_NS = 5_000_123_457_000, 1_795_353_600_000_250_000
# From one end of a connection to the other. It is longer than a turn of the loop, so that what
# happens at one end does not depend on how many turns the other one takes.
LATENCY_SECONDS = 0.0004
# What the other end's machine takes without being read.
_WINDOW_BYTES = 2**17
# As asyncio and uvloop have them.
_HIGH_BYTES, _LOW_BYTES = 2**16, 2**14
# As one read of asyncio returns it.
_READ_BYTES = 2**18

# Of the loop, at one moment.
_MAX_TURNS = 100_000

Address = tuple[str, int]


class StalledError(Exception):
    """Nothing is left that could happen, or what happens takes no time and never ends."""


class _JumpingSelector(selectors.SelectSelector):
    """Lets the time of its loop pass instead of waiting."""

    def __init__(self, loop: "VirtualLoop") -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    @override
    def select(self, timeout: float | None = None) -> list[Any]:
        self._turns += 1
        if timeout is None or self._turns > _MAX_TURNS:
            raise StalledError
        if timeout > 0:
            self._loop.passed_ns += max(1, round(timeout * 1e9))
            self._turns = 0
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in a time of its own, in which nobody can be reached but `servers`."""

    def __init__(self) -> None:
        self.passed_ns = 0
        """Since it began."""
        self.servers: dict[Address, Callable[[], Peer | None]] = {}
        """They return the other end of a new connection, or None to leave the caller waiting; they
        may raise OSError."""
        super().__init__(_JumpingSelector(self))

    @override
    def time(self) -> float:
        return (_MONOTONIC_NS + self.passed_ns) / 1e9

    @property
    def micros(self) -> int:
        """Return the microseconds since it began."""
        return self.passed_ns // 1000

    @property
    def clock(self) -> Clock:
        """Return the clock of this loop, in which computing takes no time."""
        began = datetime.fromtimestamp(_UNIX_NS // 10**9, UTC)
        return Clock(
            utc=lambda: began + timedelta(microseconds=self.micros),
            time_ns=lambda: _UNIX_NS + self.passed_ns,
            monotonic=self.time,
            monotonic_ns=lambda: _MONOTONIC_NS + self.passed_ns,
            thread_time=lambda: 0.0,
        )

    @override
    async def create_connection(  # type: ignore[override] # nothing else is used of it
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        await asyncio.sleep(2 * LATENCY_SECONDS)
        peer = self.servers[host, port]()
        if peer is None:
            await asyncio.Event().wait()
        assert peer is not None
        protocol = protocol_factory()
        return connect(self, protocol, peer, {"socket": _NoSocket()}), protocol


def connect(
    loop: VirtualLoop, protocol: asyncio.Protocol, peer: "Peer", extra: Mapping[str, Any]
) -> "MemoryTransport":
    """Connect a protocol with the other end of its connection."""
    transport = MemoryTransport(loop, protocol, peer, extra)
    peer.transport = transport
    protocol.connection_made(transport)
    return transport


class _NoSocket:
    def setsockopt(self, *_: object) -> None:
        """Take what is set of a real one."""


class Peer:
    """The end of a connection that a test plays."""

    transport: "MemoryTransport"

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.reads = True
        """Everything is read as it comes; else only what `read` is called for."""
        self.unread = bytearray()
        """What came and was not read."""
        self.on_change = asyncio.Event()
        """Set whenever something comes."""
        self._is_gone = False

    def received(self, data: bytes) -> None:
        """Take what is read."""
        raise NotImplementedError

    def ended(self, dropped_bytes: int) -> None:
        """Hear that the connection was closed, and how much of what was written is lost."""
        raise NotImplementedError

    def half_ended(self) -> None:
        """Hear that nothing more is written."""

    def deliver(self, data: bytes) -> None:
        """Take what comes, which waits until it is read; nobody takes it after the end."""
        if self._is_gone:
            self.reset()
            return
        self.unread += data
        if self.reads:
            self.read(len(self.unread))

    def read(self, size: int) -> None:
        """Read at most so much of what waits."""
        data = bytes(self.unread[:size])
        del self.unread[:size]
        if data:
            self.received(data)
            self.on_change.set()
            self.loop.call_later(LATENCY_SECONDS, self.transport.was_read, len(data))

    async def send(self, data: bytes) -> None:
        """Send, and wait until the other end's machine took it."""
        for start in range(0, len(data), _READ_BYTES):
            self.transport.arrive(data[start : start + _READ_BYTES])
            await self.transport.taken()

    def finish(self) -> None:
        """Close this end; what it did not read breaks the connection off, as TCP has it."""
        self._is_gone = True
        self.transport.arrive(None if self.unread else b"")

    def reset(self) -> None:
        """Break the connection off."""
        self._is_gone = True
        self.transport.arrive(None)


class MemoryTransport(asyncio.Transport):
    """The product's end of a connection whose other end is played."""

    def __init__(
        self,
        loop: VirtualLoop,
        protocol: asyncio.Protocol,
        peer: Peer,
        extra: Mapping[str, Any],
    ) -> None:
        super().__init__(dict(extra))
        self._loop, self._protocol, self._peer = loop, protocol, peer
        self._high, self._low = _HIGH_BYTES, _LOW_BYTES
        self._buffer = bytearray()
        self._unread_bytes = 0
        self._is_closing = self._is_lost = self._is_paused = False
        self._has_eof = self._sent_eof = False
        self._reads = True
        # On their way to the protocol, and come while it does not read. Empty bytes are the end of
        # the peer's writing, None is a reset.
        self._arriving: deque[bytes | None] = deque()
        self._waiting: deque[bytes | None] = deque()
        self._outgoing: deque[Callable[[], None]] = deque()
        self._has_read = asyncio.Event()

    # What the product calls.

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_closing and not self._has_eof:
            self._buffer += data
            self._flush()

    @override
    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    @override
    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    @override
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = _HIGH_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    @override
    def is_closing(self) -> bool:
        return self._is_closing

    @override
    def can_write_eof(self) -> bool:
        return True

    @override
    def write_eof(self) -> None:
        if not (self._is_closing or self._has_eof):
            self._has_eof = True
            self._flush()

    @override
    def pause_reading(self) -> None:
        self._reads = False

    @override
    def resume_reading(self) -> None:
        if not (self._reads or self._is_closing):
            self._reads = True
            self._loop.call_soon(self._read)

    @override
    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._flush()

    @override
    def abort(self) -> None:
        if not self._is_lost:
            self._is_closing = True
            dropped, self._buffer = len(self._buffer), bytearray()
            self._lose(None, dropped)

    # What the peer calls.

    async def taken(self) -> None:
        """Wait until the product's machine has room for what comes."""
        while sum(len(data or b"") for data in self._waiting) > _WINDOW_BYTES:
            self._has_read.clear()
            await self._has_read.wait()

    def arrive(self, data: bytes | None) -> None:
        """Let something come after the latency."""
        self._arriving.append(data)
        self._loop.call_later(LATENCY_SECONDS, self._arrived)

    def was_read(self, size: int) -> None:
        """Note that the peer's machine has room again."""
        self._unread_bytes -= size
        if not self._is_lost:
            self._flush()

    # What happens in between.

    def _arrived(self) -> None:
        self._waiting.append(self._arriving.popleft())
        self._read()

    def _read(self) -> None:
        if None in self._waiting and not self._is_lost:
            # What came before it is lost as well.
            self._is_closing = True
            dropped, self._buffer = len(self._buffer), bytearray()
            self._lose(ConnectionResetError(), dropped)
        while self._waiting and self._reads and not self._is_closing:
            data = self._waiting.popleft()
            if data:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()
        if self._is_closing:
            self._waiting.clear()
        self._has_read.set()

    def _flush(self) -> None:
        size = min(len(self._buffer), _WINDOW_BYTES - self._unread_bytes)
        if size > 0:
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._unread_bytes += size
            self._post(lambda: self._peer.deliver(data))
        if not self._is_paused and len(self._buffer) > self._high:
            self._is_paused = True
            self._protocol.pause_writing()
        elif self._is_paused and len(self._buffer) <= self._low:
            self._is_paused = False
            self._protocol.resume_writing()
        if not self._buffer and self._is_closing:
            self._lose(None, 0)
        elif not self._buffer and self._has_eof and not self._sent_eof:
            self._sent_eof = True
            self._post(self._peer.half_ended)

    def _lose(self, error: Exception | None, dropped: int) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._post(lambda: self._peer.ended(dropped))
            self._loop.call_soon(self._protocol.connection_lost, error)

    def _post(self, delivery: Callable[[], None]) -> None:
        """Do something at the peer's end after the latency, in order."""
        self._outgoing.append(delivery)
        self._loop.call_later(LATENCY_SECONDS, self._deliver_next)

    def _deliver_next(self) -> None:
        self._outgoing.popleft()()
