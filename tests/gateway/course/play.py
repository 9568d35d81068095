"""Plays one course of a request in virtual time, and records all that is seen of it.

The gateway is the product's, from the bytes of its clients to the bytes that engines get. Clients
and engines are lists of steps; what is outside of the gateway acts at given moments.
"""

import asyncio
import dataclasses
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from typing_extensions import override

from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.limits.fair_queue import QueueBounds
from tessera.gateway.bodies.memory import MAX_HELD_BYTES, Memory
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.identify.authentication import Authenticator
from tessera.gateway.identify.token_reviews import TokenSender
from tessera.gateway.identify.token_verifier import TokenVerdict
from tessera.gateway.receive.receiver import BodyBounds
from tessera.gateway.refusals import RequestError
from tessera.gateway.requests.admission import Admission
from tessera.gateway.requests.app import GatewayApp
from tessera.gateway.server import GatewayServer
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.gateway.course.virtual_loop import Peer, VirtualLoop, connect
from tests.gateway.harness import LocalAccounts
from tests.text_records import step_lines, text_of, value_lines

_POLL_SECONDS, _POLLS_PER_MOVE, _POLLS_PER_RENEWAL = 0.25, 4, 2
# Readers from outside come at such moments, each so much later than the one before.
_FIRST_READING, _LATER = 0.0023, 1.7
_MAX_SECONDS = 4000.0
# After the last request ended: connections close, and what was forgotten shows itself.
_REST_SECONDS = 3.0
# Until what a client sent has become a task of the gateway.
_ARRIVAL_SECONDS = 0.01
_LONG_BYTES = 3000

Action = Literal["send", "close", "reset", "await", "stop reading", "read", "read on"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a client or an engine does, after so many seconds."""

    seconds: float
    action: Action
    data: bytes = b""
    """To send, or to wait for among all that came."""
    size: int = 0
    """Bytes to read."""


Script = tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedEngine:
    """An engine: what it does with one request after the other, the last script again and again."""

    answers: tuple[Script, ...] = ()
    answer: Callable[[], Script] | None = None
    """What it does with the next request instead."""
    connects: Literal["at once", "refused", "never"] = "at once"
    prompt_tokens: int = 4
    """As it says at `/tokenize`, and with the answer so far."""
    begun_tokens: int = 6
    tokenizes: Script | None = None
    """What it does at `/tokenize` instead."""
    reads: bool = True
    """Whether it reads what it gets; else it has what its machine takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """What happens outside of requests."""

    seconds: float
    directory: Directory | None = None
    """It is judged by another directory."""
    drains: bool = False
    """The gateway begins to drain."""
    cancels: bool = False
    """Its time to drain is over."""
    recorder_refuses: RequestReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A request, with all that it meets."""

    name: str
    directory: Directory
    engines: Mapping[str, PlayedEngine]
    """By address."""
    clients: tuple[Script, ...]
    """The last one sends the request that is meant; the others are in its way."""
    happenings: tuple[Happening, ...] = ()
    bounds: BodyBounds = dataclasses.field(default_factory=BodyBounds)
    queue_bounds: QueueBounds = dataclasses.field(default_factory=QueueBounds)
    held_bytes: int = MAX_HELD_BYTES
    idle_seconds: float = 30.0
    verify_seconds: float = 0.0203
    """That it takes to verify a token."""
    lends: Literal["yes", "no", "broken"] = "yes"
    """How accounts answer that lend from limits."""


class _Log:
    """What comes, with its moments; what comes at one moment is one."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._parts: list[tuple[int, bytearray | str]] = []

    def add(self, data: bytes) -> None:
        micros = self._loop.micros
        if self._parts:
            last_micros, last = self._parts[-1]
            if isinstance(last, bytearray) and last_micros == micros:
                last += data
                return
        self._parts.append((micros, bytearray(data)))

    def note(self, text: str) -> None:
        self._parts.append((self._loop.micros, text))

    def as_json(self) -> list[Any]:
        return [
            [micros, part if isinstance(part, str) else _text(bytes(part))]
            for micros, part in self._parts
        ]


class _Player(Peer):
    """A peer that does what its script says."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        super().__init__(loop)
        self.name = name
        self.log = _Log(loop)
        self.seen = bytearray()
        self.is_closed = False

    @override
    def received(self, data: bytes) -> None:
        self.seen += data
        self.log.add(data)

    @override
    def ended(self, dropped_bytes: int) -> None:
        self.is_closed = True
        self.log.note(f"closed, {dropped_bytes} bytes dropped" if dropped_bytes else "closed")
        self.on_change.set()

    @override
    def half_ended(self) -> None:
        self.log.note("nothing more is sent")

    async def play(self, script: Script) -> None:
        for step in script:
            if step.action == "await":
                while step.data not in self.seen and not self.is_closed:
                    self.on_change.clear()
                    await self.on_change.wait()
            await asyncio.sleep(step.seconds)
            if step.action == "send":
                await self.send(step.data)
            elif step.action == "close":
                self.finish()
            elif step.action == "reset":
                self.reset()
            elif step.action == "stop reading":
                self.reads = False
            elif step.action == "read":
                self.read(step.size)
            elif step.action == "read on":
                self.reads = True
                self.read(len(self.unread))
            self.did(step)

    def did(self, step: Step) -> None:
        """Hear that a step is done."""


@dataclass(frozen=True, slots=True)
class _ClientSocket:
    """Stands for the connection to a client, of which this machine keeps nothing."""

    address: str

    def fileno(self) -> int:
        """Return the number of no descriptor."""
        return -1

    def getpeername(self) -> tuple[str, int]:
        """Return the client's end."""
        return self.address, 40000

    def getsockname(self) -> tuple[str, int]:
        """Return the gateway's end."""
        return "192.0.2.99", 80


class _Client(_Player):
    """A client, at whose steps the readers of the gateway look too."""

    def __init__(self, play: "Play", name: str) -> None:
        super().__init__(play.loop, name)
        self._play = play

    @override
    def did(self, step: Step) -> None:
        if step.action not in ("send", "await"):
            self._play.read(f"{self.name}: {step.action}")


class _EngineConnection(_Player):
    """One connection of an engine."""

    def __init__(self, loop: VirtualLoop, engine: PlayedEngine, answers: deque[Script]) -> None:
        super().__init__(loop, "engine")
        self._engine, self._answers = engine, answers
        self._playing: asyncio.Task[None] | None = None
        self.reads = engine.reads

    @override
    def received(self, data: bytes) -> None:
        super().received(data)
        head, end, body = bytes(self.seen).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if not end or length is None or len(body) < int(length[1]):
            return
        self.seen.clear()
        if head.startswith(b"POST /tokenize "):
            script = self._engine.tokenizes or self._tokenized(body)
        elif self._engine.answer is not None:
            script = self._engine.answer()
        elif len(self._answers) > 1:
            script = self._answers.popleft()
        else:
            script = self._answers[0] if self._answers else ()
        self._playing = self.loop.create_task(self.play(script))

    @override
    def ended(self, dropped_bytes: int) -> None:
        super().ended(dropped_bytes)
        if self._playing is not None:
            self._playing.cancel()

    @override
    def did(self, step: Step) -> None:
        self.log.note(f"did {step.action}")

    def _tokenized(self, body: bytes) -> Script:
        asked = json.loads(body)
        is_begun = asked.get("continue_final_message") or "word" in str(asked.get("prompt", ""))
        count = self._engine.begun_tokens if is_begun else self._engine.prompt_tokens
        answer = {"count": count, "tokens": list(range(count)), "max_model_len": 99}
        return (Step(0.0037, "send", whole_answer(answer)),)


def whole_answer(body: object, status: int = 200, content_type: str = "application/json") -> bytes:
    """Return a response that is no stream, as engines write it."""
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


class Play:
    """One course in its own time."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.loop = loop = VirtualLoop()
        self.clock = loop.clock
        self.metrics = GatewayMetrics()
        self.records: list[tuple[int, UsageRecord]] = []
        self.begun: list[tuple[int, UsageRecord]] = []
        self.readings: list[Any] = []
        self.directory = course.directory
        self.accounts = LocalAccounts(self.clock.monotonic)
        self.accounts.answers = course.lends == "yes"
        self.accounts.unix_time = lambda: self.clock.time_ns() / 1e9
        self.woken: list[int] = []
        self.admission = Admission(
            Authenticator(self._verify, clock=self.clock.utc, monotonic=self.clock.monotonic),
            self._borrow,
            lambda: self.woken.append(loop.micros),
            bounds=course.queue_bounds,
            clock=self.clock,
        )
        self.accounts.admission = self.admission
        self.admission.update(course.directory)
        self.engines = EngineSession(course.idle_seconds, self.clock)
        self.app = GatewayApp(
            self.admission, self.engines, self._record, course.bounds, Memory(course.held_bytes)
        )
        self.app.note_begun = lambda record: self.begun.append((loop.micros, record))
        self.server = GatewayServer(self.app, announce_seconds=0, drain_seconds=5)
        self.server.config.load()
        self.connections: dict[str, list[_EngineConnection]] = {}
        known = [course.directory, *(each.directory for each in course.happenings)]
        for model in (model for each in known if each is not None for model in each.models):
            assert {replica.address for replica in model.replicas} <= course.engines.keys()
        for address, engine in course.engines.items():
            host, _, port = address.rpartition(":")
            self._serve(address, (host, int(port)), engine)

    def _serve(self, address: str, place: tuple[str, int], engine: PlayedEngine) -> None:
        connections = self.connections[address] = []
        answers = deque(engine.answers)

        def connected() -> Peer | None:
            if engine.connects == "refused":
                raise ConnectionRefusedError
            if engine.connects == "never":
                return None
            connections.append(_EngineConnection(self.loop, engine, answers))
            return connections[-1]

        self.loop.servers[place] = connected

    async def _verify(self, token: str, directory: Directory, sender: TokenSender) -> TokenVerdict:
        """Return what the token itself says."""
        del directory, sender
        await asyncio.sleep(self.course.verify_seconds)
        said = token.partition(".")[0]
        if said in list(RequestReason):
            return RequestReason(said)
        return Identity(tenant=said, user="alice")

    async def _borrow(self, request: BorrowRequest) -> bool:
        if self.course.lends == "broken":
            raise ZeroDivisionError
        return await self.accounts.borrow(request)

    def _record(self, record: UsageRecord) -> None:
        self.records.append((self.loop.micros, record))
        self.metrics.requests.observe(record)

    def read(self, why: str) -> None:
        """Look from outside, as pages and notes do."""
        running, count = self.app.running(10)
        self.readings.append(
            {
                "at": self.loop.micros,
                "why": why,
                "running": sorted(
                    (request.model_dump(mode="json") for request in running), key=json.dumps
                ),
                "count": count,
                "awaiting": {
                    str(ref): [streams.overdue, round(streams.oldest_seconds, 6)]
                    for ref, streams in sorted(self.app.awaiting().items())
                },
                "partial": sorted(
                    (_fields(record) for record in self.app.partial_records()),
                    key=lambda record: record["started_at_ns"],
                ),
                **self._state(),
            }
        )

    def _state(self) -> Mapping[str, Any]:
        admission = self.admission
        return {
            "held_bytes": self.app.memory.size,
            "demand": {
                str(ref): dataclasses.asdict(count) for ref, count in admission.demand.items()
            },
            "queued": {
                str(queue.model.service): [len(queue), round(queue.work_seconds, 6)]
                for queue in admission.queues
                if len(queue)
            },
            "replicas": {
                state.replica.pod.name: {
                    name: getattr(state, name)
                    for name in ("requests", "awaiting", "prefill_tokens", "yielding")
                }
                | {"health": dataclasses.asdict(state.health)}
                for model in self.directory.models
                for state in admission.replicas.states(model)
            },
        }

    async def _read_on(self) -> None:
        seconds = _FIRST_READING
        while True:
            await asyncio.sleep(seconds)
            self.read("page")
            seconds = self.loop.micros / 1e6 * (_LATER - 1)

    async def _poll(self) -> None:
        """Do what a gateway does four times a second."""
        polls = 0
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            polls += 1
            self.admission.queues.pump()
            if polls % _POLLS_PER_MOVE == 0:
                self.app.move_streams(self.directory.moved_replicas())
            if polls % _POLLS_PER_RENEWAL == 0:
                asks = self.admission.reservations.charges.renewal()
                if asks:
                    await self.accounts.borrow(BorrowRequest(charges=asks))

    async def _happen(self) -> None:
        for happening in self.course.happenings:
            await asyncio.sleep(happening.seconds - self.loop.micros / 1e6)
            if happening.directory is not None:
                changes = self.admission.update(happening.directory)
                self.directory = happening.directory
                self.app.leave_replicas(changes.removed_replicas)
            if happening.drains:
                self.app.draining = True
            if happening.cancels:
                # As uvicorn does once the time to drain is over.
                for task in sorted(self.server.server_state.tasks, key=_number):
                    task.cancel()
            if happening.recorder_refuses is not None:
                self.app.check_room = partial(_refuse, happening.recorder_refuses)

    def _connected(self, number: int) -> _Client:
        client = _Client(self, f"client-{number}")
        protocol = GatewayProtocol(
            self.server.config, self.server.server_state, {}, _loop=self.loop
        )
        connect(
            self.loop,
            protocol,
            client,
            {"socket": _ClientSocket(f"192.0.2.{number}")},
        )
        return client

    async def _play(self) -> Mapping[str, Any]:
        beside = [
            asyncio.create_task(each) for each in (self._read_on(), self._poll(), self._happen())
        ]
        clients = [self._connected(number) for number, _ in enumerate(self.course.clients, 1)]
        async with asyncio.timeout(_MAX_SECONDS):
            await asyncio.gather(
                *(
                    client.play(script)
                    for client, script in zip(clients, self.course.clients, strict=True)
                )
            )
            await asyncio.sleep(_ARRIVAL_SECONDS)
            while tasks := self.server.server_state.tasks:
                await asyncio.wait(tasks)
                await asyncio.sleep(_ARRIVAL_SECONDS)
        await asyncio.sleep(_REST_SECONDS)
        self.read("end")
        for task in beside:
            if task.done():
                # Else what failed here would not be missed.
                task.result()
            task.cancel()
        await self.engines.close()
        return self._recorded(clients)

    def _recorded(self, clients: Sequence[_Client]) -> Mapping[str, Any]:
        ids = sorted({record.request_id for _, record in self.records})
        arrivals = self.admission.arrivals.take()
        accounts = {} if not self.accounts.charges else {"charges": self.accounts.as_json()}
        return {
            **accounts,
            "course": self.course.name,
            "clients": {client.name: client.log.as_json() for client in clients},
            "engines": {
                address: [connection.log.as_json() for connection in connections]
                for address, connections in sorted(self.connections.items())
            },
            "records": _timed(self.records),
            "begun": _timed(self.begun),
            "metrics": sorted(
                line
                for line in self.metrics.page().decode().splitlines()
                if line[:1] != "#" and "_created" not in line and not line.endswith(" 0.0")
            ),
            "readings": self.readings,
            "explanations": [
                self.app.explain(each).model_dump(mode="json", exclude_defaults=True)
                for each in ids
            ],
            "limits": dataclasses.asdict(self.admission.limits),
            "arrivals": {str(ref): count for ref, count in sorted(arrivals.items())},
            "woken": self.woken,
        }

    def run(self) -> Mapping[str, Any]:
        """Return what is recorded."""
        try:
            return self.loop.run_until_complete(self._play())
        finally:
            self.loop.run_until_complete(_end_others())
            self.loop.close()


def _refuse(reason: RequestReason, _: str) -> None:
    raise RequestError(reason, 1000, 60)


def _number(task: asyncio.Task[None]) -> int:
    """Return which task of this process it is."""
    return int(task.get_name().rpartition("-")[2])


async def _end_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _timed(records: Sequence[tuple[int, UsageRecord]]) -> list[Any]:
    # Those of one moment come in any order.
    ordered = sorted(records, key=lambda timed: (timed[0], timed[1].started_at_ns))
    return [[micros, _fields(record)] for micros, record in ordered]


_OF_ROUTES = "model_route", "target", "target_reason", "skipped_targets"
_OF_CHARGES = "charge_nanos", "currency", "price_list", "charges", "owner", "service_class"


def _fields(record: UsageRecord) -> dict[str, Any]:
    """Return the fields of a record; without those of charges and routes that it has not."""
    fields = dataclasses.asdict(record)
    if not fields["waste_nanos"]:
        del fields["waste_nanos"]
    if not record.model_route:
        for name in _OF_ROUTES:
            assert not fields.pop(name), (name, record)
    if record.charge_nanos is None:
        for name in _OF_CHARGES:
            assert not fields.pop(name), (name, record)
    return fields


# Of records, and of requests without an `x-request-id`.
_NAMES = re.compile(r"\b(?:[0-9a-f]{16}-\d+|[0-9a-f]{32})\b")


def _text(data: bytes) -> str:
    if len(data) > _LONG_BYTES:
        # What a process draws by chance is no part of it.
        known = _NAMES.sub("", data.decode("latin-1")).encode("latin-1")
        return f"{len(data)} bytes, sha256 {hashlib.sha256(known).hexdigest()}"
    return data.decode("utf-8", "backslashreplace")


def as_json(record: Mapping[str, Any]) -> str:
    """Return a record in one form; what a process draws by chance is numbered as it comes."""
    text = json.dumps(record, indent=1, sort_keys=True, default=_plain)
    names: dict[str, str] = {}

    def named(match: re.Match[str]) -> str:
        return names.setdefault(match[0], f"{'record' if '-' in match[0] else 'id'}-{len(names)}")

    return _NAMES.sub(named, text) + "\n"


def course_text(text: str) -> str:
    """Return a record in its form of JSON as text; histograms without their buckets."""
    record = json.loads(text)
    record["metrics"] = dict(
        line.rsplit(" ", 1) for line in record["metrics"] if "_bucket{" not in line
    )
    records = [
        {"is": name, "at": micros, **fields}
        for name in ("begun", "records")
        for micros, fields in record.pop(name)
    ]
    readings = record.pop("readings")
    parts = {"readings": step_lines(readings), "usage records": step_lines(records)}
    return text_of({record.pop("course"): value_lines(record), **parts})


def _plain(value: object) -> Any:
    if isinstance(value, (deque, frozenset, set)):
        return sorted(value)
    raise TypeError(type(value))
