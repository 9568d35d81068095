"""HTTP/1.1 to engines: connections that carry one request at a time, and are kept for the next.

What an engine sends is handed on as soon as it arrives, without waking a task: a stream costs
little more than its system calls.
"""

import asyncio
import copy
import socket
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import httptools
from typing_extensions import override

from tessera.adapters.clock import CLOCK, Clock
from tessera.adapters.run_forever import run_forever
from tessera.gateway.http.sse import InvalidStreamError

# vLLM closes connections that were idle for 5 s.
_KEEP_ALIVE_SECONDS = 4
_CONNECT_SECONDS = 3
_CHECK_SECONDS = 0.5
# A peer that vanished with its node, or behind a partition, never closes its connections: it is
# noticed after so long, also where bytes for it wait. An engine that only computes answers probes.
_PROBE_AFTER_SECONDS, _PROBE_SECONDS, _PROBES = 10, 5, 3
VANISHED_SECONDS = _PROBE_AFTER_SECONDS + _PROBES * _PROBE_SECONDS
_SOCKET_OPTIONS = (
    # What the kernel has of an engine comes in one read, and waits here where its client reads
    # slowly: it would be 256 KB of each of a thousand streams.
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_SECONDS * 1000),
)
# Of the head, and between two parts of the body. Engines belong to tenants.
_MAX_FRAMING_BYTES = 2**16
# Of a body that is not taken now; then the engine is held back.
_MAX_WAITING_BYTES = 2**16
# Handed on before others have their turn. A loop reads 256 KB at once, uvloop up to 32 times.
MAX_READ_BYTES = 2**14

# Of the time that a part of a stream took.
_REST_FACTOR = 4

# Takes a part of a body; False if it takes no more for now. It may raise InvalidStreamError.
Consumer = Callable[[bytes], bool]


class ConnectionLostError(Exception):
    """The engine closed the connection before the end of its response."""


class InvalidHttpError(Exception):
    """The engine sent something that is not HTTP."""


class _Sending(asyncio.Protocol):
    """How requests are sent: what an engine does not read stays here."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._is_sending = False
        self._sent: Callable[[], None] | None = None

    def when_sent(self, sent: Callable[[], None]) -> None:
        """Call back once the engine took the request; at once if it did."""
        if self._is_sending:
            self._sent = sent
        else:
            sent()

    def close(self) -> None:
        """Close it, which ends its request at the engine."""
        transport, self._transport = self._transport, None
        self._sent = None
        if transport is not None:
            transport.abort()

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it is one
        self._transport = transport
        connection = transport.get_extra_info("socket")
        for level, option, value in _SOCKET_OPTIONS:
            connection.setsockopt(level, option, value)
        # It says when nothing waits any more, rather than when little does.
        transport.set_write_buffer_limits(0)

    @override
    def pause_writing(self) -> None:
        self._is_sending = True

    @override
    def resume_writing(self) -> None:
        self._is_sending = False
        sent, self._sent = self._sent, None
        if sent is not None:
            sent()


class EngineConnection(_Sending):
    """One connection to an engine."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._consumer: Consumer | None = None
        self._unread = memoryview(b"")
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        """Of the response; 0 before its head came."""
        self.content_type = b""
        self.complete = False
        """The whole response came."""
        self.used_at = self._clock.monotonic()
        """When its last part came, about."""
        self.received_bytes = 0
        """Of the response as it was sent: its head, and its body with the framing."""
        self._received = self._reusable = self._has_length = self._paused = False
        self._error: Exception | None = None
        # What the parser has just shown of the body, and what came before it and is not taken yet:
        # an engine may send it byte by byte.
        self._parts: list[bytes] = []
        self._waiting = bytearray()
        self._framing_bytes = 0

    @property
    def reusable(self) -> bool:
        """Return whether it can carry another request."""
        is_at_end = self.complete and not (self._unread or self._paused or self._is_sending)
        return is_at_end and self._reusable and self._transport is not None

    async def send(self, head: bytes, body: bytes = b"") -> None:
        """Send a request, and wait for the head of its response.

        This and `forward` raise ConnectionLostError, InvalidHttpError, or TimeoutError.
        """
        self._begin()
        if self._transport is not None:
            # Without a copy of the body, of which the engine may read nothing for long.
            self._transport.writelines((head, body))
        while not self.status:
            await self._progress()

    async def forward(self, consumer: Consumer) -> bool:
        """Give the consumer all parts of the body, until it takes no more; True at the end.

        It gets them while they arrive, so it has to be quick.
        """
        if self._has_body and not consumer(self._take()):
            return self.complete
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._read_on)
        self._consumer = consumer
        try:
            while self._consumer is not None and not self.complete:
                await self._progress()
            # Its last part may have come with what is no response.
            if self._consumer is not None and self._has_body:
                consumer(self._take())
        finally:
            self._consumer = None
        return self.complete and not self._has_body

    async def read(self, limit: int, take: Callable[[int], bool] = lambda _: True) -> bytes | None:
        """Return the rest of the body; None where it has more bytes than the limit.

        `take` is asked for room for each part, and ends the body too.
        """
        body, fits = bytearray(), True

        def collect(data: bytes) -> bool:
            nonlocal body, fits
            fits = len(body) + len(data) <= limit and take(len(data))
            if fits:
                body += data
            return fits

        await self.forward(collect)
        return bytes(body) if fits else None

    def abandon(self) -> None:
        """Give the request up as if the engine had closed the connection."""
        self._fail(ConnectionLostError("its replica is left"))

    def check(self, now: float, idle_seconds: float) -> None:
        """Give the request up if nothing came for so long."""
        if self._received or self._paused:
            self._received, self.used_at = False, now
        elif now - self.used_at > idle_seconds:
            self._fail(TimeoutError())

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._sent = None
        if exc is None and self.status and not self._has_length:
            self.complete = True
            self._wake()
        elif not self.complete:
            self._fail(ConnectionLostError(type(exc).__name__ if exc else "it was closed"))

    @override
    def data_received(self, data: bytes) -> None:
        if len(data) > MAX_READ_BYTES:
            self._unread = memoryview(data)
            if self._transport is not None:
                self._transport.pause_reading()
            self._read_on()
            return
        self._received = True
        self.received_bytes += len(data)
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._framing_bytes > _MAX_FRAMING_BYTES:
                self._fail(InvalidHttpError("its headers are too large"))
            elif self._consumer is None:
                self._waiting += b"".join(self._parts)
                self._parts.clear()
                is_much = len(self._waiting) > _MAX_WAITING_BYTES
                if is_much and self._transport is not None:
                    self._paused = True
                    self._transport.pause_reading()
                self._wake()
            elif self._parts and not self._consumer(self._take()):
                self._consumer = None
                self._wake()
            elif self.complete:
                self._wake()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(InvalidHttpError(str(error)))
        except InvalidStreamError as error:
            self._fail(error)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.partition(b";")[0].strip().lower()
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        if self.complete:
            raise InvalidHttpError("it sent a response without a request")
        self.status = self._parser.get_status_code()
        self._reusable = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self.complete = self.status >= 200
        if not self.complete:
            # It announces the response.
            self.status = 0

    def _read_on(self) -> None:
        """Read the next part of what came at once, one in each turn of the loop, then more."""
        if self._transport is None:
            return
        part, self._unread = self._unread[:MAX_READ_BYTES], self._unread[MAX_READ_BYTES:]
        if not part:
            # An empty view keeps all that it was cut from.
            self._unread = memoryview(b"")
            self._transport.resume_reading()
            return
        self.data_received(bytes(part))
        if not self._paused:
            asyncio.get_running_loop().call_soon(self._read_on)

    @property
    def _has_body(self) -> bool:
        return bool(self._waiting or self._parts)

    def _take(self) -> bytes:
        parts, self._parts = self._parts, []
        if self._waiting:
            parts.insert(0, bytes(self._waiting))
            self._waiting.clear()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _progress(self) -> None:
        """Wait until something happens to the response."""
        if self._error is not None:
            # An error refers to the frames that it passed, and they to this connection.
            raise copy.copy(self._error)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineSession:
    """The connections of a gateway to all engines."""

    def __init__(self, idle_seconds: float, clock: Clock = CLOCK) -> None:
        """Give up requests whose engine sends nothing for so long."""
        self.clock = clock
        self._idle_seconds = idle_seconds
        self._busy: set[EngineConnection] = set()
        self._idle: dict[str, list[EngineConnection]] = defaultdict(list)
        self._checking: asyncio.Task[None] | None = None
        # By namespace, on the monotonic clock.
        self._rests_until: dict[str, float] = {}

    def rest_seconds(self, namespace: str, slow_seconds: float) -> float:
        """Return how long a stream rests of which a part took so long.

        Such parts from all engines of a namespace take a fifth of the time together.
        """
        now = self.clock.monotonic()
        until = max(self._rests_until.get(namespace, now), now) + slow_seconds * _REST_FACTOR
        self._rests_until[namespace] = until
        return until - now

    async def connect(self, address: str) -> EngineConnection:
        """Return a connection to `host:port`; `release` takes it back.

        Raises OSError, of which TimeoutError is one.
        """
        if self._checking is None:
            self._checking = asyncio.create_task(run_forever("engine requests", self._check))
        idle, now = self._idle[address], self.clock.monotonic()
        while idle:
            connection = idle.pop()
            if connection.reusable and now - connection.used_at < _KEEP_ALIVE_SECONDS:
                break
            connection.close()
        else:
            host, _, port = address.rpartition(":")
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(
                    partial(EngineConnection, self.clock), host.strip("[]"), int(port)
                )
        self._busy.add(connection)
        return connection

    def release(self, connection: EngineConnection, address: str) -> None:
        """Keep a connection for the next request, or close it if its response is not complete."""
        self._busy.discard(connection)
        if connection.reusable:
            connection.used_at = self.clock.monotonic()
            self._idle[address].append(connection)
        else:
            connection.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._checking is not None:
            self._checking.cancel()
        for connections in (self._busy, *self._idle.values()):
            for connection in connections:
                connection.close()

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            now = self.clock.monotonic()
            for connection in self._busy:
                connection.check(now, self._idle_seconds)
            for address, idle in list(self._idle.items()):
                while idle and now - idle[0].used_at > _KEEP_ALIVE_SECONDS:
                    idle.pop(0).close()
                if not idle:
                    del self._idle[address]
