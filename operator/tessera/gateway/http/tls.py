"""TLS of clients: counted from the moment a connection is accepted, within bounds of its own.

The event loop would hide a connection until its handshake is finished, and then keep as much as it
ever read of it at once: 600 KiB for each that has sent a body, for as long as it is open. Here what
comes passes OpenSSL in slices, so that a connection takes 20 to 60 KiB whatever it has sent.
"""

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from typing_extensions import override
from uvicorn.protocols.utils import get_remote_addr

from tessera.gateway.http.connections import (
    PATIENCE_SECONDS,
    SMALL_BYTES,
    Connections,
    ConnectionStage,
)
from tessera.gateway.http.protocol import GatewayProtocol

# Those that have begun: the client has said something, and OpenSSL has its memory for it.
MAX_HANDSHAKES = 1024
MAX_ADDRESS_HANDSHAKES = 64
# From the moment a connection is accepted to the end of its handshake.
HANDSHAKE_SECONDS = 10.0
# Of what a client sends until then: it is 0.5 to 2 KiB.
MAX_HELLO_BYTES = 2**14
# What one takes at most until it is finished, with all that the client may send.
HANDSHAKE_BYTES = 64 * 2**10
# A record of TLS of a handshake, and the message of one with which it begins.
_HANDSHAKE_RECORD, _CLIENT_HELLO = 22, 1
# Of such a message, before its content.
_MESSAGE_HEADER_BYTES = 4
# OpenSSL's buffers of a connection stay as large as what they got at once.
_SLICE_BYTES = 2**12
_RECORD_BYTES = 2**14
_RECORD_HEADER_BYTES = 5
# Of memory, for one of which more has to come.
_PARTIAL_RECORD_BYTES = 20 * 2**10
# A signature takes 0.1 to 5 ms: they are made for so long before others have their turn.
_TURN_SECONDS = 0.002
# Each takes 2 to 4 us, whatever its size; a request has few, and 256 KiB of a large body 16.
_TURN_RECORDS = 64
# Between two looks for handshakes that take too long while others wait.
_LOOK_SECONDS = 0.1


class RecordEnds:
    """Where the records end that come in slices of any length."""

    def __init__(self) -> None:
        # Of the record that comes: the beginning of its header, or how many bytes are left.
        self._header, self._left = b"", 0

    @property
    def is_partial(self) -> bool:
        """Return whether the last record is not complete."""
        return bool(self._left or self._header)

    def add(self, data: memoryview) -> None:
        """Take what came."""
        start = 0
        while start < len(data):
            if self._left:
                size = min(self._left, len(data) - start)
                self._left -= size
            else:
                size = min(_RECORD_HEADER_BYTES - len(self._header), len(data) - start)
                self._header += bytes(data[start : start + size])
                if len(self._header) == _RECORD_HEADER_BYTES:
                    self._left = int.from_bytes(self._header[3:])
                    self._header = b""
            start += size


class ClientHello:
    """The message with which a client begins a handshake, as it comes in pieces.

    Until it is whole, neither OpenSSL's memory nor a place among handshakes is for it.
    """

    def __init__(self) -> None:
        self.data = b""
        self.size = 0
        """Bytes that have to come at least."""
        # Of the first record that is not whole.
        self._start = 0
        self._message_header, self._message_bytes = b"", 0

    def add(self, data: bytes) -> bool:
        """Take what came; return whether it is whole, or none, which is for OpenSSL to say."""
        # Most come whole.
        self.data = self.data + data if self.data else data
        self.size = len(self.data)
        if self.data[0] != _HANDSHAKE_RECORD:
            return True
        while len(self.data) - self._start >= _RECORD_HEADER_BYTES:
            content = self._start + _RECORD_HEADER_BYTES
            end = content + int.from_bytes(self.data[content - 2 : content])
            if self.data[self._start] != _HANDSHAKE_RECORD or content == end:
                return True
            if end > len(self.data):
                self.size = end
                return False
            self._message_bytes += end - content
            header = self._message_header + self.data[content:end][:_MESSAGE_HEADER_BYTES]
            self._message_header = header[:_MESSAGE_HEADER_BYTES]
            self._start = end
            if len(header) >= _MESSAGE_HEADER_BYTES and (
                header[0] != _CLIENT_HELLO
                or self._message_bytes >= len(header[:4]) + int.from_bytes(header[1:4])
            ):
                return True
        return False


class RecordTurns:
    """Connections that have sent more records than are read at once: they go on one by one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._unread: deque[TlsConnection] = deque()

    def wait(self, connection: "TlsConnection") -> None:
        """Let a connection go on in its turn."""
        self._unread.append(connection)
        if len(self._unread) == 1:
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        until = self._clock() + _TURN_SECONDS
        # A connection with still more records goes behind the others.
        for _ in range(len(self._unread)):
            if self._unread[0].go_on():
                self._unread.rotate(-1)
            else:
                self._unread.popleft()
            if self._clock() >= until:
                break
        if self._unread:
            asyncio.get_running_loop().call_soon(self._serve)


class Handshakes:
    """Handshakes that are not finished: few of an address at once, while others of it wait.

    One that takes longer than a second ends where others wait for its place.
    """

    def __init__(
        self,
        clients: Connections,
        limit: int = MAX_HANDSHAKES,
        address_limit: int = MAX_ADDRESS_HANDSHAKES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the number that may have begun, in all and of one address."""
        self.clients = clients
        self.context: ssl.SSLContext | None = None
        """Has the certificate; set before the first connection."""
        self._limit, self._address_limit = limit, address_limit
        self._clock = clock
        self.records = RecordTurns(clock)
        # Since when, the oldest first.
        self._begun: dict[TlsConnection, float] = {}
        self._begun_by_address: dict[str, dict[TlsConnection, None]] = {}
        self._waiting: dict[str, dict[TlsConnection, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._has_turn = False

    def __len__(self) -> int:
        return len(self._begun)

    @property
    def waiting(self) -> int:
        """How many have not begun though their client has said something."""
        return sum(map(len, self._waiting.values()))

    def line_up(self, connection: "TlsConnection") -> None:
        """Let a handshake begin in its turn."""
        self._waiting.setdefault(connection.address, {})[connection] = None
        self._go_on()

    def end(self, connection: "TlsConnection") -> None:
        """Note that a handshake is finished, or its connection ended."""
        self._begun.pop(connection, None)
        for by_address in (self._begun_by_address, self._waiting):
            connections = by_address.get(connection.address)
            if connections is not None:
                connections.pop(connection, None)
                if not connections:
                    del by_address[connection.address]
        if self._waiting:
            self._go_on()

    def _go_on(self) -> None:
        if self._has_turn:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._has_turn = True
        asyncio.get_running_loop().call_soon(self._begin_some)

    def _begin_some(self) -> None:
        self._timer, self._has_turn = None, False
        until, address = self._clock() + _TURN_SECONDS, self._next_address()
        while address is not None:
            waiting = self._waiting.pop(address)
            connection = next(iter(waiting))
            del waiting[connection]
            if waiting:
                # Behind the others.
                self._waiting[address] = waiting
            self._begun[connection] = self._clock()
            self._begun_by_address.setdefault(address, {})[connection] = None
            connection.begin()
            if self._clock() >= until:
                self._go_on()
                return
            address = self._next_address()
        if self._waiting and not self._has_turn:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_LOOK_SECONDS, self._begin_some)

    def _next_address(self) -> str | None:
        """Return the next address of which one may begin, after one ended for it if it has to."""
        latest = self._clock() - PATIENCE_SECONDS
        if len(self._begun) >= self._limit and next(iter(self._begun.values())) > latest:
            # However many addresses wait.
            return None
        for address in self._waiting:
            of_address = self._begun_by_address.get(address, {})
            if len(of_address) >= self._address_limit:
                oldest = next(iter(of_address))
            elif len(self._begun) >= self._limit:
                oldest = next(iter(self._begun))
            else:
                return address
            if self._begun[oldest] <= latest:
                self.clients.evict(oldest)
                self.end(oldest)
                return address
        return None


class _Transport(asyncio.Transport):
    """Does what the transport below does."""

    _transport: asyncio.Transport

    @override
    def abort(self) -> None:
        self._transport.abort()

    @override
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @override
    def pause_reading(self) -> None:
        self._transport.pause_reading()

    @override
    def resume_reading(self) -> None:
        self._transport.resume_reading()

    @override
    def can_write_eof(self) -> bool:
        return False


class TlsConnection(_Transport, asyncio.Protocol):
    """One connection by TLS: a protocol for the bytes below it, a transport for HTTP above it."""

    handshake_seconds = HANDSHAKE_SECONDS

    def __init__(self, handshakes: Handshakes, **options: Any) -> None:
        """Take what a `GatewayProtocol` takes besides."""
        super().__init__()
        self._handshakes, self._options = handshakes, options
        self._protocol: GatewayProtocol | None = None
        self._tls: ssl.SSLObject | None = None
        self._hello, self._hello_bytes = ClientHello(), 0
        self._is_write_paused = self._is_read_paused = False
        # What OpenSSL has not got yet.
        self._unread = memoryview(b"")
        self._records = RecordEnds()
        # It goes on in its turn.
        self._waits = False
        # Bytes in clear, and as they were sent, that write buffers are measured by.
        self._clear_bytes = self._sent_bytes = 1

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as protocols of streams have it
        self._transport = transport
        client = get_remote_addr(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self.handshake_seconds, self.abort)
        self.address = self._handshakes.clients.add(
            self, client[0] if client else "", ConnectionStage.HANDSHAKE
        )

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._end_handshake()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._tls is not None:
            self._receive(data)
            return
        is_whole = self._hello.add(data)
        if self._hello.size > MAX_HELLO_BYTES:
            self.abort()
            return
        if len(self._hello.data) > SMALL_BYTES:
            self._handshakes.clients.hold(self, len(self._hello.data))
        if is_whole and not self.is_closing():
            # OpenSSL gets it in its turn; until then nothing more is read.
            self._transport.pause_reading()
            self._handshakes.line_up(self)

    def begin(self) -> None:
        """Begin the handshake."""
        context = self._handshakes.context
        if context is None or self.is_closing():
            return
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._handshakes.clients.hold(self, HANDSHAKE_BYTES)
        hello, self._hello = self._hello, ClientHello()
        self._transport.resume_reading()
        self._receive(hello.data)

    @override
    def pause_reading(self) -> None:
        self._is_read_paused = True
        super().pause_reading()

    @override
    def resume_reading(self) -> None:
        self._is_read_paused = False
        # What came is read first.
        if not self._waits:
            super().resume_reading()

    @override
    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    @override
    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._tls is None or self.is_closing():
            return
        clear = memoryview(data)
        for start in range(0, len(clear), _SLICE_BYTES):
            self._tls.write(clear[start : start + _SLICE_BYTES])
            self._send()
        self._clear_bytes += len(clear)

    @override
    def close(self) -> None:
        if self._protocol is not None and self._tls is not None and not self.is_closing():
            # Says that nothing follows; the client may say so later, or never.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._send()
        self._transport.close()

    @override
    def get_write_buffer_size(self) -> int:
        # Of clear bytes, as those who ask count them.
        return self._transport.get_write_buffer_size() * self._clear_bytes // self._sent_bytes

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._handshakes.context
        return self._tls if name == "ssl_object" else self._transport.get_extra_info(name, default)

    def _receive(self, data: bytes) -> None:
        self._unread = memoryview(data)
        if self._read_some():
            self._waits = True
            self._transport.pause_reading()
            self._handshakes.records.wait(self)

    def go_on(self) -> bool:
        """Read some more records; return whether there may be others."""
        self._waits = self._read_some()
        if not (self._waits or self._is_read_paused or self.is_closing()):
            self._transport.resume_reading()
        return self._waits

    def _read_some(self) -> bool:
        """Read a turn's records; return whether there may be others."""
        left = _TURN_RECORDS
        try:
            while not self.is_closing():
                if self._protocol is not None:
                    left = self._read(left)
                if not (left and self._unread):
                    break
                part, self._unread = self._unread[:_SLICE_BYTES], self._unread[_SLICE_BYTES:]
                self._records.add(part)
                self._incoming.write(part)
                if self._protocol is None:
                    self._shake_hands(len(part))
        except ssl.SSLError:
            # What OpenSSL has to say of it goes before the end.
            self._send()
            self._transport.close()
        if self.is_closing():
            self._unread = memoryview(b"")
            return False
        if self._protocol is not None:
            partial_bytes = _PARTIAL_RECORD_BYTES if self._records.is_partial else 0
            self._protocol.hold_record(partial_bytes + len(self._unread))
        if self._outgoing.pending and self._protocol is not None and self._is_write_paused:
            # Who has keys renewed again and again, and reads nothing, would fill the memory.
            self.abort()
        self._send()
        if not self._unread:
            # An empty view keeps all that it was cut from.
            self._unread = memoryview(b"")
        return not left

    def _shake_hands(self, size: int) -> None:
        """Go on with the handshake after so many bytes more."""
        assert self._tls is not None  # noqa: S101 - it has begun
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._hello_bytes += size
            if self._hello_bytes > MAX_HELLO_BYTES:
                self.abort()
            return
        self._send()
        self._clear_bytes = self._sent_bytes = 1
        self._end_handshake()
        self._protocol = GatewayProtocol(**self._options)
        self._protocol.connection_made(self)

    def _end_handshake(self) -> None:
        self._deadline.cancel()
        self._handshakes.end(self)
        self._handshakes.clients.remove(self)

    def _read(self, left: int) -> int:
        """Pass on what is complete, of so many records at most; return how many are left."""
        assert self._tls is not None  # noqa: S101 - its handshake is finished
        parts, is_end = [], False
        try:
            while left and not is_end:
                parts.append(self._tls.read(_RECORD_BYTES))
                # The client says that nothing follows.
                is_end = not parts[-1]
                left -= 1
        except ssl.SSLWantReadError:
            pass
        # A call for each of many small records would take three times as long.
        if (data := b"".join(parts)) and self._protocol is not None:
            self._protocol.data_received(data)
        if is_end:
            self.close()
        return left

    def _send(self) -> None:
        data = self._outgoing.read()
        if data:
            self._sent_bytes += len(data)
            self._transport.write(data)
