"""HTTP/1.1 as uvicorn speaks it, with bounds on headers and on clients that do not read."""

import asyncio
import fcntl
import sys
import termios
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import httptools
from typing_extensions import override
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tessera.api.text import counted
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.http.connections import SMALL_BYTES, ConnectionStage
from tessera.gateway.http.reading import (
    GONE_SECONDS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    BoundedReading,
    HeadersTooLargeError,
)
from tessera.gateway.http.turns import GatewayServerState
from tessera.gateway.refusals import RequestError, invalid_request

# Of memory, of a header beside its own.
_HEADER_BYTES = 130
# Of one connection, behind the request that is answered.
MAX_WAITING_REQUESTS = 8
# From the first byte of a request to its last header.
HEADER_SECONDS = 10.0
# A client for which more waits reads so many bytes in so long.
STALLED_CLIENT_SECONDS = 60.0
STALLED_CLIENT_BYTES = 2**16
# A body keeps its pace of which so many bytes come in so long.
PACE_SECONDS = 10.0
PACE_BYTES = 2**13
# While more than this waits for a client, what follows is joined to pieces of this size: the event
# loop takes 0.9 KiB for each piece that waits.
JOINED_BYTES = 2**12
# Between two looks whether what is joined can be sent.
_LOOK_SECONDS = 0.1
# From the last response of a connection that is drained to its end.
LINGER_SECONDS = 1
# A client that is refused may still send its request: it is read, and not looked at, since a
# connection that is closed with unread bytes is reset, and the client then loses the response.
DISCARDED_BYTES = 64 * 2**20
DISCARD_SECONDS = 30.0
_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class _AfterLastRequestError(Exception):
    """Bytes follow the last request of a connection, or more requests than may wait."""


class _Deadline:
    """A callback that comes once its time is over, unless it is lifted."""

    __slots__ = ("_timer",)

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(
        self, loop: asyncio.AbstractEventLoop, seconds: float, late: Callable[[], None]
    ) -> None:
        """Call back in so many seconds."""
        self._timer = loop.call_later(seconds, late)

    def lift(self) -> None:
        """Call back no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Writing(BoundedReading):
    """How responses are written: no faster than the client reads them."""

    stalled_client_seconds = STALLED_CLIENT_SECONDS
    stalled_client_bytes = STALLED_CLIENT_BYTES

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._read_deadline = _Deadline()
        self._written_bytes = self._read_bytes = 0
        self._unsent = bytearray()
        self._look: asyncio.Handle | None = None

    @property
    def reads_slowly(self) -> bool:
        """Whether so much waits for the client that nothing more should be sent."""
        return self.flow.write_paused

    def takes(self, size: int) -> bool:
        """Return whether so much more can be sent, with a head, before the client reads slowly."""
        return not self.reads_slowly and self._waiting_bytes + size <= HIGH_WATER_LIMIT // 2

    @property
    def is_gone(self) -> bool:
        """Whether the connection ended."""
        return self.transport.is_closing()

    @property
    def read_bytes(self) -> int:
        """Return how many bytes of responses the client's machine has taken."""
        return self._written_bytes - self._waiting_bytes - _unsent_bytes(self.transport)

    @property
    def _waiting_bytes(self) -> int:
        return self.transport.get_write_buffer_size() + len(self._unsent)

    def write_chunk(self, data: bytes) -> int:
        """Send a part of the body; return the bytes that wait for a client that reads slowly."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        return self._waiting_bytes if self.flow.write_paused else 0

    def abort(self) -> None:
        """Close the connection, and drop what waits for the client."""
        self.transport.abort()

    async def drained(self) -> None:
        """Wait while the client reads too slowly."""
        if self.flow.write_paused:
            await self.flow.drain()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_bytes = self.read_bytes
        self._read_deadline.set(self.loop, self.stalled_client_seconds, self._check_reading)

    @override
    def resume_writing(self) -> None:
        self._read_deadline.lift()
        self._send_unsent()
        super().resume_writing()

    def _check_reading(self) -> None:
        read_bytes = self.read_bytes
        if read_bytes < self._read_bytes + self.stalled_client_bytes:
            self.transport.abort()
        else:
            self._read_bytes = read_bytes
            self._read_deadline.set(self.loop, self.stalled_client_seconds, self._check_reading)

    def _write(self, data: bytes) -> None:
        # A response may go on between the end of its connection and the word of it.
        if not self.transport.is_closing():
            self._written_bytes += len(data)
            if not self._unsent and self.transport.get_write_buffer_size() <= JOINED_BYTES:
                self.transport.write(data)
                return
            self._unsent += data
            if len(self._unsent) > JOINED_BYTES:
                self._send_unsent()
            elif self._look is None:
                self._look = self.loop.call_soon(self._send_if_read)

    def _send_if_read(self) -> None:
        """Send what is joined once little waits before it, which else goes on by itself."""
        self._look = None
        if not self._unsent or self.flow.write_paused:
            return
        if self.transport.get_write_buffer_size() <= JOINED_BYTES:
            self._send_unsent()
        else:
            self._look = self.loop.call_later(_LOOK_SECONDS, self._send_if_read)

    def _send_unsent(self) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, bytearray()
            self.transport.write(bytes(unsent))


class _Waiting(_Writing):
    """For what the connection waits of its client, and what it holds beside its tenant."""

    pace_seconds = PACE_SECONDS

    # Set once it is made.
    address: str
    descriptor: int

    _running: RequestResponseCycle | None = None
    _written_before = 0
    # That of the request which is answered, once its key is accepted.
    _tenant: str | None = None
    # Of its body, for which it is looked again and again whether enough of it comes.
    _keeps_pace = False
    _bytes_before = 0
    # Most requests come whole with their keys.
    _pace_check: asyncio.TimerHandle | None = None
    # Whether the key of a request of this connection was ever accepted: until then it is read in
    # turns with others.
    _is_known = False
    # Of a record of TLS of which more has to come.
    _record_bytes = 0
    _held_bytes = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        state = cast("GatewayServerState", self.server_state)
        self._clients, self._turns = state.clients, state.turns
        # For the rest of a request that has its response.
        self._close_deadline = _Deadline()
        # The bytes of each head that is complete and has no whole response.
        self._heads: deque[int] = deque()

    def accept(self, tenant: str) -> None:
        """Note that the key of the request which is answered is accepted, and whose it is."""
        self._tenant = tenant
        if self._turns is not None and not self._is_known:
            self._is_known = True
            self._turns.remove(self)
            self.read_in_turn()
        if self._running is not None and self._running.more_body:
            self._watch_pace(keeps_pace=True)
        else:
            self._note_waiting()
        # From now on the body is held for its tenant.
        if self._held_bytes:
            self._note_held()

    @property
    def has_whole_request(self) -> bool:
        """Whether all of the request which is answered has come."""
        return self._running is not None and not self._running.more_body

    def read_in_turn(self) -> None:
        """Read what has come, unless too much of it waits."""
        if not (self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _await_turn(self) -> None:
        if self._turns is not None and not self._is_known and not self.transport.is_closing():
            self.transport.pause_reading()
            self._turns.wait(self)

    def hold_record(self, size: int) -> None:
        """Note what the connection holds of a record of TLS that is not complete."""
        if size != self._record_bytes:
            self._record_bytes = size
            self._note_held()

    def _note_waiting(self) -> None:
        """Tell for what the connection waits of its client: a request, its rest, or to be read."""
        running = self._running
        if running is None or running.response_complete:
            is_silent = not (self._in_headers or self._close_deadline.is_set)
            stage = ConnectionStage.SILENT if is_silent else ConnectionStage.WITHOUT_KEY
            self._clients.wait(self, stage)
        elif running.more_body and self._tenant is not None and self._keeps_pace:
            self._clients.upload(self, self._tenant)
        elif self._tenant is None:
            self._clients.wait(self, ConnectionStage.WITHOUT_KEY)
        elif running.more_body or self._is_unread:
            self._clients.wait(self, ConnectionStage.WITH_KEY)
        else:
            self._clients.begin(self)

    @property
    def _is_unread(self) -> bool:
        """Whether the client has not even read responses before the one that is written.

        Who is slow to read one large response does not wait; such a client asks for more than it
        reads.
        """
        written = self._written_bytes - self._written_before
        return self.flow.write_paused and self._waiting_bytes > written

    def _end_pace_check(self) -> None:
        if self._pace_check is not None:
            self._pace_check.cancel()
            self._pace_check = None

    def _watch_pace(self, *, keeps_pace: bool) -> None:
        self._keeps_pace, self._bytes_before = keeps_pace, self._body_bytes
        self._end_pace_check()
        self._pace_check = self.loop.call_later(self.pace_seconds, self._check_pace)
        self._note_waiting()

    def _check_pace(self) -> None:
        # What is not read cannot come.
        is_fast = self._body_bytes - self._bytes_before >= PACE_BYTES or self.flow.read_paused
        self._watch_pace(keeps_pace=is_fast)

    def _note_held(self) -> None:
        """Tell what the connection holds beside its tenant: heads, bodies of unknown senders."""
        size = self._record_bytes + sum(self._heads)
        if self._in_headers:
            size += self._header_bytes + self._unseen_bytes + self._header_count * _HEADER_BYTES
        if self._running is not None and self._tenant is None:
            size += len(self._running.body)
        for cycle, _ in self.pipeline:
            size += len(cycle.body)
        if size <= SMALL_BYTES:
            size = 0
        if size != self._held_bytes:
            self._held_bytes = size
            self._clients.hold(self, size)


class GatewayProtocol(_Waiting):
    """One connection of a client."""

    header_seconds = HEADER_SECONDS
    discarded_bytes = DISCARDED_BYTES
    discard_seconds = DISCARD_SECONDS

    on_gone: Callable[[], None] | None = None

    _discarded = 0

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        self._header_deadline = _Deadline()
        super().connection_made(transport)
        # None if the other end was gone at once.
        self.address = self._clients.add(self, self.client[0] if self.client else "")
        self.descriptor = transport.get_extra_info("socket").fileno()
        # The event loop begins to read once this returns, whatever is said before.
        self.loop.call_soon(self._await_turn)
        # What uvicorn uses of the transport while it responds.
        self._response_transport = SimpleNamespace(
            write=self._write, is_closing=transport.is_closing, close=self._close
        )
        self._header_deadline.set(self.loop, self.header_seconds, self._header_timeout)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.remove(self)
        if self._turns is not None:
            self._turns.remove(self)
        self._header_deadline.lift()
        self._close_deadline.lift()
        self._end_pace_check()
        if self._gone_check is not None:
            self._gone_check.cancel()
        if self._look is not None:
            self._look.cancel()
        self._unsent.clear()
        self.resume_writing()
        super().connection_lost(exc)
        # Otherwise all this and the connection would wait for the garbage collector.
        del self._response_transport, self.scope
        running, self._running = self._running, None
        cycle, self.cycle = self.cycle, None  # type: ignore[assignment] # as before the first one
        if running is not None and cycle is not None:
            # Others may wait behind it, of which uvicorn tells the last.
            running.disconnected = not running.response_complete
            running.message_event.set()
            running.transport = cycle.transport = self.transport
        if self.on_gone is not None:
            self.on_gone()

    @override
    def data_received(self, data: bytes) -> None:
        self._await_turn()
        if self._close_deadline.is_set or self._has_last_request:
            self._discarded += len(data)
            if self._discarded > self.discarded_bytes:
                self.transport.abort()
            elif not self.transport.is_closing():
                # The event loop reads 8 MiB of one connection before others have their turn.
                self.transport.pause_reading()
                self.loop.call_soon(self._read_on)
            return
        self._seen_bytes = 0
        try:
            self._parse(data)
            self._unseen_bytes += len(data) - self._seen_bytes
            self._check_unseen()
        except (httptools.HttpParserError, HeadersTooLargeError) as error:
            self.logger.warning("Invalid HTTP request received.")
            self._discarded = len(data)
            if HeadersTooLargeError in (type(error), type(error.__context__)):
                bounds = counted(MAX_HEADER_BYTES, "byte"), counted(MAX_HEADERS, "line")
                self._refuse(RequestError(RequestReason.HEADERS_TOO_LARGE, *bounds))
            else:
                text = "the request is no valid HTTP/1.1"
                self._refuse(invalid_request(text, code="invalid_http"))
            return
        if self._in_headers and not self._header_deadline.is_set:
            self._header_deadline.set(self.loop, self.header_seconds, self._header_timeout)
        if self._in_headers or (self.cycle is not None and self.cycle.more_body):
            self._note_waiting()
        self._note_held()

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running, self._written_before, self._tenant = cycle, self._written_bytes, None
        super()._start_asgi_task(cycle, app)

    @override
    def on_message_begin(self) -> None:
        if self._has_last_request or len(self.pipeline) >= MAX_WAITING_REQUESTS:
            raise _AfterLastRequestError
        # Blank lines before a request keep no connection.
        self._unset_keepalive_if_required()
        self._in_headers = True
        self._header_bytes = self._header_count = self._unseen_bytes = 0
        super().on_message_begin()
        self.scope["state"]["client"] = self

    @override
    def on_headers_complete(self) -> None:
        self._check_head()
        if self.parser.should_upgrade():
            return
        self._in_headers = False
        self._heads.append(self._header_bytes + self._header_count * _HEADER_BYTES)
        self._header_deadline.lift()
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        # The request has them.
        self.headers, self.url = [], b""
        self.scope = None  # type: ignore[assignment] # as before the first request
        self.cycle.transport = cast("asyncio.Transport", self._response_transport)
        # A response before the end of the request is the last one: its client may leave out the
        # rest, or a proxy may send the next request as that rest.
        self.cycle.keep_alive = False
        if self.pipeline and self._gone_check is None:
            # It waits for the response to the one before, and what follows it is not read.
            self._gone_check = self.loop.call_later(GONE_SECONDS, self._check_gone)

    @override
    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if not self.cycle.response_started:
            # The parser also takes `connection: close` of a trailer for that of the request.
            self.cycle.keep_alive = (
                self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
            )
        super().on_message_complete()
        self._end_pace_check()
        if not self.pipeline:
            # A large body paused the reading, which would also be that of the end of its client.
            self.flow.resume_reading()
        self._note_waiting()

    @override
    def on_response_complete(self) -> None:
        if self._running is not None:
            # A connection that waits for a request keeps nothing of the last one.
            self._running.scope, self._running.body = {}, bytearray()  # type: ignore[typeddict-item]
        self._heads.popleft()
        self._send_unsent()
        super().on_response_complete()
        self._note_waiting()
        # It holds less than before.
        if self._held_bytes:
            self._note_held()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._note_waiting()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_waiting()

    @override
    def shutdown(self) -> None:
        """Close the connection a moment after its last response.

        A client that does not know of the end may send one more request at once: it is answered,
        with `connection: close`.
        """
        self.timeout_keep_alive = LINGER_SECONDS
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                LINGER_SECONDS, self.timeout_keep_alive_handler
            )

    @property
    def _has_last_request(self) -> bool:
        """Whether a request is complete after whose response the connection ends."""
        return self.cycle is not None and not (self.cycle.keep_alive or self.cycle.more_body)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _check_unseen(self) -> None:
        """Bound what comes in pieces, of which the parser shows nothing yet, or never does."""
        is_partial = self._in_headers or (self.cycle is not None and self.cycle.more_body)
        if is_partial and self._header_bytes + self._unseen_bytes > MAX_HEADER_BYTES:
            raise HeadersTooLargeError

    def _header_timeout(self) -> None:
        self._header_deadline.lift()
        self._refuse(RequestError(RequestReason.HEADERS_TIMEOUT, f"{self.header_seconds:g}"))

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that has no response, and end the connection."""
        if self.transport.is_closing() or self._close_deadline.is_set:
            return
        answers_head = False
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.more_body:
                # The error is in what follows: a response to it would be read as that of this one.
                self.cycle.keep_alive = False
                return
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()
                return
            # The application gives it up, and does not answer it once more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            answers_head = self.cycle.scope["method"] == "HEAD"
        body = error.body()
        head = (
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n" % (error.status, _PHRASES[error.status], len(body))
        )
        self.transport.write(head if answers_head else head + body)
        self._close_when_read()

    def _close(self) -> None:
        """Close the connection after its last response."""
        self._send_unsent()
        if self.cycle.more_body or self._discarded:
            self._close_when_read()
        else:
            self.transport.close()

    def _close_when_read(self) -> None:
        """End the response, and discard what the client sends until it closes the connection."""
        self._header_deadline.lift()
        self._end_pace_check()
        self.pipeline.clear()
        self._close_deadline.set(self.loop, self.discard_seconds, self.transport.abort)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()


def _unsent_bytes(transport: asyncio.Transport) -> int:
    """Return what this machine keeps of a connection: of much it says late that there is room."""
    connection = transport.get_extra_info("socket")
    try:
        waiting = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        # It is closed.
        return 0
    return int.from_bytes(waiting, sys.byteorder)
