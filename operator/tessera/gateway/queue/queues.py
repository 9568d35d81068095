"""Requests that wait in the gateway until a replica has room, by model."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority, RequestShape
from tessera.domain.limits.fair_queue import (
    FairQueue,
    QueueBounds,
    QueueEntry,
    QueueRefusal,
    QueueService,
)
from tessera.domain.picking.replica_state import ReplicaState
from tessera.gateway.fleet.replicas import Replicas, SentRequest
from tessera.gateway.refusals import RequestError, queue_full, unfunded


class _WaitingRequest(NamedTuple):
    shape: RequestShape
    sent: asyncio.Future[SentRequest]
    seconds: float
    """How long it may wait."""


class ModelQueue:
    """The queue of one model; `pump` is called when a place becomes free."""

    def __init__(self, model: OfferedModel, replicas: Replicas, bounds: QueueBounds) -> None:
        self.model = model
        """As the last directory has it."""
        self._replicas = replicas
        self._queue = FairQueue(bounds, self._displace)
        self._waiting: dict[QueueEntry, _WaitingRequest] = {}

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def work_seconds(self) -> float:
        """Return the predicted work of all that waits."""
        return self._queue.work_seconds

    def send_now(self, shape: RequestShape, now: float) -> SentRequest | None:
        """Send a request to a replica with room, unless others wait; None if it has to wait."""
        yields = shape.priority.yields
        if len(self._queue) if yields else self._queue.unyielding:
            return None
        states = self._with_room(now, yields=yields)
        return self._send(shape, states, now, yields=yields, within=self.model.ttft_seconds)

    def offer(
        self, entry: QueueEntry, shape: RequestShape, now: float
    ) -> asyncio.Future[SentRequest]:
        """Return where the request will be sent.

        Raises RequestError where it may not wait; so does the future, when it has to leave.
        """
        ready = self._replicas.ready_count(self.model)
        refusal = self._queue.offer(entry, now, replicas=ready)
        if refusal is not None:
            raise queue_full(self.model, refusal)
        sent: asyncio.Future[SentRequest] = asyncio.get_running_loop().create_future()
        self._waiting[entry] = _WaitingRequest(shape, sent, entry.deadline - now)
        if self._replicas.differ(self.model):
            # It may have a place where those that wait have none.
            self.pump(now)
        return sent

    def leave(self, entry: QueueEntry) -> None:
        """Take a request out of the queue whose client went away."""
        self._queue.cancel(entry)
        waiting = self._waiting.pop(entry, None)
        if waiting is not None:
            waiting.sent.cancel()

    def pump(self, now: float) -> None:
        """Send what waits, as far as there is room, and end what waited too long."""
        if not self._waiting:
            return
        for entry in self._queue.expire(now):
            self._time_out(self._waiting.pop(entry))
        replicas, differ = self._replicas.ready_count(self.model), self._replicas.differ(self.model)
        while self._waiting and (states := self._with_room(now, yields=not self._queue.unyielding)):
            service = QueueService(
                now=now,
                replicas=replicas,
                is_late=partial(self._is_late, now, states),
                has_place=partial(self._has_place, states) if differ else None,
            )
            next_entry = self._queue.pop(service)
            if next_entry is None:
                return
            waiting = self._waiting.pop(next_entry)
            if waiting.sent.done():
                continue
            yields, within = next_entry.priority.yields, next_entry.due - now
            sent = self._send(waiting.shape, states, now, yields=yields, within=within)
            if sent is None:
                self._time_out(waiting)
            else:
                waiting.sent.set_result(sent)

    def wants(self, state: ReplicaState) -> bool:
        """Return whether a request waits that this replica takes, and that yields to none."""
        return any(
            not waiting.shape.priority.yields
            and self._replicas.taking(self.model, waiting.shape, [state])
            for waiting in self._waiting.values()
        )

    def renew(self, model: OfferedModel) -> None:
        """Take the model of a new directory; nothing waits for a replica that is not paid for."""
        self.model = model
        if model.unfunded_by is not None and not self._replicas.ready_count(model):
            self._refuse_all(lambda: unfunded(model))

    def end(self) -> None:
        """Refuse what waits, since its service is gone."""
        reason, service = RequestReason.NO_READY_REPLICA, self.model.service
        self._refuse_all(lambda: RequestError(reason, service))

    def _refuse_all(self, error: Callable[[], RequestError]) -> None:
        for entry, waiting in self._waiting.items():
            self._queue.cancel(entry)
            if not waiting.sent.done():
                waiting.sent.set_exception(error())
        self._waiting.clear()

    def _displace(self, entry: QueueEntry, refusal: QueueRefusal) -> None:
        waiting = self._waiting.pop(entry)
        if not waiting.sent.done():
            waiting.sent.set_exception(queue_full(self.model, refusal))

    def _time_out(self, waiting: _WaitingRequest) -> None:
        if not waiting.sent.done():
            waiting.sent.set_exception(timed_out(self.model, waiting.shape, waiting.seconds))

    def _send(
        self,
        shape: RequestShape,
        states: Sequence[ReplicaState],
        now: float,
        *,
        yields: bool,
        within: float,
    ) -> SentRequest | None:
        replicas, model = self._replicas, self.model
        states = replicas.taking(model, shape, states)
        return replicas.send(model, shape, now, states, beyond_room=not yields, within=within)

    def _with_room(self, now: float, *, yields: bool) -> list[ReplicaState]:
        return self._replicas.with_room(self.model, now, yields=yields)

    def _is_late(self, now: float, states: Sequence[ReplicaState], entry: QueueEntry) -> bool:
        shape, within = self._waiting[entry].shape, entry.due - now
        ttft = self._replicas.predicted_ttft(self.model, shape, now, states, within)
        return now + ttft > entry.due

    def _has_place(self, states: Sequence[ReplicaState], entry: QueueEntry) -> bool:
        return bool(self._replicas.taking(self.model, self._waiting[entry].shape, states))


def timed_out(model: OfferedModel, shape: RequestShape, seconds: float) -> RequestError:
    """Return the error of a request that waited for so many seconds."""
    is_sheddable = shape.priority is RequestPriority.SHEDDABLE
    reason = RequestReason.SHED if is_sheddable else RequestReason.QUEUE_TIMEOUT
    return RequestError(reason, model.service, f"{seconds:g}")


class ModelQueues:
    """The queues of all models, made when the first request waits."""

    def __init__(self, replicas: Replicas, bounds: QueueBounds, clock: Callable[[], float]) -> None:
        self._replicas = replicas
        self._bounds = bounds
        self._clock = clock
        self._queues: dict[str, ModelQueue] = {}

    def of(self, model: OfferedModel) -> ModelQueue:
        """Return the queue of a model."""
        queue = self._queues.get(model.uid)
        if queue is None:
            queue = self._queues[model.uid] = ModelQueue(model, self._replicas, self._bounds)
        return queue

    def renew(self, model: OfferedModel) -> None:
        """Take the model of a new directory."""
        if model.uid in self._queues:
            self._queues[model.uid].renew(model)

    def remove(self, model: OfferedModel) -> None:
        """End the queue of a model that the new directory does not have."""
        queue = self._queues.pop(model.uid, None)
        if queue is not None:
            queue.end()

    def freed(self, service_uid: str) -> None:
        """Send what waits for the model, since a request of it moved on."""
        queue = self._queues.get(service_uid)
        if queue is not None and len(queue):
            queue.pump(self._clock())

    def pump(self) -> None:
        """Send whatever can be sent, and forget empty queues."""
        now = self._clock()
        for queue in self._queues.values():
            queue.pump(now)
        self._queues = {uid: queue for uid, queue in self._queues.items() if len(queue)}

    def __iter__(self) -> Iterator[ModelQueue]:
        return iter(self._queues.values())
