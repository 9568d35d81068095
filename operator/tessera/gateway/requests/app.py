"""The ASGI application: reads requests, and answers what needs no engine."""

import asyncio
import heapq
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from tessera.api.ref import Ref
from tessera.domain.explain.request import RequestExplanations
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import AwaitedStreams, RunningRequest
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.bodies.memory import Memory
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.fleet.replicas import SentRequest
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.http.responses import ClientResponse, Message, Receive, Send
from tessera.gateway.identify.senders import Identified, by_name, is_true
from tessera.gateway.outside.client import OutsideClient
from tessera.gateway.outside.source import OutsideSource
from tessera.gateway.paths import PATHS, failure_line
from tessera.gateway.receive.receiver import BodyBounds, Receiver
from tessera.gateway.refusals import RequestError, invalid_request
from tessera.gateway.relay.relay import Relay
from tessera.gateway.requests.admission import Admission
from tessera.gateway.requests.course import RequestCourse, Stations
from tessera.gateway.resolve.chooser import Chooser
from tessera.gateway.route.router import RequestRouter
from tessera.gateway.settle.recent import RecentRequests
from tessera.gateway.settle.settlement import Settlement, refused_record

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TAGS = re.compile(rb"[A-Za-z0-9._/=,-]{0,256}")
_MODELS, _BUDGET = "/v1/models", "/v1/budget"
_SHEDDABLE = "x-tessera-sheddable"
_BOUNDS = BodyBounds()


class GatewayApp:
    """Serves requests."""

    def __init__(
        self,
        admission: Admission,
        engines: EngineSession,
        record: Callable[[UsageRecord], None],
        bounds: BodyBounds = _BOUNDS,
        memory: Memory | None = None,
        outside: OutsideClient | None = None,
    ) -> None:
        """Take `outside`, which asks providers; without it they have no keys."""
        self._admission = admission
        self._clock = admission.clock
        self._record = record
        self.memory = memory or Memory()
        self._recent = RecentRequests()
        self._courses: set[RequestCourse] = set()
        self.draining = False
        """`/readyz` answers 503, and every response closes its connection."""
        self.check_room: Callable[[str], None] = lambda _: None
        """Raises RequestError where there is no room for the record of a request of a tenant."""
        self.note_begun: Callable[[UsageRecord], None] = lambda _: None
        """Takes the record of a request that an engine gets now, as if it ended at once."""
        turns, reading_turns = (Turns(self._clock.thread_time) for _ in range(2))
        models, places = admission.models, admission.places
        charges, outside = admission.reservations.charges, outside or OutsideClient()
        self.stations = Stations(
            receiver=Receiver(bounds, turns, reading_turns),
            models=models,
            router=RequestRouter(admission.senders, models, turns),
            chooser=Chooser(admission.senders, places.replicas, turns),
            reservations=admission.reservations,
            places=places,
            relay=Relay(engines, models, places, charges, turns),
            outside=OutsideSource(outside, models, charges, turns, self._clock),
            settlement=Settlement(admission.reservations, places, self._clock),
            record=self._record_ended,
            note_begun=self._note_begun,
        )
        """What a request passes."""
        admission.reservations.count_prompt = self.stations.relay.count_prompt

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        started_ns, started_at_ns = self._clock.monotonic_ns(), self._clock.time_ns()
        headers = by_name(scope["headers"])
        request_id = _request_id(headers)
        client: GatewayProtocol = scope["state"]["client"]
        response = ClientResponse(send, client, request_id, close=self.draining)
        try:
            if scope["path"] in PATHS:
                await self._relay(scope, headers, request_id, receive, response)
            else:
                await self._answer(scope, headers, response)
        except RequestError as error:
            total_ns = self._clock.monotonic_ns() - started_ns
            path, address = scope["path"], _client_address(scope)
            self._record(refused_record(request_id, path, address, error, started_at_ns, total_ns))
            await response.fail(error, failure_line(path))

    def running(self, limit: int) -> tuple[list[RunningRequest], int]:
        """Return the oldest requests that run, and how many do."""
        now_ns = self._clock.monotonic_ns()
        oldest = heapq.nsmallest(limit, self._courses, key=lambda each: each.identified.started_ns)
        return [course.running(now_ns) for course in oldest], len(self._courses)

    def explain(self, request_id: str) -> RequestExplanations:
        """Return where the last requests with this id went, and why."""
        return self._recent.explain(request_id)

    def leave_replicas(self, uids: Collection[str]) -> None:
        """Go on elsewhere with the protected streams that are at these replicas."""
        for course in tuple(self._courses) if uids else ():
            course.leave_replicas(uids)

    def move_streams(self, uids: Collection[str]) -> None:
        """Go on elsewhere with those that can, of the streams at these replicas, which leave."""
        for course in tuple(self._courses) if uids else ():
            course.move_stream(uids)

    def partial_records(self) -> Sequence[UsageRecord]:
        """Return what the requests that an engine has used so far, as if they ended now."""
        records = (course.partial_record() for course in self._courses)
        return [record for record in records if record is not None]

    def awaiting(self) -> Mapping[Ref, AwaitedStreams]:
        """Return the streams without a token, by service."""
        now_ns = self._clock.monotonic_ns()
        services: dict[Ref, AwaitedStreams] = {}
        for course in self._courses:
            model = course.awaited_model
            if model is not None:
                age = (now_ns - course.identified.started_ns) / 1e9
                overdue, oldest = services.get(model.service, AwaitedStreams())
                services[model.service] = AwaitedStreams(
                    overdue + (age > model.ttft_seconds), max(oldest, age)
                )
        return services

    async def _relay(
        self,
        scope: Message,
        headers: Mapping[bytes, bytes],
        request_id: str,
        receive: Receive,
        response: ClientResponse,
    ) -> None:
        """Relay a request to an engine: the only way to a model, and only after admission."""
        started_ns, started_at_ns = self._clock.monotonic_ns(), self._clock.time_ns()
        path: str = scope["path"]
        if scope["method"] != "POST":
            raise _wrong_method(path, "POST")
        # Nothing is read for a client that does not read the response before.
        await response.client.drained()
        address, senders = _client_address(scope), self._admission.senders
        directory_number = senders.directory_number
        identity = await senders.identify(headers, address)
        response.client.accept(identity.tenant)
        try:
            self.check_room(identity.tenant)
        except RequestError as error:
            error.sender = identity
            raise
        task, client = asyncio.current_task(), response.client
        assert task is not None  # noqa: S101 - a coroutine runs in a task

        def end() -> None:
            # What waits for a client that does not read has to go too.
            if client.reads_slowly:
                client.abort()
            else:
                task.cancel()

        holding = self.memory.open(identity, senders.weight_of(identity), end)
        try:
            identified = Identified(
                path_item=PATHS[path],
                holding=holding,
                query=scope["query_string"],
                headers=headers,
                identity=identity,
                directory_number=directory_number,
                request_id=request_id,
                client_address=address,
                tags=_tags(headers),
                sheddable=is_true(headers, _SHEDDABLE, default=False),
                started_ns=started_ns,
                started_at_ns=started_at_ns,
            )
            await self._pass(identified, receive, response)
        except asyncio.CancelledError:
            # Its body was not complete.
            task.uncancel()
            draining = RequestError(RequestReason.GATEWAY_DRAINING)
            raise (holding.error() if holding.exceeded else draining) from None
        finally:
            holding.close()

    async def _pass(
        self, identified: Identified, receive: Receive, response: ClientResponse
    ) -> None:
        """Receive the body, and let the request pass the stations."""
        body_from_ns = self._clock.monotonic_ns()
        is_whole = response.client.has_whole_request
        body = await self.stations.receiver.receive(identified, receive, is_whole=is_whole)
        # While it came, a key may have been revoked.
        identified.identity = await self._admission.senders.identify_again(identified)
        # How slowly a client sends its body is no time of the service.
        sending_ns = self._clock.monotonic_ns() - body_from_ns
        identified.started_ns += sending_ns
        identified.started_at_ns += sending_ns
        course = RequestCourse(identified, self.stations, response, body)
        # It lets the body go once an engine has it.
        del body
        self._courses.add(course)
        try:
            await course.run()
        finally:
            self._courses.remove(course)

    def _note_begun(self, record: UsageRecord) -> None:
        self.note_begun(record)

    def _record_ended(self, record: UsageRecord, attempts: Sequence[SentRequest]) -> None:
        self._record(record)
        if attempts or record.provider:
            self._recent.add(record, attempts)

    async def _answer(
        self, scope: Message, headers: Mapping[bytes, bytes], response: ClientResponse
    ) -> None:
        """Answer what reaches no engine."""
        method: str = scope["method"]
        path: str = scope["path"]
        is_of_sender = path in (_MODELS, _BUDGET) or path.startswith(f"{_MODELS}/")
        if not is_of_sender and path not in ("/healthz", "/readyz"):
            raise RequestError(RequestReason.UNKNOWN_PATH, method, path[:200])
        if method not in ("GET", "HEAD"):
            raise _wrong_method(path, "GET, HEAD")
        if is_of_sender:
            await self._answer_sender(scope, headers, response)
        elif path == "/readyz" and self.draining:
            await response.send_whole(503, b'{"status":"draining"}')
        elif path == "/readyz" and not self._admission.senders.are_known:
            await response.send_whole(503, b'{"status":"starting"}')
        else:
            await response.send_whole(200, b'{"status":"ok"}')

    async def _answer_sender(
        self, scope: Message, headers: Mapping[bytes, bytes], response: ClientResponse
    ) -> None:
        """Answer with models or budgets of the sender, which counts as a request."""
        client, senders = response.client, self._admission.senders
        await client.drained()
        identity = await senders.identify(headers, _client_address(scope))
        client.accept(identity.tenant)
        holding = self.memory.open(identity, senders.weight_of(identity), client.abort)
        path, models = scope["path"], self._admission.models
        name = path.removeprefix(_MODELS).removeprefix("/")
        reservations = self._admission.reservations
        try:
            allowances = await reservations.count(identity)
            if path == _BUDGET:
                body = await reservations.charges.budget(identity)
            else:
                body = models.listed(identity, name) if name else models.listing(identity)
            if not holding.take(len(body)):
                raise holding.error()
            await response.send_whole(200, body, allowances)
        except RequestError as error:
            error.sender = identity
            raise
        finally:
            holding.close()


def _client_address(scope: Message) -> str:
    client = scope["client"]
    return client[0] if client else ""


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return os.urandom(16).hex()


def _tags(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-tessera-tags", b"")
    if not _TAGS.fullmatch(given):
        raise invalid_request(
            "x-tessera-tags: expected `name=value` pairs joined by commas, 256 bytes at most."
        )
    return given.decode()


def _wrong_method(path: str, allowed: str) -> RequestError:
    headers = ((b"allow", allowed.encode()),)
    return RequestError(RequestReason.METHOD_NOT_ALLOWED, path, allowed, headers=headers)
