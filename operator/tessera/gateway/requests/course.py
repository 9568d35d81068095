"""The course of one request: the stations that it passes, until it is settled."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RunningPhase, RunningRequest
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.limits.gateway_limits import Admitted
from tessera.gateway.fleet.replicas import SentRequest
from tessera.gateway.http.responses import ClientResponse, EndedAnswer
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.identify.senders import Identified
from tessera.gateway.outside.source import AskedOutside, OutsideSource
from tessera.gateway.paths import failure_line
from tessera.gateway.queue.places import Placed, Places
from tessera.gateway.receive.receiver import Received, Receiver
from tessera.gateway.refusals import RequestError
from tessera.gateway.relay.engine_errors import EngineError
from tessera.gateway.relay.relay import Relay
from tessera.gateway.relay.sent import Sent
from tessera.gateway.relay.sink import AnswerSink
from tessera.gateway.reserve.limits import Reservations, Reserved
from tessera.gateway.resolve.chooser import Chooser, Chosen
from tessera.gateway.resolve.models import Models, Resolved
from tessera.gateway.route.router import RequestRouter
from tessera.gateway.route.timeouts import in_time
from tessera.gateway.settle.settlement import (
    Answered,
    ClientEnd,
    Settlement,
    Stand,
    record_id,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stations:
    """The stations of one process, in the order in which a request passes them."""

    receiver: Receiver
    models: Models
    router: RequestRouter
    chooser: Chooser
    reservations: Reservations
    places: Places
    relay: Relay
    outside: OutsideSource
    settlement: Settlement
    record: Callable[[UsageRecord, Sequence[SentRequest]], None]
    """Takes the record of a request that ended, with the replicas that it was sent to."""
    note_begun: Callable[[UsageRecord], None]
    """Takes the record of a request that an engine gets now, as if it ended at once."""


class RequestCourse:
    """One request, from its body to its record."""

    def __init__(
        self, identified: Identified, stations: Stations, client: ClientResponse, body: bytes
    ) -> None:
        self.identified, self._stations, self._client = identified, stations, client
        self._body = body
        self.at: Stand = identified
        """Where it stands."""
        self._record_id = record_id()
        self._client_gone = self._is_recorded = self._has_failed_call = False
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answer the request; whatever happens, it is recorded."""
        task, client = asyncio.current_task(), self._client
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._task = task
        client.client.on_gone = self._leave
        if client.client.is_gone:
            # It left between the end of its body and now.
            self._leave()
        client.ended, client.is_in_the_way = self._end_engine, self._is_in_the_way
        phase, reason = Phase.FAILED, str(RequestReason.INTERNAL_ERROR)
        try:
            await self._answer()
            phase, reason = Phase.COMPLETED, ""
        except EngineError as error:
            phase, reason = Phase.FAILED, error.reason
            await self._fail(error)
        except RequestError as error:
            phase, reason = _phase_of_refusal(self.at, self._has_failed_call), error.reason
            await self._fail(error)
        except asyncio.CancelledError:
            task.uncancel()
            holding = self.identified.holding
            if holding.exceeded:
                phase = _phase_of_refusal(self.at, self._has_failed_call)
                reason = RequestReason.HELD_BYTES_EXCEEDED
                await self._fail(holding.error())
            elif not self._client_gone:
                phase, reason = Phase.ABORTED, RequestReason.GATEWAY_DRAINING
                await self._fail(RequestError(RequestReason.GATEWAY_DRAINING))
            elif (sent := _sent(self.at)) is not None and sent.is_complete:
                # Clients that have read the end of a stream close at once.
                phase, reason = Phase.COMPLETED, ""
            else:
                phase, reason = Phase.ABORTED, RequestReason.CLIENT_GONE
        finally:
            self._let_go()
            # It refers to this course.
            del client.ended, client.is_in_the_way
            client.stop_heartbeats()
            self.at = self._stations.settlement.end_engine(self.at, phase, reason)
            if not self._is_recorded:
                self._end(phase, reason)

    async def _answer(self) -> None:
        """Receive the request, and let the model that it names answer."""
        stations, client = self._stations, self._client
        received = self.at = await self._read()
        self.at = stations.models.resolve(received)
        if received.streams:
            client.start_heartbeats(stations.receiver.bounds.heartbeat_seconds)
        if self.at.model.route is None:
            await self._answer_by(self.at, client)
        else:
            await self._answer_by_target(self.at, client)
        await client.finish()

    async def _read(self) -> Received:
        """Read the body, which nothing but what is returned keeps."""
        body, self._body = self._body, b""
        return await self._stations.receiver.read(self.identified, body)

    async def _answer_by(
        self, resolved: Resolved, sink: AnswerSink, *, is_last: bool = True
    ) -> None:
        """Let one model answer into a sink; the body stays for another one unless it is the last.

        Raises RequestError.
        """
        stations = self._stations
        chosen = self.at = await stations.chooser.choose(resolved)
        # What is chosen has all of it, and a long answer may follow.
        del resolved
        routed = chosen.received.routed
        # Another target may have a lower price, so that none waits or gives less at first.
        whole = routed is not None and not routed.gives_less
        reserved = self.at = await stations.reservations.reserve(chosen, whole=whole)
        asked: Sent | AskedOutside
        if chosen.model.outside is not None:
            asked = outside = self.at = await stations.outside.prepare(reserved)
            answer = partial(stations.outside.run, outside)
        else:
            placed = self.at = await stations.places.queue(reserved)
            asked = sent = self.at = await stations.relay.prepare(placed, self._record_id)
            answer = partial(stations.relay.run, sent)
        if is_last or not self.identified.holding.take_room(len(asked.body)):
            # No other model gets it.
            chosen.received.drop_body()
        stations.places.arrivals.overflow(chosen)
        stations.note_begun(self._partial_record(asked))
        await answer(sink)

    async def _answer_by_target(self, resolved: Resolved, sink: AnswerSink) -> None:
        """Let the targets of a route answer, one after the other; raises RequestError."""
        limits = self._stations.reservations.limits
        calls = await self._stations.router.calls(resolved)
        counted: Admitted | None = None
        was_asked = False
        while (call := await calls.next()) is not None:
            self.at = call
            if counted is not None:
                # However many targets are asked, it is one request of its sender.
                limits.recount(counted, -1, was_asked=was_asked)
            try:
                answer = self._answer_by(call, sink, is_last=False)
                await in_time(call.received, answer, lambda: _has_begun(self.at))
                return
            except (RequestError, asyncio.CancelledError) as error:
                if (admitted := _admitted(self.at)) is not None:
                    counted, was_asked = admitted, _was_asked(self.at)
                elif counted is not None:
                    limits.recount(counted, 1, was_asked=was_asked)
                if not isinstance(error, RequestError) or _has_begun(self.at):
                    raise
                if not calls.failed(call, error, was_asked=_was_asked(self.at)):
                    raise
                self._end_call(error)
                self.at = resolved
        raise calls.refusal()

    def _end_call(self, error: RequestError) -> None:
        """Settle a call that gave no answer; what an engine got is recorded beside the answer."""
        sent = _sent(self.at)
        self.at = self._stations.settlement.end_engine(self.at, Phase.FAILED, error.reason)
        if sent is None:
            return
        sent.hold(0)
        if sent.reserved.chosen.received.body:
            sent.holding.free(len(sent.body))
        if sent.sent_ns is not None:
            record = self._record(self.at, Phase.FAILED, error.reason)
            record.requests, self._has_failed_call = 0, True
            self._stations.record(record, _attempts(self.at))
            self._record_id = record_id()

    def _end_engine(self, _: TokenCounts | None) -> EndedAnswer:
        """Settle what the source did; return what has the headers of a whole answer."""
        at = self.at = self._stations.settlement.end_engine(self.at, Phase.COMPLETED)
        assert isinstance(at, Answered)  # noqa: S101 - only what was sent has an answer
        if at.sent.reserved.charges:
            # Before its client has all of it: a gateway that is killed then charges it.
            if self._client.ends_at_once:
                self._end(Phase.COMPLETED, "")
            else:
                self._stations.note_begun(self._partial_record(at))
        return at.sent.placed if isinstance(at.sent, Sent) else at.sent

    def _end(self, phase: Phase, reason: str) -> None:
        """Record how it ended."""
        self._is_recorded = True
        self._stations.record(self._record(self.at, phase, reason), _attempts(self.at))

    def _is_in_the_way(self) -> bool:
        """Return whether others wait for its place, while it has one."""
        if isinstance(self.at, AskedOutside):
            return self._stations.outside.is_wanted(self.at)
        placed = _placed(self.at)
        return placed is not None and self._stations.places.is_wanted(placed)

    async def _fail(self, error: RequestError) -> None:
        """Send an error, unless the client does not even read what it has."""
        client = self._client.client
        self._let_go()
        if self.identified.holding.exceeded and client.reads_slowly:
            client.abort()
        else:
            await self._client.fail(error, failure_line(self.identified.path_item.path))

    def _leave(self) -> None:
        """Cancel the request, since its client is gone."""
        self._client_gone = True
        if self._task is not None:
            self._task.cancel()

    def _let_go(self) -> None:
        """Hear no more of the end of the connection, whose next request may have begun."""
        client = self._client.client
        if client.on_gone == self._leave:
            client.on_gone = None

    def _record(self, at: Stand, phase: Phase, reason: str) -> UsageRecord:
        end = ClientEnd(phase, reason, self._client.status)
        return self._stations.settlement.record(at, end, self._record_id, self.identified)

    # What others ask of a request that runs.

    def partial_record(self) -> UsageRecord | None:
        """Return its record as if the gateway were killed now.

        None before an engine has it, and once it is recorded.
        """
        if self._is_recorded or not isinstance(self.at, Sent | AskedOutside | Answered):
            return None
        return self._partial_record(self.at)

    def _partial_record(self, at: Sent | AskedOutside | Answered) -> UsageRecord:
        partial = self._stations.settlement.partial(at)
        return self._record(partial, Phase.ABORTED, RequestReason.GATEWAY_KILLED)

    @property
    def awaited_model(self) -> OfferedModel | None:
        """Return the model of a stream that waits for its first token; None for any other."""
        resolved, sent = _resolved(self.at), _sent(self.at)
        if resolved is None or not resolved.received.streams:
            return None
        if resolved.model.route is not None or resolved.model.outside is not None:
            return None
        return resolved.model if sent is None or sent.first_token_ns is None else None

    def running(self, now_ns: int) -> RunningRequest:
        """Return where it is now."""
        identified, resolved = self.identified, _resolved(self.at)
        placed, sent = _placed(self.at), _sent(self.at)
        received, source = resolved.received if resolved is not None else self.at, sent or placed
        outside = resolved.model.outside if resolved is not None else None
        if source is not None and source.reserved.shape.stream:
            decodes = sent is not None and sent.first_token_ns is not None
            phase = RunningPhase.DECODE if decodes else RunningPhase.PREFILL
        elif source is not None:
            phase = RunningPhase.RUNNING
        elif (
            resolved is not None
            and outside is None
            and not self._stations.places.replicas.ready_count(resolved.model)
        ):
            phase = RunningPhase.HELD
        else:
            phase = RunningPhase.QUEUED
        return RunningRequest(
            request_id=identified.request_id,
            tenant=identified.identity.tenant,
            key=identified.identity.key,
            service=str(resolved.model.service) if resolved and outside is None else "",
            provider=outside.name if outside is not None else "",
            model=received.model if isinstance(received, Received) else "",
            replica=placed.at.choice.replica.pod.name if placed else None,
            phase=phase,
            age_seconds=round((now_ns - identified.started_ns) / 1e9, 3),
            output_tokens=sent.deltas if sent else 0,
        )

    def leave_replicas(self, uids: Collection[str]) -> None:
        """Go on elsewhere with a protected stream that is at one of these replicas."""
        if isinstance(self.at, Sent):
            self._stations.relay.leave(self.at, uids)

    def move_stream(self, uids: Collection[str]) -> None:
        """Go on elsewhere with a stream that can, if its replica is one of these, which leave."""
        if isinstance(self.at, Sent):
            self._stations.relay.move(self.at, uids)


def _phase_of_refusal(at: Stand, has_failed_call: bool) -> Phase:
    """Return how a request ends that is refused: what an engine did until then is paid."""
    if _was_asked(at):
        return Phase.ABORTED
    # What targets used that failed is of no request but this one.
    return Phase.FAILED if has_failed_call else Phase.REFUSED


def _was_asked(at: Stand) -> bool:
    """Return whether an engine has it, or had."""
    sent = _sent(at)
    return sent is not None and sent.sent_ns is not None


def _has_begun(at: Stand) -> bool:
    """Return whether the first of an answer came, after which no other target answers."""
    sent = _sent(at)
    return sent is not None and sent.first_token_ns is not None


def _sent(at: Stand) -> Sent | AskedOutside | None:
    match at:
        case Sent() | AskedOutside():
            return at
        case Answered(sent=sent):
            return sent
        case _:
            return None


def _placed(at: Stand) -> Placed | None:
    match at:
        case Placed():
            return at
        case Sent(placed=placed) | Answered(sent=Sent(placed=placed)):
            return placed
        case _:
            return None


def _resolved(at: Stand) -> Resolved | Chosen | None:
    match at:
        case Resolved() | Chosen():
            return at
        case Reserved(chosen=chosen):
            return chosen
        case Placed(reserved=reserved):
            return reserved.chosen
        case _:
            sent = _sent(at)
            return sent.reserved.chosen if sent is not None else None


def _admitted(at: Stand) -> Admitted | None:
    """Return what its limits counted; None before."""
    resolved = _resolved(at)
    return resolved.admitted if isinstance(resolved, Chosen) else None


def _attempts(at: Stand) -> Sequence[SentRequest]:
    placed = _placed(at)
    return placed.attempts if placed is not None else ()
