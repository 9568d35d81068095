"""The engines that one request is sent to, until its sink has the whole answer."""

import asyncio
import math
import re
from collections.abc import Collection
from operator import attrgetter

from tessera.domain.gateway.access import cache_salt
from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.picking.replica_state import ReplicaState
from tessera.gateway.bodies.continuation import (
    continued_body,
    last_events,
    may_continue,
    tokenize_body,
)
from tessera.gateway.bodies.delivered import Delivered, NotContinuableError
from tessera.gateway.bodies.parsing import body_for_engine
from tessera.gateway.bodies.signed import without_marked
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.http.continued_events import DONE, Joint, resumed_comment
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.queue.places import Placed, Places
from tessera.gateway.refusals import RequestError
from tessera.gateway.relay.engine import EngineSource
from tessera.gateway.relay.engine_errors import EngineError, Retry
from tessera.gateway.relay.paid import PaidSink
from tessera.gateway.relay.resume import CountedTokens, Protection, count_prompt, count_tokens
from tessera.gateway.relay.sent import MoveRefusal, Sent
from tessera.gateway.relay.sink import AnswerSink
from tessera.gateway.reserve.charges import Charges
from tessera.gateway.resolve.chooser import Chosen
from tessera.gateway.resolve.models import Models

# Of one request before its first token: the first replica and two others.
_MAX_ATTEMPTS = 3
# Of a stream after it, where replicas are lost.
MAX_RESUMPTIONS = 3
# Before a replica is asked again that did not say how it reads a stream; then twice as long.
_NO_REFUSAL = MoveRefusal(until=0.0, pause_seconds=0.5)
_BAD_REQUEST = 400
_TRACE_STATE = re.compile(rb"[\x20-\x7e]{1,512}")


class Relay:
    """Relays answers of engines: of another one where the first gave none, or was lost."""

    def __init__(
        self,
        session: EngineSession,
        models: Models,
        places: Places,
        charges: Charges,
        turns: Turns,
    ) -> None:
        """Take the turns of large bodies."""
        self._session, self._clock = session, session.clock
        self._engines = EngineSource(session)
        self._models, self._places, self._turns = models, places, turns
        self._charges = charges

    async def prepare(self, placed: Placed, record_id: str) -> Sent:
        """Return the request as engines get it."""
        reserved = placed.reserved
        chosen, model = reserved.chosen, reserved.model
        received = chosen.received
        identified, fields, body = received.identified, received.fields, received.body
        most = reserved.max_output_tokens
        served_name = fields.model if reserved.shape.adapter else model.names[0]
        most_of_choice = None if most is None else most // fields.choices
        salt, yields = cache_salt(model, identified.identity.tenant), reserved.shape.priority.yields
        path, is_routed = identified.path_item.path, received.routed is not None
        # No tenant gives a request the name of one of another.
        suffix = f"-{record_id}" if model.is_shared else ""
        lines = b"Content-Type: application/json\r\nX-Request-Id: %b\r\n" % (
            f"{identified.request_id}{suffix}".encode()
        )
        # Nothing else of the client's headers passes.
        if parent := identified.trace_parent:
            lines += b"traceparent: %b\r\n" % parent
            state = identified.headers.get(b"tracestate", b"")
            if _TRACE_STATE.fullmatch(state):
                lines += b"tracestate: %b\r\n" % state
        return Sent(
            reserved=reserved,
            placed=placed,
            identified=identified,
            holding=identified.holding,
            fields=chosen.summary,
            body=await self._turns.take(
                len(body),
                lambda: body_for_engine(
                    without_marked(path, body) if is_routed else body,
                    fields,
                    served_name,
                    most_of_choice,
                    salt,
                    yields=yields,
                ),
            ),
            headers=lines,
            may_continue=may_continue(fields, received.unlisted, len(body)),
        )

    async def count_prompt(self, chosen: Chosen) -> int | None:
        """Return the most tokens of a prompt as a ready replica counts it; None where none does."""
        received, size, model = chosen.received, chosen.size, chosen.model
        states = self._places.replicas.states(model)
        ready = [each for each in states if each.is_open(self._clock.monotonic())]
        if not ready or size.texts != 1 or size.media_tokens or received.unlisted is not None:
            return None
        body, fields = received.body, received.fields
        served_name = fields.model if chosen.shape.adapter else model.names[0]
        asked = await self._turns.take(len(body), lambda: tokenize_body(body, fields, served_name))
        if asked is None:
            return None
        text, other_bytes = asked
        address = min(ready, key=attrgetter("requests")).replica.address
        count = await count_prompt(self._session, address, text, received.identified.holding)
        return count + other_bytes if count else None

    async def run(self, sent: Sent, sink: AnswerSink) -> None:
        """Relay an answer to its end.

        Raises RequestError.
        """
        charge = sent.reserved.charge
        try:
            if charge is None or not charge.watches(sent.fields):
                await self._run(sent, sink)
            else:
                await self._run_paid(sent, PaidSink(sink, sent, charge, self._charges))
        finally:
            if sent.moving is not None:
                sent.moving.cancel()

    async def _run_paid(self, sent: Sent, sink: PaidSink) -> None:
        try:
            await self._run(sent, sink)
            await sink.finish()
        finally:
            sink.close()

    async def _run(self, sent: Sent, sink: AnswerSink) -> None:
        # It may have waited long.
        await self._confirm(sent)
        loss: EngineError | None = None
        retried, joint = Retry.SAFE, None
        try:
            while True:
                try:
                    await self._ask(sent, sink, joint)
                    return
                except EngineError as error:
                    if sent.first_token_ns is None:
                        last = await self._retry(sent, error, retried)
                        if last is None:
                            raise
                        retried = last
                        continue
                    # What the lost engine sent is in its frames, and held no more.
                    error.drop_frames()
                    if loss is None or not sent.is_resuming:
                        # The engine that went on gave something, and is lost as well.
                        loss, retried = error, Retry.SAFE
                    elif _may_retry(error.retry, retried):
                        retried = error.retry
                    else:
                        raise loss from None
                    try:
                        joint = await self._resume(sent, sink, error.reason, is_loss=loss.is_loss)
                    except NotContinuableError:
                        raise loss from None
                    if joint is None:
                        return
        finally:
            # An error refers to the frames that it passed: it would keep the request in a cycle.
            del loss

    async def _confirm(self, sent: Sent) -> None:
        """Ask again who sends the request, and whether he may still use its model."""
        chosen = sent.reserved.chosen
        await self._models.confirm(chosen.received, chosen.model)

    async def _ask(self, sent: Sent, sink: AnswerSink, joint: Joint | None) -> None:
        """Let the replica answer where the request has its place; raises EngineError."""
        state, first_token = sent.placed.at.choice.state, _expect_first_token(sent.placed)
        try:
            await self._engines.answer(sent, sink, joint)
        except EngineError as error:
            self._blame(sent, state, error)
            raise
        finally:
            if first_token is not None:
                first_token.cancel()
        state.succeeded()

    async def _retry(self, sent: Sent, error: EngineError, retried: Retry) -> Retry | None:
        """Place a request at another replica of which nothing was sent; None if there is none."""
        placed = sent.placed
        beyond = _short_context(placed, error)
        may_retry = beyond or _may_retry(error.retry, retried)
        if not (may_retry and len(placed.attempts) < _MAX_ATTEMPTS):
            return None
        placed.at.failure = error.reason
        placed.at.end()
        if not self._places.move(placed, beyond_context=beyond):
            return None
        await self._confirm(sent)
        return retried if beyond else error.retry

    async def _resume(
        self, sent: Sent, sink: AnswerSink, failure: str, *, is_loss: bool
    ) -> Joint | None:
        """Place a stream at another replica that goes on; None if the client has all of it.

        `failure` is the reason of the last replica, from which nothing may have come.

        Raises NotContinuableError.
        """
        placed, lost = sent.placed, sent.placed.at
        if sent.resumptions == MAX_RESUMPTIONS:
            raise NotContinuableError("it went on too often")
        sent.resumptions += 1
        if sent.protection is None or not is_loss:
            raise NotContinuableError("the stream is not protected")
        delivered = await sent.protection.delivered(self._turns)
        if delivered.is_finished:
            _end(sent, sink)
            return None
        lost.end()
        engine = lost.choice.replica.engine
        if not self._places.move(placed, engine, without=self._refusing(sent)):
            raise NotContinuableError("no other replica is ready")
        lost.failure = failure
        try:
            await self._confirm(sent)
        except RequestError as error:
            raise NotContinuableError(str(error)) from None
        sent.resume()
        sink.interrupted()
        return await self._join(sent, sink, delivered)

    async def _join(self, sent: Sent, sink: AnswerSink, delivered: Delivered) -> Joint | None:
        """Return where the next engine goes on; None where nothing is left of the stream."""
        # What the lost one was asked and sent is lost.
        sent.hold(0)
        sent.body = b""
        sent.free_request()
        protection, address = sent.protection, sent.placed.at.choice.replica.address
        if protection is None or not protection.is_active:
            raise NotContinuableError("the stream is not protected any more")
        first_body = protection.body
        counted = await self._count(sent, address, delivered, protection)
        tokens = counted.answer if counted is not None else delivered.events
        body = await self._turns.take(
            len(first_body) + delivered.text_bytes,
            lambda: continued_body(first_body, delivered, tokens),
        )
        if body is None:
            usage = None
            if counted is not None and counted.prompt is not None:
                sent.counts = TokenCounts(input=counted.prompt, output=tokens)
                usage = (counted.prompt, tokens) if sent.fields.usage_asked else None
            _end(sent, sink, last_events(delivered, usage))
            return None
        if not sent.holding.take_room(len(body)):
            raise NotContinuableError("there is no room for its request")
        sent.body = body
        return Joint(
            head=delivered.head,
            tokens=tokens,
            is_checked=counted is not None,
            repeated=delivered.repeated,
            resumed=sent.resumed + 1,
        )

    def leave(self, sent: Sent, uids: Collection[str]) -> None:
        """Go on elsewhere with a protected stream that is at one of these replicas."""
        is_protected = sent.protection is not None and sent.protection.is_active
        if sent.placed.at.choice.replica.uid not in uids or not is_protected:
            return
        # Without another replica it stays.
        if sent.connection is not None and self._other(sent) is not None:
            sent.is_left = True
            sent.connection.abandon()

    def move(self, sent: Sent, uids: Collection[str]) -> None:
        """Go on elsewhere with a protected stream whose replica leaves, if another one reads it.

        This is called again and again while the replica leaves, for hours where a drain takes so
        long. A replica that reads another prompt is asked once; one that is busy, or does not say
        how it reads the stream, after a pause that is twice as long each time.
        """
        uid, protection = sent.placed.at.choice.replica.uid, sent.protection
        is_moving = sent.moving is not None and not sent.moving.done()
        if uid not in uids or is_moving or protection is None or not protection.is_active:
            return
        # It would wait for a place there, while its own replica serves it.
        other = self._other(sent, free=True, without=self._refusing(sent))
        if other is not None:
            sent.moving = asyncio.create_task(self._move_to(sent, other, uid, protection))

    def _refusing(self, sent: Sent) -> Collection[str]:
        """Return the replicas that a stream is not moved to now."""
        now = self._clock.monotonic()
        return {uid for uid, refusal in sent.move_refusals.items() if refusal.until > now}

    def _other(
        self, sent: Sent, *, free: bool = False, without: Collection[str] = ()
    ) -> EngineReplica | None:
        """Return a replica that may go on with the stream if it leaves its own now."""
        if sent.resumptions == MAX_RESUMPTIONS:
            return None
        return self._places.other(sent.placed, free=free, without=without)

    async def _move_to(
        self, sent: Sent, other: EngineReplica, uid: str, protection: Protection
    ) -> None:
        """Leave a replica once another one is known to go on: else the stream may end there."""
        before = sent.move_refusals.get(other.uid, _NO_REFUSAL)
        pause_seconds = 2 * before.pause_seconds
        try:
            delivered = await protection.delivered(self._turns)
            counted = await self._count(sent, other.address, delivered, protection)
            # Others may have taken the place meanwhile.
            if counted is not None and self._other(sent, free=True) is not None:
                self.leave(sent, {uid})
                return
        except NotContinuableError:
            pause_seconds = math.inf
        until = self._clock.monotonic() + pause_seconds
        known = {each.replica.uid for each in self._places.replicas.states(sent.placed.model)}
        for former in sent.move_refusals.keys() - known:
            del sent.move_refusals[former]
        sent.move_refusals[other.uid] = MoveRefusal(until, pause_seconds)

    async def _count(
        self, sent: Sent, address: str, delivered: Delivered, protection: Protection
    ) -> CountedTokens | None:
        """Return how an engine reads a stream; None where it does not say.

        Raises NotContinuableError.
        """
        return await count_tokens(
            self._session, address, sent.headers, protection, delivered, self._turns
        )

    def _blame(self, sent: Sent, state: ReplicaState, error: EngineError) -> None:
        """Count a failure of the replica, if it is one."""
        if error.is_of_replica and not state.replica.leaving:
            # Others are there, and the request may have caused the failure.
            tenant = sent.identified.identity.tenant
            is_suspect = error.may_be_of_request and sent.placed.model.is_shared
            state.failed(self._clock.monotonic(), suspect=tenant if is_suspect else None)


def _end(sent: Sent, sink: AnswerSink, events: bytes = b"") -> None:
    """End a stream that is complete save for its last events."""
    sent.is_ended = True
    comment = resumed_comment(sent.resumed) if sent.resumed else b""
    sink.part(events + comment + DONE)
    sink.end(sent.counts)


def _expect_first_token(placed: Placed) -> asyncio.TimerHandle | None:
    """Count a first token when it is predicted, where the answer comes as a whole.

    Else all that generates would count as prompts that the next ones have to wait for.
    """
    seconds = placed.at.choice.predicted_ttft_seconds
    if seconds is None or placed.reserved.shape.stream or not placed.model.generates:
        return None
    return asyncio.get_running_loop().call_later(seconds, placed.at.first_token)


def _short_context(placed: Placed, error: EngineError) -> int:
    """Return the context of a replica that may have refused a request since it is too long for
    it, as the estimate of its tokens may be too low; 0 where another one takes no more.
    """
    is_refused = error.reason is RequestReason.ENGINE_REFUSED and error.status == _BAD_REQUEST
    context, longest = placed.at.choice.replica.max_model_len or 0, placed.model.max_model_len or 0
    return context if is_refused and context < longest else 0


def _may_retry(retry: Retry, before: Retry) -> bool:
    return retry is Retry.SAFE or (retry is Retry.ONCE and before is not Retry.ONCE)
