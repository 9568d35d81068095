"""The place of a request at a replica: now, or after a wait in the queue of its model."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from tessera.adapters.clock import Clock
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica, ModelChanges, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority
from tessera.domain.gateway.schema_cost import MAX_COMPILER_SECONDS
from tessera.domain.limits.fair_queue import QueueBounds, QueueEntry
from tessera.domain.picking.pick import relative_load
from tessera.domain.picking.replica_state import ReplicaState
from tessera.gateway.fleet.replicas import Replicas, SentRequest
from tessera.gateway.identify.senders import RecordFields, Senders
from tessera.gateway.queue.arrivals import ArrivalCounter
from tessera.gateway.queue.queues import ModelQueues, timed_out
from tessera.gateway.queue.schema_turns import SchemaTurns
from tessera.gateway.refusals import Headers, RequestError, unfunded
from tessera.gateway.reserve.limits import Reserved

# That a request may wait for a replica, where one is ready and where none is.
_READY_SECONDS, _WAKING_SECONDS = 60.0, 900.0
# For so long after a request of a route that another target answered, a service starts a replica.
_SKIPPED_SECONDS = 30.0


@dataclass(slots=True)
class DemandCount:
    """Requests of one service that are at engines."""

    in_flight: int = 0
    work_ns: int = 0
    """Their predicted work: sums of whole numbers return to 0."""


@dataclass(slots=True, kw_only=True)
class Placed:
    """A request with a place at a replica."""

    reserved: Reserved
    work_ns: int
    """Predicted nanoseconds of a replica that it takes."""
    queue_ns: int
    demand: DemandCount
    """Where it is counted, also if its service was recreated meanwhile."""
    at: SentRequest
    """Where it is, or was last."""
    former: tuple[SentRequest, ...] = ()
    """Where it was before."""

    @property
    def model(self) -> OfferedModel:
        """Return the model that answers it."""
        return self.reserved.model

    @property
    def attempts(self) -> tuple[SentRequest, ...]:
        """Return where it was, the last one at the end."""
        return (*self.former, self.at)

    @property
    def headers(self) -> Headers:
        """Return what the client learns about its request."""
        choice = self.at.choice
        return [
            (b"x-tessera-service", str(self.model.service).encode()),
            (b"x-tessera-queue-ms", b"%d" % (self.queue_ns // 1_000_000)),
            (b"x-tessera-replica", choice.replica.pod.name.encode()),
            (b"x-tessera-reason", choice.reason.encode()),
            *self.target_headers,
            *self.reserved.headers,
        ]

    @property
    def target_headers(self) -> Headers:
        """Return what the client of a route learns of the target that answers."""
        routed = self.reserved.chosen.received.routed
        if routed is None:
            return ()
        precision = self.at.choice.replica.precision
        return [
            *routed.headers,
            (b"x-tessera-model", self.model.names[0].encode()),
            *([(b"x-tessera-precision", precision.encode())] if precision else []),
        ]

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        choice = self.at.choice
        fields = self.reserved.record_fields()
        fields["variant"] = choice.replica.variant
        fields["replica"] = choice.replica.pod.name
        fields["price_version"] = choice.replica.price_version
        fields["reason"] = choice.reason
        fields["queue_ns"] = self.queue_ns
        # No engine has reported what it used.
        fields["estimated"] = True
        return fields


class Places:
    """The places of this process at all replicas, the queues for them, and what comes."""

    def __init__(
        self, senders: Senders, wake: Callable[[], None], bounds: QueueBounds, clock: Clock
    ) -> None:
        """Take `wake`, which hears of requests for services that sleep."""
        self._senders, self._wake, self._clock = senders, wake, clock
        self.replicas = Replicas(clock.monotonic)
        self.queues = ModelQueues(self.replicas, bounds, clock.monotonic)
        self.replicas.freed = self.queues.freed
        self.demand: dict[Ref, DemandCount] = {}
        """Of services with requests at engines."""
        self.arrivals = ArrivalCounter(self.replicas.is_late_alone)
        self._skipped: dict[Ref, float] = {}
        """Of services without a replica: when a request last came that went elsewhere."""
        self._schema_turns = SchemaTurns()

    def update(self, changes: ModelChanges) -> None:
        """Take the models and replicas of a directory."""
        for model in changes.removed:
            # A route may have the name of a service.
            if model.route is None:
                self.demand.pop(model.service, None)
                self._skipped.pop(model.service, None)
            self.arrivals.forget(model)
        self.replicas.update(changes, self._clock.monotonic(), self._clock.utc())
        for model in changes.removed:
            self.queues.remove(model)
        for model in changes.new:
            self.queues.renew(model)
        self.queues.pump()

    async def queue(self, reserved: Reserved) -> Placed:
        """Return the request with a replica, perhaps after a wait.

        Raises RequestError with status 429 or 503.
        """
        model, shape = reserved.model, reserved.shape
        identity = reserved.chosen.received.identified.identity
        routed = reserved.chosen.received.routed
        if routed is None or not routed.is_repeated:
            self.arrivals.add(identity, model, shape)
            if not _waits(reserved):
                self.arrivals.route(model)
        work_seconds, began = self.replicas.work_seconds(model, shape), self._clock.monotonic()
        turn = None
        if (schema := reserved.chosen.schema) is not None:
            seconds = self._wait_seconds(reserved)
            try:
                turn = await self._schema_turns.begin(model, identity.tenant, schema, seconds)
            except TimeoutError:
                raise timed_out(model, shape, seconds) from None
        at = self.queues.of(model).send_now(
            shape, began if turn is None else self._clock.monotonic()
        )
        is_sent_now = at is not None and turn is None
        try:
            at = at or await self._wait(reserved, work_seconds)
        except BaseException:
            if turn is not None:
                turn.leave()
            raise
        if turn is not None:
            at.compiled, at.answers_whole = turn.end, not shape.stream
        queue_ns = 0 if is_sent_now else int((self._clock.monotonic() - began) * 1e9)
        work_ns = round(work_seconds * 1e9)
        demand = self.demand.get(model.service)
        if demand is None:
            demand = self.demand[model.service] = DemandCount()
        demand.in_flight += 1
        demand.work_ns += work_ns
        return Placed(reserved=reserved, work_ns=work_ns, queue_ns=queue_ns, demand=demand, at=at)

    def move(
        self,
        placed: Placed,
        engine: str | None = None,
        *,
        beyond_context: int = 0,
        without: Collection[str] = (),
    ) -> bool:
        """Place the request at a replica that did not have it; False if there is none.

        It has the same `engine`, if one is given, and a longer context than `beyond_context`. Those
        `without`, by their uid, come last.
        """
        states = self._untried(placed, engine)
        if beyond_context:
            states = [each for each in states if (each.replica.max_model_len or 0) > beyond_context]
        shape, now = placed.reserved.shape, self._clock.monotonic()
        first = [each for each in states if each.replica.uid not in without]
        sent = self.replicas.send(placed.model, shape, now, first)
        if sent is None and len(first) < len(states):
            sent = self.replicas.send(placed.model, shape, now, states)
        if sent is None:
            return False
        sent.compiled, sent.answers_whole = placed.at.compiled, placed.at.answers_whole
        placed.former, placed.at = placed.attempts, sent
        return True

    def other(
        self, placed: Placed, *, free: bool = False, without: Collection[str] = ()
    ) -> EngineReplica | None:
        """Return a replica that did not have the request and could go on with its stream.

        It is the one with the fewest requests for its limit; with `free` it has a place for it now.
        Those `without` are left out, by their uid.
        """
        now = self._clock.monotonic()
        able = (
            state
            for state in self._untried(placed, placed.at.choice.replica.engine)
            if state.ready_at is not None and not state.replica.leaving
            if state.replica.uid not in without
            if not free or sum(state.load(now)) < state.max_sequences
        )
        least = min(able, key=partial(relative_load, now=now), default=None)
        return least.replica if least is not None else None

    def is_wanted(self, placed: Placed) -> bool:
        """Return whether a request waits that would take this place now, and yields to none."""
        return self.queues.of(placed.model).wants(placed.at.choice.state)

    def leave(self, placed: Placed, *, goes_on: bool = False) -> None:
        """Free the place of a request, once; its engine still compiles its schema if it goes on."""
        compiled = placed.at.compiled
        if goes_on and compiled is not None:
            later = asyncio.get_running_loop().call_later
            placed.at.compiled = partial(later, MAX_COMPILER_SECONDS, compiled)
        placed.at.end()
        service, demand = placed.model.service, placed.demand
        demand.in_flight -= 1
        demand.work_ns -= placed.work_ns
        if not demand.in_flight and self.demand.get(service) is demand:
            del self.demand[service]

    def _untried(self, placed: Placed, engine: str | None) -> list[ReplicaState]:
        tried = [each.choice.replica.uid for each in placed.attempts]
        states = self.replicas.untried(placed.model, placed.reserved.shape, tried)
        return [state for state in states if engine in (None, state.replica.engine)]

    def queued(self) -> Mapping[Ref, tuple[int, float]]:
        """Return the requests that wait, and their predicted work, by service."""
        now = self._clock.monotonic()
        self._skipped = {
            service: at for service, at in self._skipped.items() if now - at < _SKIPPED_SECONDS
        }
        waiting = {
            queue.model.service: (len(queue), queue.work_seconds)
            for queue in self.queues
            if len(queue)
        }
        return {**dict.fromkeys(self._skipped, (1, 0.0)), **waiting}

    def _wait_seconds(self, reserved: Reserved) -> float:
        model = reserved.model
        if not self.replicas.ready_count(model):
            return _WAKING_SECONDS
        # A sheddable request is of no use where it is late, and another target may be in time.
        is_sheddable = reserved.shape.priority is RequestPriority.SHEDDABLE
        return model.ttft_seconds if is_sheddable or not _waits(reserved) else _READY_SECONDS

    async def _wait(self, reserved: Reserved, work_seconds: float) -> SentRequest:
        model, now = reserved.model, self._clock.monotonic()
        identity = reserved.chosen.received.identified.identity
        is_ready = self.replicas.ready_count(model) > 0
        if not is_ready and not model.may_sleep:
            stopped, unready = RequestReason.SERVICE_STOPPED, RequestReason.NO_READY_REPLICA
            raise RequestError(stopped if model.stopped else unready, model.service)
        if not is_ready and model.unfunded_by is not None:
            raise unfunded(model)
        if not is_ready and not _waits(reserved):
            self._skipped[model.service] = now
            self._wake()
            raise RequestError(RequestReason.NO_READY_REPLICA, model.service)
        entry = QueueEntry(
            tenant=identity.tenant,
            weight=self._senders.weight_of(identity),
            service_class=model.service_class,
            priority=reserved.shape.priority,
            work_seconds=work_seconds,
            due=now + model.ttft_seconds,
            deadline=now + self._wait_seconds(reserved),
        )
        queue = self.queues.of(model)
        if _waits(reserved):
            self.arrivals.wait(model)
        future = queue.offer(entry, reserved.shape, now)
        if not is_ready:
            self._wake()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().end()
            queue.leave(entry)
            raise


def _waits(reserved: Reserved) -> bool:
    """Return whether a request waits for this service although another target may answer it."""
    routed = reserved.chosen.received.routed
    return routed is None or routed.waits
