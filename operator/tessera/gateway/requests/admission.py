"""Who may use which model now, and on which replica: decided from the last Directory."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from tessera.adapters.clock import CLOCK, Clock
from tessera.api.ref import Ref
from tessera.domain.gateway.access import (
    ModelsByName,
    may_use,
    models_by_user,
    resolve_model,
    scoped_names,
    similar_names,
    tenant_models,
    visible_models,
)
from tessera.domain.gateway.directory import (
    Directory,
    EngineReplica,
    Identity,
    ModelChanges,
    OfferedModel,
    model_changes,
)
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority, RequestShape
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.limits.fair_queue import QueueBounds, QueueEntry
from tessera.domain.limits.gateway_limits import Admitted, GatewayLimits, LimitRefusal
from tessera.domain.limits.scopes import ApplicableLimits, applicable_limits
from tessera.domain.picking.pick import relative_load
from tessera.domain.picking.replica_state import ReplicaState
from tessera.gateway.fleet.replicas import Replicas, SentRequest
from tessera.gateway.queue.arrivals import ArrivalCounter
from tessera.gateway.queue.queues import ModelQueues
from tessera.gateway.refusals import (
    RequestError,
    allowance_headers,
    over_limit,
    unknown_model,
)

_MAX_CACHED_LIMITS = 10_000
_MAX_REVOKED_KEYS = 10_000
# Of one request, with the limits that others take in between.
_MAX_BORROWINGS = 8


class Identifier(Protocol):
    """Says who sends a request."""

    async def identify(
        self, headers: Mapping[bytes, bytes], directory: Directory, address: str
    ) -> Identity:
        """Return the sender, who has this address.

        Raises RequestError with status 401 or 503.
        """
        ...


_BOUNDS = QueueBounds()
# That a request may wait for a replica, where one is ready and where none is.
_READY_SECONDS, _WAKING_SECONDS = 60.0, 900.0


@dataclass(slots=True)
class DemandCount:
    """Requests of one service that are at engines."""

    in_flight: int = 0
    work_ns: int = 0
    """Their predicted work: sums of whole numbers return to 0."""


@dataclass(slots=True, kw_only=True)
class Ticket:
    """An admitted request, from its place in the queue to its end."""

    model: OfferedModel
    shape: RequestShape
    admitted: Admitted
    work_seconds: float
    demand: DemandCount = field(default_factory=DemandCount)
    """Where it is counted, also if its service was recreated meanwhile."""
    queue_ns: int = 0
    sent: SentRequest | None = None
    """Where it is, or was last."""
    former: tuple[SentRequest, ...] = ()
    """Where it was before."""

    @property
    def attempts(self) -> tuple[SentRequest, ...]:
        """Return where it was, the last one at the end."""
        return self.former if self.sent is None else (*self.former, self.sent)

    @property
    def work_ns(self) -> int:
        """Return the predicted nanoseconds of a replica that it takes."""
        return round(self.work_seconds * 1e9)

    @property
    def max_output_tokens(self) -> int | None:
        """Return what is left of the tokens that the client asked for; None for all of them."""
        reduced = self.admitted.max_output_tokens
        return reduced if reduced < self.shape.max_output_tokens else None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return what the client learns about its request."""
        headers = [
            (b"x-tessera-service", str(self.model.service).encode()),
            (b"x-tessera-queue-ms", b"%d" % (self.queue_ns // 1_000_000)),
        ]
        if self.sent is not None:
            choice = self.sent.choice
            headers.append((b"x-tessera-replica", choice.replica.pod.name.encode()))
            headers.append((b"x-tessera-reason", choice.reason.encode()))
        return [*headers, *allowance_headers(self.admitted.requests, self.admitted.tokens)]


class Admission:
    """Admits requests, or says why not."""

    def __init__(
        self,
        identifier: Identifier,
        borrow: Callable[[BorrowRequest], Awaitable[bool]],
        wake: Callable[[], None],
        *,
        bounds: QueueBounds = _BOUNDS,
        clock: Clock = CLOCK,
    ) -> None:
        """Take `borrow`, which exchanges portions of limits with the accounts.

        It returns False if the answer did not come. `wake` hears of requests for services that
        sleep.
        """
        self._identifier = identifier
        self._borrow, self._wake = borrow, wake
        self.clock = clock
        """What times everything about a request."""
        self._directory = Directory()
        self.has_directory = False
        self._of_user: Callable[[str], Sequence[OfferedModel]] | None = None
        # By tenant, also their names, and by sender and service.
        self._models: dict[str, ModelsByName] = {}
        self._names: dict[tuple[str, frozenset[Ref]], tuple[str, ...]] = {}
        self._applicable: dict[tuple[str | None, ...], ApplicableLimits] = {}
        self.replicas = Replicas(clock.monotonic)
        self.limits = GatewayLimits()
        self.queues = ModelQueues(self.replicas, bounds, clock.monotonic)
        self.replicas.freed = self.queues.freed
        self.demand: dict[Ref, DemandCount] = {}
        """Of services with requests at engines."""
        self.arrivals = ArrivalCounter()

    def update(self, directory: Directory) -> ModelChanges:
        """Judge by this directory from now on; return which models differ from the last one's."""
        before, self._directory = self._directory, _with_revoked_keys(directory, self._directory)
        self.has_directory, self._of_user = True, None
        changes = model_changes(before.models, directory.models)
        if _without_models(before) != _without_models(directory):
            self._models, self._names, self._applicable = {}, {}, {}
        elif directory.keys is not before.keys:
            # A key may have other limits now; the same keys are the same object.
            self._applicable = {}
        self._forget(changes)
        self.replicas.update(changes, self.clock.monotonic(), self.clock.utc())
        for model in changes.removed:
            self.queues.remove(model)
        for model in changes.new:
            self.queues.renew(model)
        self.queues.pump()
        return changes

    def _forget(self, changes: ModelChanges) -> None:
        """Forget what was derived from models that changed: one tenant may edit his without end."""
        changed = (*changes.old, *changes.new)
        for tenant in tuple(self._models):
            if any(may_use(tenant, model) for model in changed):
                del self._models[tenant]
        for scope in [scope for scope in self._names if scope[0] not in self._models]:
            del self._names[scope]
        uids = {model.uid for model in changed}
        for key in [key for key in self._applicable if key[-1] in uids]:
            del self._applicable[key]
        for model in changes.removed:
            self.demand.pop(model.service, None)
            self.arrivals.forget(model)

    async def identify(self, headers: Mapping[bytes, bytes], address: str) -> Identity:
        """Return who sends a request with these headers from this address.

        Raises RequestError with status 401 or 503.
        """
        return await self._identifier.identify(headers, self._directory, address)

    def weight_of(self, identity: Identity) -> float:
        """Return the weight of the sender's tenant where tenants share."""
        tenant = self._directory.tenants.get(identity.tenant)
        return tenant.weight if tenant else 1.0

    def visible_models(self, identity: Identity) -> ModelsByName:
        """Return the models that the sender may use, by every name that they have."""
        return visible_models(self._models_of(identity.tenant), identity)

    def find_model(self, identity: Identity, name: str) -> OfferedModel:
        """Return the model of this name.

        Raises RequestError with similar names that the sender may use.
        """
        model = resolve_model(self._models_of(identity.tenant), identity, name)
        if model is None:
            names = self._known_names(identity)
            raise unknown_model(name, similar_names(name, names), names)
        return model

    async def confirm(self, headers: Mapping[bytes, bytes], address: str, ticket: Ticket) -> None:
        """Ask again who sends an admitted request, and whether he may use its model by this name.

        Raises RequestError with status 401, 404 or 503.
        """
        identity = await self.identify(headers, address)
        name, admitted = ticket.shape.model, ticket.model
        model = self.find_model(identity, name)
        if model.uid == admitted.uid:
            return
        # The name stands for another service now.
        if all(each.uid != admitted.uid for each in self.visible_models(identity).values()):
            raise unknown_model(name, (), self._known_names(identity))
        # A tenant may give a name to another service of its own, also while requests wait.
        if model.tenant is None or model.tenant != admitted.tenant:
            raise RequestError(RequestReason.NO_READY_REPLICA, model.service)

    async def admit(self, identity: Identity, model: OfferedModel, shape: RequestShape) -> Ticket:
        """Return a ticket with a replica, perhaps after a wait.

        Raises RequestError with status 400, 403, 429 or 503.
        """
        is_asleep = model.is_asleep and not self.replicas.ready_count(model)
        if is_asleep and not model.may_wake(identity.tenant):
            # It is no demand, which would start a replica.
            raise RequestError(RequestReason.SERVICE_ASLEEP, model.service, identity.tenant)
        shape = self._with_its_priority(model, shape)
        admitted = await self._within_limits(identity, model, shape)
        self.arrivals.add(identity, model, shape)
        ticket = Ticket(
            model=model,
            shape=shape,
            admitted=admitted,
            work_seconds=self.replicas.work_seconds(model, shape),
        )
        try:
            queue = self.queues.of(model)
            ticket.sent = queue.send_now(shape, self.clock.monotonic())
            if ticket.sent is None:
                ticket.sent = await self._wait(identity, ticket)
        except BaseException:
            self.limits.settle(admitted, input_tokens=0, output_tokens=0)
            raise
        demand = ticket.demand = self.demand.setdefault(model.service, ticket.demand)
        demand.in_flight += 1
        demand.work_ns += ticket.work_ns
        return ticket

    def send_again(
        self,
        ticket: Ticket,
        tried: Collection[str],
        engine: str | None = None,
        *,
        beyond_context: int = 0,
    ) -> bool:
        """Send the request to a replica that was not tried; False if there is none.

        It has the same `engine`, if one is given, and a longer context than `beyond_context`.
        """
        states = self._untried(ticket, tried, engine)
        if beyond_context:
            states = [each for each in states if (each.replica.max_model_len or 0) > beyond_context]
        sent = self.replicas.send(ticket.model, ticket.shape, self.clock.monotonic(), states)
        if sent is None:
            return False
        if ticket.sent is not None:
            ticket.former = (*ticket.former, ticket.sent)
        ticket.sent = sent
        return True

    def other(
        self, ticket: Ticket, tried: Collection[str], *, free: bool = False
    ) -> EngineReplica | None:
        """Return a replica that was not tried and could go on with the stream of a request.

        It is the one with the fewest requests for its limit; with `free` it has a place for it now.
        """
        sent = ticket.sent
        if sent is None:
            return None
        now = self.clock.monotonic()
        states = self._untried(ticket, tried, sent.choice.replica.engine)
        able = (
            state
            for state in states
            if state.ready_at is not None and not state.replica.leaving
            if not free or sum(state.load(now)) < state.max_sequences
        )
        least = min(able, key=partial(relative_load, now=now), default=None)
        return least.replica if least is not None else None

    def _untried(
        self, ticket: Ticket, tried: Collection[str], engine: str | None
    ) -> list[ReplicaState]:
        states = self.replicas.untried(ticket.model, ticket.shape, tried)
        return [state for state in states if engine in (None, state.replica.engine)]

    def finish(self, ticket: Ticket, *, input_tokens: int, output_tokens: int) -> None:
        """End the request with the tokens that it took."""
        if ticket.sent is not None:
            ticket.sent.end()
        self.limits.settle(ticket.admitted, input_tokens=input_tokens, output_tokens=output_tokens)
        service, demand = ticket.model.service, ticket.demand
        demand.in_flight -= 1
        demand.work_ns -= ticket.work_ns
        if not demand.in_flight and self.demand.get(service) is demand:
            del self.demand[service]

    def _with_its_priority(self, model: OfferedModel, shape: RequestShape) -> RequestShape:
        """Return the request as it can wait: while its prompt is read, all others have to."""
        if not shape.priority.yields:
            return shape
        seconds, most = self.replicas.read_seconds(model, shape), model.ttft_seconds / 2
        if seconds <= most:
            return shape
        if shape.priority is RequestPriority.SHEDDABLE:
            details = shape.input_tokens, f"{seconds:.1f}", f"{most:g}"
            raise RequestError(RequestReason.SHEDDABLE_TOO_LONG, model.service, *details)
        return replace(shape, priority=RequestPriority.DEFAULT)

    async def _within_limits(
        self, identity: Identity, model: OfferedModel, shape: RequestShape
    ) -> Admitted:
        limits = self._limits_of(identity, model)
        for _ in range(_MAX_BORROWINGS):
            answer = self.limits.take(limits, shape, self.clock.monotonic())
            if isinstance(answer, Admitted):
                return answer
            if isinstance(answer, LimitRefusal):
                raise over_limit(answer)
            if not await self._borrow(answer):
                break
        raise RequestError(RequestReason.LIMITS_UNAVAILABLE)

    async def _wait(self, identity: Identity, ticket: Ticket) -> SentRequest:
        model, now = ticket.model, self.clock.monotonic()
        is_ready = self.replicas.ready_count(model) > 0
        if not is_ready and not model.may_sleep:
            stopped, unready = RequestReason.SERVICE_STOPPED, RequestReason.NO_READY_REPLICA
            raise RequestError(stopped if model.stopped else unready, model.service)
        seconds, priority = _READY_SECONDS if is_ready else _WAKING_SECONDS, ticket.shape.priority
        if is_ready and priority is RequestPriority.SHEDDABLE:
            # It is of no use where it is late.
            seconds = model.ttft_seconds
        entry = QueueEntry(
            tenant=identity.tenant,
            weight=self.weight_of(identity),
            service_class=model.service_class,
            priority=priority,
            work_seconds=ticket.work_seconds,
            due=now + model.ttft_seconds,
            deadline=now + seconds,
        )
        queue = self.queues.of(model)
        future = queue.offer(entry, ticket.shape, now)
        if not is_ready:
            self._wake()
        try:
            sent = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().end()
            queue.leave(entry)
            raise
        ticket.queue_ns = int((self.clock.monotonic() - now) * 1e9)
        return sent

    def _models_of(self, tenant: str) -> ModelsByName:
        models = self._models.get(tenant)
        if models is None:
            # Tenants ask one after the other when a model changed that all may use.
            of_user = self._of_user = self._of_user or models_by_user(self._directory.models)
            directory = replace(self._directory, models=tuple(of_user(tenant)))
            models = self._models[tenant] = tenant_models(directory, tenant)
        return models

    def _known_names(self, identity: Identity) -> Sequence[str]:
        """Return names of models that the sender may use, in order."""
        models = self._models_of(identity.tenant)
        if identity.models:
            return scoped_names(models, identity)
        scope = identity.tenant, identity.services
        names = self._names.get(scope)
        if names is None:
            names = self._names[scope] = tuple(visible_models(models, identity))
        return names

    def _limits_of(self, identity: Identity, model: OfferedModel) -> ApplicableLimits:
        # Most keys have no limits of their own: those of their tenants are the same.
        own_key = None if identity.limits is None else identity.key
        key = (identity.tenant, identity.team, own_key, model.uid)
        limits = self._applicable.get(key)
        if limits is None:
            if len(self._applicable) >= _MAX_CACHED_LIMITS:
                self._applicable.clear()
            limits = self._applicable[key] = applicable_limits(self._directory, identity, model)
        return limits


def _without_models(directory: Directory) -> Directory:
    return replace(directory, models=(), keys={}, revoked_keys={})


def _with_revoked_keys(directory: Directory, last: Directory) -> Directory:
    """Remember the names of the keys that the directory before had."""
    if directory.keys is last.keys:
        return replace(directory, revoked_keys=last.revoked_keys)
    known = {**last.revoked_keys, **last.keys}
    revoked = [(digest, key) for digest, key in known.items() if digest not in directory.keys]
    return replace(directory, revoked_keys=dict(revoked[-_MAX_REVOKED_KEYS:]))
