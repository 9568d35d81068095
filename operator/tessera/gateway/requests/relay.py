"""One request at the engines: what is sent, what comes back, when another replica is tried."""

import asyncio
import codecs
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from tessera.api.text import counted
from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.observed.drafts import DraftCounts
from tessera.gateway.bodies.continuation import (
    Delivered,
    NotContinuableError,
    continued_body,
    last_events,
)
from tessera.gateway.bodies.memory import Holding
from tessera.gateway.bodies.parsing import RequestSummary
from tessera.gateway.http.continued_events import DONE, ContinuedEvents, Joint, resumed_comment
from tessera.gateway.http.engine_connection import (
    ConnectionLostError,
    EngineConnection,
    EngineSession,
    InvalidHttpError,
)
from tessera.gateway.http.responses import ClientResponse
from tessera.gateway.http.sse import EventRelay, EventTooLargeError, InvalidStreamError, is_aborted
from tessera.gateway.http.token_counts import TokenCounts, Usage, draft_counts
from tessera.gateway.refusals import Headers
from tessera.gateway.relay.engine_errors import (
    EngineError,
    incomplete_stream,
    invalid_response,
    response_error,
)
from tessera.gateway.relay.resume import RESUMABLE, TEXT_NAMES, Protection, count_tokens
from tessera.gateway.routes import Route

# Of a response that is not a stream: embeddings of a large batch have some 10 MiB.
MAX_RESPONSE_BYTES = 32 * 2**20
_MAX_ERROR_BYTES = 2**16
# Of it at once, since text takes up to four times as much.
_DECODED_BYTES = 2**20
# Of a stream that its client reads slowly; then the engine is held back.
MAX_UNREAD_BYTES = 2**20
# A part of a stream that keeps the loop for so long makes the stream rest; smaller parts do not,
# whatever else took the time.
SLOW_PART_SECONDS = 0.002
_MAX_QUICK_BYTES = 4096
# From the last event to the end of the engine's response; then its connection is closed.
_TRAILER_SECONDS = 1.0
_NULL = msgspec.Raw(b"null")


@dataclass(slots=True, kw_only=True)
class UpstreamRequest:
    """What is sent to an engine."""

    route: Route
    fields: RequestSummary
    body: bytes
    """Empty once a stream began: its protection keeps it, if it has any."""
    query: bytes
    headers: bytes
    """Lines with their ends."""
    may_continue: bool = False
    """Another engine may go on with its stream, as long as that has one text."""

    def for_engine(self, address: str) -> bytes:
        """Return what one gets before the body."""
        target = self.route.path.encode()
        if self.query:
            target = b"%b?%b" % (target, self.query)
        return b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n" % (
            target,
            address.encode(),
            self.headers,
            len(self.body),
        )


@dataclass(slots=True, kw_only=True)
class Delivery:
    """What the client got so far of an engine's answer."""

    counts: TokenCounts | None = None
    """As the engine reported them."""
    drafts: DraftCounts | None = None
    """The same of an engine that speculates."""
    sent_ns: int | None = None
    """When the request went to its last engine, on the monotonic clock."""
    prefilled_ns: int | None = None
    """When that engine began to decode, if it said so before its first token."""
    read_ns: int = 0
    """When the last tokens of a stream came."""
    first_token_ns: int | None = None
    """On the monotonic clock."""
    itl_target_ns: int = 0
    """Of the gaps between two tokens; later ones are late."""
    gaps: int = 0
    """Tokens after the first."""
    late_gaps: int = 0
    events: EventRelay | None = None
    """Those of the last stream."""
    resumed: int = 0
    """How often the stream went on at another engine."""
    unchecked_joints: int = 0
    """Those of them where that engine did not say how it reads what came before."""
    is_ended: bool = False
    """The gateway wrote its end."""
    _earlier_deltas: int = 0
    _earlier_tokens: int = 0

    def resume(self) -> None:
        """Count that the stream goes on elsewhere."""
        self._earlier_deltas, self._earlier_tokens = self.deltas, self.tokens
        self.counts = self.events = None

    @property
    def is_resuming(self) -> bool:
        """Whether another engine is to go on with it, and has not yet."""
        return self.first_token_ns is not None and not (self.events and self.events.started)

    @property
    def is_complete(self) -> bool:
        """Whether the whole stream was passed on, to its end."""
        events = self.events
        return self.is_ended or (events is not None and events.ended and events.started)

    @property
    def deltas(self) -> int:
        """Return how many events with tokens were sent to the client so far."""
        return self._earlier_deltas + (self.events.deltas if self.events else 0)

    @property
    def tokens(self) -> int:
        """Return about how many tokens these had."""
        return self._earlier_tokens + (self.events.tokens if self.events else 0)


class EngineRelay:
    """Relays one engine's answer to one client."""

    def __init__(
        self,
        session: EngineSession,
        request: UpstreamRequest,
        response: ClientResponse,
        delivery: Delivery,
        holding: Holding,
        answered: Callable[[], object],
    ) -> None:
        """Take `answered`, which is called when an engine ended its answer.

        The client may read it for long after.
        """
        self._session = session
        self._clock = session.clock
        self._request = request
        self._response = response
        self.delivery = delivery
        self._holding = holding
        self._answered = answered
        self.protection: Protection | None = None
        """Of a stream that began and may go on elsewhere."""
        self._delivered: Delivered | None = None
        self._joint: Joint | None = None
        self._connection: EngineConnection | None = None
        # The gateway broke it off itself.
        self._is_left = False
        # Among those that the request holds.
        self._answer_bytes = 0
        self._namespace = ""
        self._rest_seconds = 0.0

    async def attempt(
        self,
        replica: EngineReplica,
        headers: Headers,
        first_token: Callable[[], None],
    ) -> None:
        """Send the request to one replica, and its answer to the client.

        `first_token` is called when the first is there.

        Raises EngineError: a retry is possible only while nothing of the answer was sent. A stream
        that goes on may raise NotContinuableError.
        """
        # What another replica sent is lost.
        self._hold(0)
        address, self._namespace = replica.address, replica.pod.namespace
        if self._delivered is not None and not await self._join(address, self._delivered):
            return
        try:
            connection = self._connection = await self._session.connect(address)
        except OSError as error:
            name = type(error).__name__
            raise EngineError(RequestReason.ENGINE_UNREACHABLE, replica.pod.name, name) from error
        try:
            self.delivery.sent_ns, self.delivery.prefilled_ns = self._clock.monotonic_ns(), None
            await connection.send(self._request.for_engine(address), self._request.body)
            if connection.status != 200:
                await self._refuse(connection, replica, headers)
            if not self._request.fields.streams:
                await self._relay_whole(connection, replica, headers)
            elif connection.content_type == b"text/event-stream":
                await self._relay_stream(connection, replica, headers, first_token)
            else:
                raise invalid_response(replica, "it is no stream of events, which was asked for")
        except TimeoutError as error:
            raise EngineError(RequestReason.ENGINE_TIMEOUT, replica.pod.name) from error
        except InvalidHttpError as error:
            raise invalid_response(replica, str(error)) from error
        except ConnectionLostError as error:
            if self._is_left:
                raise EngineError(RequestReason.ENGINE_DRAINING, replica.pod.name) from error
            raise EngineError(RequestReason.STREAM_BROKEN, replica.pod.name, error) from error
        finally:
            self._connection, self._is_left = None, False
            self._session.release(connection, address)

    def go_on(self, delivered: Delivered) -> None:
        """Let the next attempt go on with a stream of which the client got this."""
        self._delivered = delivered
        self.delivery.resume()
        self._response.resume_heartbeats()

    def leave_replica(self) -> None:
        """Break off a protected stream, which then goes on at another replica."""
        is_protected = self.protection is not None and self.protection.is_active
        if is_protected and self._connection is not None:
            self._is_left = True
            self._connection.abandon()

    async def check_joint(self, address: str, delivered: Delivered) -> bool:
        """Ask a replica whether it reads the stream so far as it was generated.

        False where it does not say. Raises NotContinuableError where it does not.
        """
        protection = self.protection
        if protection is None or not protection.is_active:
            raise NotContinuableError("the stream is not protected")
        headers = self._request.headers
        return (
            await count_tokens(self._session, address, headers, protection, delivered) is not None
        )

    async def end(self, events: bytes = b"") -> None:
        """End a stream that is complete save for its last events."""
        await self._response.begin_stream()
        self.delivery.is_ended = True
        comment = resumed_comment(self.delivery.resumed) if self.delivery.resumed else b""
        self._answered()
        self._response.client.write_chunk(events + comment + DONE)
        await self._response.end_stream()

    async def _join(self, address: str, delivered: Delivered) -> bool:
        """Ask the replica for the rest of the stream; False where nothing is left of it."""
        delivery, request, protection = self.delivery, self._request, self.protection
        if protection is None or not protection.is_active:
            raise NotContinuableError("the stream is not protected any more")
        first_body = protection.body
        counted = await count_tokens(self._session, address, request.headers, protection, delivered)
        tokens = counted.answer if counted is not None else delivered.events
        body = continued_body(first_body, delivered, tokens)
        if body is None:
            usage = None
            if counted is not None and counted.prompt is not None:
                delivery.counts = TokenCounts(input=counted.prompt, output=tokens)
                usage = (counted.prompt, tokens) if request.fields.usage_asked else None
            await self.end(last_events(delivered, usage))
            return False
        if not protection.hold(len(body)):
            raise NotContinuableError("there is no room for its request")
        request.body = body
        self._joint = Joint(
            head=delivered.head,
            tokens=tokens,
            is_checked=counted is not None,
            repeated=delivered.repeated,
            resumed=delivery.resumed + 1,
        )
        return True

    async def _relay_whole(
        self, connection: EngineConnection, replica: EngineReplica, headers: Headers
    ) -> None:
        body = await connection.read(
            MAX_RESPONSE_BYTES, lambda size: self._hold(self._answer_bytes + size)
        )
        if self._holding.exceeded:
            raise self._holding.error()
        if body is None:
            size = counted(MAX_RESPONSE_BYTES, "byte")
            raise EngineError(RequestReason.RESPONSE_TOO_LARGE, f"it has more than {size}")
        try:
            _check_encoding(body)
            summary = _whole_decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid_response(replica, str(error)) from error
        if is_aborted(body):
            raise EngineError(RequestReason.ENGINE_DRAINING, replica.pod.name)
        self.delivery.first_token_ns = self._clock.monotonic_ns()
        if summary.usage is not None:
            self.delivery.counts = summary.usage.counts()
            self.delivery.drafts = draft_counts(summary.metrics)
        self._answered()
        await self._response.send_whole(200, body, headers)

    async def _relay_stream(
        self,
        connection: EngineConnection,
        replica: EngineReplica,
        headers: Headers,
        first_token: Callable[[], None],
    ) -> None:
        stream = self._request.route.stream
        assert stream is not None  # noqa: S101 - only such routes have bodies that stream
        delivery = self.delivery
        keep_usage = self._request.fields.usage_asked
        if self._joint is None:
            events = EventRelay(stream, keep_usage=keep_usage)
        else:
            events = ContinuedEvents(stream, self._joint, keep_usage=keep_usage)
        delivery.events = events
        try:
            await self._pass_on(connection, events, headers, first_token)
        except EventTooLargeError as error:
            raise EngineError(RequestReason.RESPONSE_TOO_LARGE, error) from error
        except InvalidStreamError as error:
            raise invalid_response(replica, str(error)) from error
        finally:
            delivery.counts, delivery.drafts = events.total, events.drafts
        if self._holding.exceeded:
            raise self._holding.error()
        if not (events.ended and events.started):
            raise incomplete_stream(events, replica)
        self._answered()
        await self._response.end_stream()
        if not connection.complete:
            await _skip_trailer(connection)

    async def _pass_on(
        self,
        connection: EngineConnection,
        events: EventRelay,
        headers: Headers,
        first_token: Callable[[], None],
    ) -> None:
        """Read the events of an engine, and send them to the client, to their end or a failure."""
        delivery, client = self.delivery, self._response.client
        token_ns = unread = 0

        def relay(data: bytes) -> bool:
            nonlocal token_ns, unread
            deltas = events.deltas
            block = self._feed(events, data)
            if events.deltas > deltas:
                now_ns = self._clock.monotonic_ns()
                # Tokens that come together have no gap between them.
                delivery.gaps += events.deltas - deltas
                delivery.late_gaps += now_ns - token_ns > delivery.itl_target_ns
                token_ns = delivery.read_ns = now_ns
            if block and protection is not None:
                block = protection.add(block, events.text_name)
            unread = client.write_chunk(block) if block else unread
            fits = self._hold(unread + events.waiting_bytes)
            return fits and unread <= MAX_UNREAD_BYTES and not (self._rest_seconds or events.closed)

        block, ended = await self._first_block(connection, events)
        protection = None
        if block:
            self._count_first(events)
            first_token()
            block = await self._begin(headers, events, block)
            protection = self.protection
            self._request.body = b""
            connection.when_sent(self._free_request)
            unread = client.write_chunk(block)
            self._hold(unread + events.waiting_bytes)
        while not (ended or events.closed or self._holding.exceeded):
            if unread > MAX_UNREAD_BYTES:
                await client.drained()
                self._hold(events.waiting_bytes)
            await self._rest()
            # The time in which nothing is read is no gap of the engine.
            token_ns = self._clock.monotonic_ns()
            ended = await connection.forward(relay)

    def _count_first(self, events: EventRelay) -> None:
        """Count the tokens that came first, from this engine."""
        delivery, now_ns = self.delivery, self._clock.monotonic_ns()
        if delivery.first_token_ns is None:
            delivery.first_token_ns = now_ns
            delivery.gaps += max(0, events.deltas - 1)
        else:
            delivery.gaps += events.deltas
            delivery.late_gaps += now_ns - delivery.read_ns > delivery.itl_target_ns
        delivery.read_ns = now_ns

    async def _begin(self, headers: Headers, events: EventRelay, block: bytes) -> bytes:
        """Begin the stream, or go on with it; return its first part as the client gets it."""
        request, response, protection = self._request, self._response, self.protection
        if self._joint is not None and protection is not None:
            self.delivery.resumed = self._joint.resumed
            self.delivery.unchecked_joints += not self._joint.is_checked
            protection.free(len(request.body))
            await response.begin_stream()
            return protection.add(block, events.text_name)
        if request.may_continue and events.text_name in TEXT_NAMES:
            protection = self.protection = Protection(request.body, self._holding)
        resumable = b"true" if protection is not None else b"false"
        # Comments that went before may have taken the headers with them.
        has_head = response.status is not None
        await response.begin_stream([*headers, (RESUMABLE, resumable)])
        if has_head:
            block = b": %b: %b\n\n%b" % (RESUMABLE, resumable, block)
        return block if protection is None else protection.add(block, events.text_name)

    async def _first_block(
        self, connection: EngineConnection, events: EventRelay
    ) -> tuple[bytes, bool]:
        """Return what goes to the client with the first token, and whether the response ended.

        Nothing does if there is none.
        """
        block, ended = b"", False

        def hold(data: bytes) -> bool:
            nonlocal block
            block = self._feed(events, data)
            if events.prefilled and self.delivery.prefilled_ns is None:
                self.delivery.prefilled_ns = self._clock.monotonic_ns()
            fits = self._hold(events.waiting_bytes)
            return fits and not (block or self._rest_seconds or events.closed)

        while not (block or ended or events.closed or self._holding.exceeded):
            await self._rest()
            ended = await connection.forward(hold)
        return block, ended

    def _feed(self, events: EventRelay, data: bytes) -> bytes:
        """Return what goes to the client; a part that takes long makes the stream rest."""
        if self._answer_bytes + len(data) <= _MAX_QUICK_BYTES:
            return events.feed(data)
        began = self._clock.monotonic()
        block = events.feed(data)
        seconds = self._clock.monotonic() - began
        if seconds > SLOW_PART_SECONDS:
            self._rest_seconds = self._session.rest_seconds(self._namespace, seconds)
        return block

    async def _rest(self) -> None:
        if self._rest_seconds:
            seconds, self._rest_seconds = self._rest_seconds, 0.0
            await asyncio.sleep(seconds)

    def _hold(self, size: int) -> bool:
        """Hold so many bytes of the answer; False where they have no room."""
        more = size - self._answer_bytes
        self._answer_bytes = size
        if more > 0:
            return self._holding.take(more)
        self._holding.free(-more)
        return True

    def _free_request(self) -> None:
        self._holding.free(self._holding.size - self._answer_bytes - self._holding.spare)

    async def _refuse(
        self, connection: EngineConnection, replica: EngineReplica, headers: Headers
    ) -> None:
        """Raise the error of a response that is not a success."""
        body = await connection.read(_MAX_ERROR_BYTES) or b""
        path = self._request.route.path
        raise response_error(connection.status, body, headers, replica, path)


class _Whole(msgspec.Struct, gc=False):
    usage: Usage | None = None
    metrics: msgspec.Raw = _NULL


_whole_decoder = msgspec.json.Decoder(_Whole)


def _check_encoding(body: bytes) -> None:
    """Raise UnicodeDecodeError unless the body is UTF-8: a decoder of JSON skips most texts."""
    if not body.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        for place in range(0, len(body), _DECODED_BYTES):
            decoder.decode(body[place : place + _DECODED_BYTES])
        decoder.decode(b"", final=True)


async def _skip_trailer(connection: EngineConnection) -> None:
    """Read to the end, so that the connection can be used again."""
    try:
        async with asyncio.timeout(_TRAILER_SECONDS):
            await connection.forward(lambda _: True)
    except (TimeoutError, ConnectionLostError, InvalidHttpError):
        return
