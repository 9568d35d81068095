"""The replicas that one request is sent to, until its client has the whole answer."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.picking.replica_state import ReplicaState
from tessera.gateway.bodies.continuation import NotContinuableError
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.fleet.replicas import SentRequest
from tessera.gateway.refusals import RequestError
from tessera.gateway.relay.engine_errors import EngineError, Retry
from tessera.gateway.requests.admission import Admission, Ticket
from tessera.gateway.requests.relay import EngineRelay

# Of one request before its first token: the first replica and two others.
_MAX_ATTEMPTS = 3
# Of a stream after it, where replicas are lost.
MAX_RESUMPTIONS = 3
_BAD_REQUEST = 400


class Attempts:
    """Sends an admitted request to one replica, and to others where that does not answer."""

    def __init__(
        self,
        relay: EngineRelay,
        admission: Admission,
        ticket: Ticket,
        turns: Turns,
        *,
        confirm: Callable[[], Awaitable[None]],
        suspect: str | None,
    ) -> None:
        """Take `confirm`, which raises RequestError where the sender may not go on.

        `suspect` is the tenant that may have sent what engines fail at, if others use them too.
        """
        self._relay = relay
        self._delivery = relay.delivery
        self._admission = admission
        self._ticket = ticket
        self._turns = turns
        self._confirm, self._suspect = confirm, suspect
        self._tried: list[str] = []
        self._resumptions = 0
        self._move: asyncio.Task[None] | None = None
        # The replica that it was for.
        self._left = ""

    async def run(self) -> None:
        """Relay an answer, from another replica where the first gave none.

        Raises RequestError.
        """
        try:
            await self._run()
        finally:
            if self._move is not None:
                self._move.cancel()

    async def _run(self) -> None:
        ticket, retried = self._ticket, Retry.SAFE
        while True:
            sent = ticket.sent
            assert sent is not None  # noqa: S101 - an admitted request has a replica
            state = sent.choice.state
            self._tried.append(state.replica.uid)
            # It may have waited long.
            await self._confirm()
            first_token = _expect_first_token(ticket, sent)
            try:
                await self._relay.attempt(state.replica, ticket.headers, sent.first_token)
            except EngineError as error:
                self._blame(state, error)
                if self._delivery.first_token_ns is not None:
                    await self._resume(error)
                    return
                beyond = self._short_context(state.replica, error)
                may_retry = beyond or _may_retry(error.retry, retried)
                if not (may_retry and len(self._tried) < _MAX_ATTEMPTS):
                    raise
                retried = retried if beyond else error.retry
                sent.failure = error.reason
                sent.end()
                if not self._admission.send_again(ticket, self._tried, beyond_context=beyond):
                    raise
            else:
                state.succeeded()
                return
            finally:
                if first_token is not None:
                    first_token.cancel()

    def leave_replicas(self, uids: Collection[str]) -> None:
        """Go on elsewhere with a protected stream that is at one of these replicas."""
        sent = self._ticket.sent
        is_there = sent is not None and sent.choice.replica.uid in uids
        # Without another replica it stays.
        if is_there and self._other() is not None:
            self._relay.leave_replica()

    def move_stream(self, uids: Collection[str]) -> None:
        """Go on elsewhere with a protected stream whose replica leaves, if another one reads it."""
        sent = self._ticket.sent
        uid = sent.choice.replica.uid if sent is not None else ""
        if uid in uids and uid != self._left:
            # It would wait for a place there, while its own replica serves it.
            other = self._other(free=True)
            if other is not None:
                self._left = uid
                self._move = asyncio.create_task(self._move_to(other, uid))

    def _other(self, *, free: bool = False) -> EngineReplica | None:
        """Return a replica that may go on with the stream if it leaves its own now."""
        if self._resumptions == MAX_RESUMPTIONS:
            return None
        return self._admission.other(self._ticket, self._tried, free=free)

    async def _move_to(self, other: EngineReplica, uid: str) -> None:
        """Leave a replica once another one is known to go on: else the stream may end there."""
        relay = self._relay
        try:
            if relay.protection is not None:
                delivered = await relay.protection.delivered(self._turns)
                is_read = await relay.check_joint(other.address, delivered)
                if is_read and self._other(free=True) is not None:
                    self.leave_replicas({uid})
                else:
                    # It may be busy, or others took the place meanwhile: it is tried again.
                    self._left = ""
        except NotContinuableError:
            return

    async def _resume(self, loss: EngineError) -> None:
        """Go on at other replicas with a stream whose replica is lost.

        Raises the loss where that is not possible.
        """
        failure, retried = loss, Retry.SAFE
        while self._resumptions < MAX_RESUMPTIONS:
            self._resumptions += 1
            try:
                sent = await self._sent_elsewhere(loss, failure)
            except NotContinuableError:
                break
            if sent is None:
                return
            state = sent.choice.state
            try:
                await self._relay.attempt(state.replica, self._ticket.headers, sent.first_token)
            except NotContinuableError:
                break
            except EngineError as error:
                self._blame(state, error)
                failure = error
                if not self._delivery.is_resuming:
                    loss, retried = error, Retry.SAFE
                elif _may_retry(error.retry, retried):
                    retried = error.retry
                else:
                    break
            else:
                state.succeeded()
                return
        raise loss

    async def _sent_elsewhere(self, loss: EngineError, failure: EngineError) -> SentRequest | None:
        """Choose the replica that goes on; None if the client has all, and got its end.

        `failure` is that of the last replica, from which nothing may have come.

        Raises NotContinuableError.
        """
        relay, ticket = self._relay, self._ticket
        lost = ticket.sent
        if lost is None or relay.protection is None or not loss.is_loss:
            raise NotContinuableError("the stream is not protected")
        delivered = await relay.protection.delivered(self._turns)
        if delivered.is_finished:
            await relay.end()
            return None
        lost.end()
        if not self._admission.send_again(ticket, self._tried, lost.choice.replica.engine):
            raise NotContinuableError("no other replica is ready")
        lost.failure = failure.reason
        assert ticket.sent is not None  # noqa: S101 - it was sent again
        self._tried.append(ticket.sent.choice.replica.uid)
        try:
            await self._confirm()
        except RequestError as error:
            raise NotContinuableError(str(error)) from None
        relay.go_on(delivered)
        return ticket.sent

    def _short_context(self, replica: EngineReplica, error: EngineError) -> int:
        """Return the context of a replica that may have refused a request since it is too long for
        it, as the estimate of its tokens may be too low; 0 where another one takes no more.
        """
        is_refused = error.reason is RequestReason.ENGINE_REFUSED and error.status == _BAD_REQUEST
        context, longest = replica.max_model_len or 0, self._ticket.model.max_model_len or 0
        return context if is_refused and context < longest else 0

    def _blame(self, state: ReplicaState, error: EngineError) -> None:
        """Count a failure of the replica, if it is one."""
        if error.is_of_replica and not state.replica.leaving:
            # Others are there, and the request may have caused the failure.
            suspect = self._suspect if error.may_be_of_request else None
            state.failed(self._admission.clock.monotonic(), suspect=suspect)


def _expect_first_token(ticket: Ticket, sent: SentRequest) -> asyncio.TimerHandle | None:
    """Count a first token when it is predicted, where the answer comes as a whole.

    Else all that generates would count as prompts that the next ones have to wait for.
    """
    seconds = sent.choice.predicted_ttft_seconds
    if seconds is None or ticket.shape.stream or not ticket.model.generates:
        return None
    return asyncio.get_running_loop().call_later(seconds, sent.first_token)


def _may_retry(retry: Retry, before: Retry) -> bool:
    return retry is Retry.SAFE or (retry is Retry.ONCE and before is not Retry.ONCE)
