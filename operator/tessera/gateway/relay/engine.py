"""An engine as the source of an answer: what is sent to it, and what comes back."""

import asyncio
from collections.abc import Iterator

import msgspec

from tessera.api.text import counted
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.bodies.answer_size import MAX_RESPONSE_BYTES
from tessera.gateway.bodies.json_values import check_encoding
from tessera.gateway.http.continued_events import ContinuedEvents, Joint
from tessera.gateway.http.engine_connection import (
    ConnectionLostError,
    Consumer,
    EngineConnection,
    EngineSession,
    InvalidHttpError,
)
from tessera.gateway.http.event_fields import has_too_many, read_head
from tessera.gateway.http.sse import (
    EventRelay,
    EventTooLargeError,
    InvalidStreamError,
    answer_text_bytes,
    is_aborted,
)
from tessera.gateway.http.token_counts import Usage, draft_counts
from tessera.gateway.relay.engine_errors import (
    EngineError,
    incomplete_stream,
    invalid_response,
    response_error,
)
from tessera.gateway.relay.resume import RESUMABLE, TEXT_NAMES, Protection
from tessera.gateway.relay.sent import Sent
from tessera.gateway.relay.sink import AnswerSink, begun

_MAX_ERROR_BYTES = 2**16
# A part of a stream that keeps the loop for so long makes the stream rest; smaller parts do not,
# whatever else took the time.
SLOW_PART_SECONDS = 0.002
_MAX_QUICK_BYTES = 4096
# From the last event to the end of the engine's response; then its connection is closed.
_TRAILER_SECONDS = 1.0
_NULL = msgspec.Raw(b"null")


class EngineSource:
    """Engines, each of which answers a request that is sent to it."""

    def __init__(self, session: EngineSession) -> None:
        self._session, self._clock = session, session.clock

    async def answer(self, sent: Sent, sink: AnswerSink, joint: Joint | None) -> None:
        """Send the request to the replica where it has its place, and its answer to the sink.

        With a joint it goes on there with a stream. Raises EngineError: a retry is possible only
        while nothing of the answer was sent.
        """
        # What another replica sent is lost, save what the client has not read.
        if not sent.hold(sink.unread_bytes + (joint.waiting_bytes if joint is not None else 0)):
            raise sent.holding.error()
        replica = sent.placed.at.choice.replica
        address = replica.address
        try:
            connection = sent.connection = await self._session.connect(address)
        except OSError as error:
            name = type(error).__name__
            raise EngineError(RequestReason.ENGINE_UNREACHABLE, replica.pod.name, name) from error
        try:
            sent.goes_to_engine(self._clock.monotonic_ns())
            await connection.send(sent.for_engine(address), sent.body)
            if connection.status != 200:
                sent.was_not_taken()
                body = await connection.read(_MAX_ERROR_BYTES) or b""
                path, headers = sent.identified.path_item.path, sent.placed.headers
                raise response_error(connection.status, body, headers, replica, path)
            if not sent.fields.streams:
                await self._read_whole(connection, sent, sink)
            elif connection.content_type == b"text/event-stream":
                await self._read_stream(connection, sent, sink, joint)
            else:
                raise invalid_response(replica, "it is no stream of events, which was asked for")
        except TimeoutError as error:
            raise EngineError(RequestReason.ENGINE_TIMEOUT, replica.pod.name) from error
        except (InvalidHttpError, ConnectionLostError) as error:
            raise _lost(sent, connection, error) from error
        finally:
            sent.connection, sent.is_left = None, False
            self._session.release(connection, address)

    async def _read_whole(self, connection: EngineConnection, sent: Sent, sink: AnswerSink) -> None:
        replica = sent.placed.at.choice.replica
        body = await connection.read(
            MAX_RESPONSE_BYTES, lambda size: sent.hold(sent.answer_bytes + size)
        )
        if sent.holding.exceeded:
            raise sent.holding.error()
        if body is None:
            size = counted(MAX_RESPONSE_BYTES, "byte")
            raise EngineError(RequestReason.RESPONSE_TOO_LARGE, f"it has more than {size}")
        try:
            check_encoding(body)
            summary = _summary_of(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid_response(replica, str(error)) from error
        if is_aborted(body):
            raise EngineError(RequestReason.ENGINE_DRAINING, replica.pod.name)
        sent.first_token_ns = self._clock.monotonic_ns()
        if summary.usage is not None:
            sent.counts = summary.usage.counts()
            sent.drafts = draft_counts(summary.metrics)
        charge, counts = sent.reserved.charge, sent.counts
        is_counted = counts is not None and counts.input and counts.output
        if charge is not None and not (charge.believes_engine and is_counted):
            sent.text_bytes = answer_text_bytes(body)
        sink.whole(body)
        sink.end(sent.counts)

    async def _read_stream(
        self, connection: EngineConnection, sent: Sent, sink: AnswerSink, joint: Joint | None
    ) -> None:
        stream, replica = sent.identified.path_item.stream, sent.placed.at.choice.replica
        assert stream is not None  # noqa: S101 - only such paths have bodies that stream
        keep_usage = sent.fields.usage_asked
        events = (
            EventRelay(stream, keep_usage=keep_usage)
            if joint is None
            else ContinuedEvents(stream, joint, keep_usage=keep_usage)
        )
        sent.events = events
        try:
            await self._pass_on(connection, events, sent, sink, joint)
        except EventTooLargeError as error:
            raise EngineError(RequestReason.RESPONSE_TOO_LARGE, error) from error
        except InvalidStreamError as error:
            raise invalid_response(replica, str(error)) from error
        finally:
            sent.counts, sent.drafts = events.total, events.drafts
        if sent.holding.exceeded:
            raise sent.holding.error()
        if not (events.ended and events.started):
            failure = incomplete_stream(events, replica)
            if failure.is_refusal and not (events.started or events.prefilled):
                sent.was_not_taken()
            raise failure
        sink.end(sent.counts)
        if not connection.complete:
            await _skip_trailer(connection)

    async def _pass_on(
        self,
        connection: EngineConnection,
        events: EventRelay,
        sent: Sent,
        sink: AnswerSink,
        joint: Joint | None,
    ) -> None:
        """Read the events of an engine into the sink, to their end or a failure."""
        holding, monotonic_ns = sent.holding, self._clock.monotonic_ns
        itl_target_ns = _itl_target_ns(sent)
        token_ns, takes = 0, True
        parts: Iterator[bytes] = iter(())

        def pass_part(part: bytes) -> bool:
            nonlocal takes
            takes = sink.part(part if protection is None else protection.add(part, events))
            return sent.hold(sink.unread_bytes + events.waiting_bytes)

        def pass_on(_: bytes = b"") -> bool:
            for part in parts:
                if not pass_part(part) or events.unpassed_bytes:
                    return False
            return takes

        def relay(data: bytes) -> bool:
            nonlocal token_ns, parts
            deltas = events.deltas
            block = events.feed(data)
            if events.deltas > deltas:
                now_ns = monotonic_ns()
                # Tokens that come together have no gap between them.
                sent.gaps += events.deltas - deltas
                sent.late_gaps += now_ns - token_ns > itl_target_ns
                token_ns = sent.read_ns = now_ns
            if block:
                # One that goes on is written again, in parts.
                parts = iter(()) if joint is None else events.parts(block)
                goes_on = pass_part(block) and takes if joint is None else pass_on()
                return goes_on and not events.closed
            return sent.hold(sink.unread_bytes + events.waiting_bytes) and not events.closed

        parts, ended = await self._first_parts(connection, sent, sink, events, joint)
        protection = sent.protection
        pass_on()
        timed, timed_rest = self._timed(sent, relay), self._timed(sent, pass_on)
        while not holding.exceeded and (events.unpassed_bytes or not (ended or events.closed)):
            takes = takes or await _drained(sent, sink, events)
            await _rest(sent)
            if events.unpassed_bytes:
                # Who gives way meanwhile lets go of what it has in its own turn.
                await asyncio.sleep(0)
                timed_rest(b"")
                continue
            # The time in which nothing is read is no gap of the engine.
            token_ns = monotonic_ns()
            ended = await connection.forward(timed)

    async def _first_parts(
        self,
        connection: EngineConnection,
        sent: Sent,
        sink: AnswerSink,
        events: EventRelay,
        joint: Joint | None,
    ) -> tuple[Iterator[bytes], bool]:
        """Begin the stream with its first token, or go on with it; return the parts that go to
        the client, none without a token, and whether the response ended.
        """
        block, ended = await self._first_block(connection, sent, sink, events)
        if not block:
            return iter(()), ended
        self._count_first(sent, events)
        sent.placed.at.first_token()
        block = await _begun(sent, sink, block, events, joint)
        sent.body = b""
        connection.when_sent(sent.free_request)
        return events.parts(block), ended

    def _count_first(self, sent: Sent, events: EventRelay) -> None:
        """Count the tokens that came first, from this engine."""
        now_ns, itl_target_ns = self._clock.monotonic_ns(), _itl_target_ns(sent)
        if sent.first_token_ns is None:
            sent.first_token_ns = now_ns
            sent.gaps += max(0, events.deltas - 1)
        else:
            sent.gaps += events.deltas
            sent.late_gaps += now_ns - sent.read_ns > itl_target_ns
        sent.read_ns = now_ns

    async def _first_block(
        self, connection: EngineConnection, sent: Sent, sink: AnswerSink, events: EventRelay
    ) -> tuple[bytes, bool]:
        """Return what goes to the client with the first token, and whether the response ended.

        Nothing does if there is none.
        """
        block, ended = b"", False

        def hold(data: bytes) -> bool:
            nonlocal block
            block = events.feed(data)
            if events.prefilled and sent.prefilled_ns is None:
                sent.prefilled_ns = self._clock.monotonic_ns()
            fits = sent.hold(sink.unread_bytes + events.waiting_bytes)
            return fits and not (block or events.closed)

        timed = self._timed(sent, hold)
        while not (block or ended or events.closed or sent.holding.exceeded):
            await _rest(sent)
            ended = await connection.forward(timed)
        return block, ended

    def _timed(self, sent: Sent, consume: Consumer) -> Consumer:
        """Let a stream rest after a part that takes long."""

        def timed(data: bytes) -> bool:
            if sent.answer_bytes + len(data) <= _MAX_QUICK_BYTES:
                return consume(data)
            began = self._clock.monotonic()
            goes_on = consume(data)
            seconds = self._clock.monotonic() - began
            if seconds > SLOW_PART_SECONDS:
                namespace = sent.placed.at.choice.replica.pod.namespace
                sent.rest_seconds = self._session.rest_seconds(namespace, seconds)
            return goes_on and not sent.rest_seconds

        return timed


async def _begun(
    sent: Sent, sink: AnswerSink, block: bytes, events: EventRelay, joint: Joint | None
) -> bytes:
    """Begin a stream, or count that it goes on here; return its first part.

    That may say what the head could not.
    """
    if joint is not None:
        sent.resumed = joint.resumed
        sent.unchecked_joints += not joint.is_checked
        return block
    if sink.unread_bytes:
        sent.hold(sink.unread_bytes + len(block))
    await sink.drained()
    if sent.may_continue and events.text_name in TEXT_NAMES and not has_too_many(block):
        head = read_head(block)
        if head is not None:
            sent.protection = Protection(sent.body, sent.holding, head)
    resumable = b"true" if sent.protection is not None else b"false"
    headers, shown = sent.placed.headers, sent.placed.target_headers
    is_resumable = RESUMABLE, resumable
    return begun(sink, [*headers, is_resumable], [*shown, is_resumable], block)


def _lost(
    sent: Sent, connection: EngineConnection, error: InvalidHttpError | ConnectionLostError
) -> EngineError:
    """Return what a request fails by whose connection is of no use any more."""
    replica = sent.placed.at.choice.replica
    if not connection.status:
        sent.was_not_taken()
    if isinstance(error, InvalidHttpError):
        return invalid_response(replica, str(error))
    if sent.is_left:
        return EngineError(RequestReason.ENGINE_DRAINING, replica.pod.name)
    return EngineError(RequestReason.STREAM_BROKEN, replica.pod.name, error)


def _itl_target_ns(sent: Sent) -> int:
    return round(sent.placed.model.itl_seconds * 1e9)


async def _drained(sent: Sent, sink: AnswerSink, events: EventRelay) -> bool:
    """Wait until the client takes more; return whether what it has not got has room."""
    await sink.drained()
    return sent.hold(events.waiting_bytes)


async def _rest(sent: Sent) -> None:
    if sent.rest_seconds:
        seconds, sent.rest_seconds = sent.rest_seconds, 0.0
        await asyncio.sleep(seconds)


class _Whole(msgspec.Struct, gc=False):
    usage: Usage | None = None
    metrics: msgspec.Raw = _NULL


class _Uncounted(msgspec.Struct, gc=False):
    usage: msgspec.Raw = _NULL


_whole_decoder = msgspec.json.Decoder(_Whole)
_uncounted_decoder = msgspec.json.Decoder(_Uncounted)


def _summary_of(body: bytes) -> _Whole:
    """Return what an answer says of its tokens; nothing where that has no shape known here.

    The answer is none the worse for it, as in a stream. Raises DecodeError for what is no object.
    """
    try:
        return _whole_decoder.decode(body)
    except msgspec.ValidationError:
        _uncounted_decoder.decode(body)
        return _Whole()


async def _skip_trailer(connection: EngineConnection) -> None:
    """Read to the end, so that the connection can be used again."""
    try:
        async with asyncio.timeout(_TRAILER_SECONDS):
            await connection.forward(lambda _: True)
    except (TimeoutError, ConnectionLostError, InvalidHttpError):
        return
