"""A gateway on a real socket, and engines that do what a test says."""

import asyncio
import hashlib
import io
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp

from tessera.api.ref import Ref
from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import AccountKey, ChargeAnswer, ChargeAsk
from tessera.domain.gateway.access import key_identity
from tessera.domain.gateway.directory import (
    ApiKey,
    Directory,
    EngineReplica,
    Identity,
    OfferedModel,
)
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.limits.account import Account, BorrowRequest, Lease, SlotAccount
from tessera.domain.limits.fair_queue import QueueBounds
from tessera.gateway.bodies.memory import Memory
from tessera.gateway.http.connections import Connections
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.identify.senders import Identified, Identifier
from tessera.gateway.identify.token_reviews import TokenSender
from tessera.gateway.identify.token_verifier import TokenVerdict
from tessera.gateway.outside.client import OutsideClient
from tessera.gateway.paths import PATHS
from tessera.gateway.receive.receiver import BodyBounds, Received
from tessera.gateway.refusals import RequestError
from tessera.gateway.requests.admission import Admission
from tessera.gateway.requests.app import GatewayApp
from tessera.gateway.resolve.chooser import Chosen
from tessera.gateway.server import Application, GatewayServer, listen
from tests.gateway_builders import grants_for
from world.testing import eventually

KEY = "tsk-team-a"
TENANT = "team-a"
MODEL = "chat"


@dataclass(kw_only=True)
class EngineCall:
    """A request as an engine gets it, and the engine's end of its connection."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """The gateway closed the connection."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self, content_type: str = "text/event-stream", status: int = 200) -> None:
        await self.send(
            f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n"
            "transfer-encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def finish(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(self, body: object, status: int = 200) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.send(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )

    async def stream(self, *events: bytes) -> None:
        await self.begin()
        for each in events:
            await self.chunk(each)
        await self.finish()

    def cut(self) -> None:
        """Close the connection in the middle."""
        self.writer.transport.abort()


Script = Callable[[EngineCall], Awaitable[None]]


class ScriptedEngine:
    """An HTTP server that does what its script says, one connection at a time."""

    def __init__(
        self, script: Script, method: str = "POST", *, at: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        self.script, self._method, self._at = script, method, at
        self.calls: list[EngineCall] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "ScriptedEngine":
        self._server = await asyncio.start_server(self._connected, *self._at)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for call in self.calls:
            call.cut()

    @property
    def address(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = None
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                if not head[0].startswith(f"{self._method} "):
                    # Somebody asks for an engine that had this port before.
                    break
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                call = EngineCall(
                    path=head[0].split()[1], headers=headers, body=body, writer=writer
                )
                self.calls.append(call)
                watch = asyncio.create_task(_watch(reader, call))
                try:
                    await self.script(call)
                finally:
                    watch.cancel()
                    await asyncio.wait((watch,))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if call is not None:
                call.gone.set()
            writer.close()


async def _watch(reader: asyncio.StreamReader, call: EngineCall) -> None:
    """Tell the script that the gateway left; it sends nothing more before it has its answer."""
    await reader.read(1)
    call.gone.set()


class KeyIdentifier:
    """Knows the keys of the directory."""

    async def identify(
        self, headers: Mapping[bytes, bytes], directory: Directory, address: str
    ) -> Identity:
        assert address
        key = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        api_key = directory.keys.get(hashlib.sha256(key).hexdigest())
        identity = key_identity(api_key, datetime(2026, 11, 22, tzinfo=UTC))
        if isinstance(identity, RequestReason):
            raise RequestError(identity)
        return identity


async def no_tokens(token: str, directory: Directory, sender: TokenSender) -> TokenVerdict:
    """Verify tokens where none is sent."""
    raise AssertionError(token, directory, sender)


ChargeExchange: TypeAlias = Callable[[Sequence[ChargeAsk]], Awaitable[Sequence[ChargeAnswer]]]


class LocalAccounts:
    """Lends from accounts in memory."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.admission: Admission | None = None
        self.accounts: dict[str, Account] = {}
        self.slots: dict[str, SlotAccount] = {}
        self.charges: dict[AccountKey, ChargeAccount] = {}
        """As the store has them; records of them are not stored here."""
        self.exchange: ChargeExchange | None = None
        """Of a store that has them instead."""
        self.unix_time: Callable[[], float] = time.time
        self.answers = self.lends_charges = True
        self.asked, self.is_reachable = asyncio.Event(), asyncio.Event()
        self.is_reachable.set()

    def as_json(self) -> dict[str, Any]:
        """Return what the accounts of charges have, by scope."""
        return {
            key.scope: {"settled": account.settled, "lent": account.lent, "limit": account.limit}
            for key, account in self.charges.items()
        }

    async def borrow(self, request: BorrowRequest) -> bool:
        self.asked.set()
        await self.is_reachable.wait()
        if not self.answers or self.admission is None:
            return False
        now = self._monotonic()
        portions = tuple(
            self.accounts.setdefault(
                each.limit.key, Account(level=each.limit.amount, updated_at=now)
            ).borrow(each, now)
            for each in request.portions
        )
        grants = tuple(
            self.slots.setdefault(each.limit.key, SlotAccount()).lease("gateway", each, now)
            for each in request.slots
        )
        self.admission.limits.receive(Lease(portions=portions, slots=grants), now)
        asks = request.charges
        while asks and self.lends_charges:
            answers: Sequence[ChargeAnswer]
            if self.exchange is not None:
                answers = await self.exchange(asks)
            else:
                answers = [
                    self.charges.setdefault(
                        AccountKey(each.scope.key, each.start), ChargeAccount()
                    ).exchange("gateway", each, self.unix_time())
                    for each in asks
                ]
            asks = self.admission.reservations.charges.receive(answers)
        return True


@dataclass(kw_only=True)
class RunningGateway:
    """A gateway that serves, and all that it recorded."""

    app: GatewayApp
    server: GatewayServer
    admission: Admission
    accounts: LocalAccounts
    woken: asyncio.Event
    """A request waits for a sleeping service."""
    url: str
    listener: socket.socket
    port: int
    records: list[UsageRecord]
    recorded: asyncio.Event
    client: aiohttp.ClientSession

    async def post(
        self, body: object, path: str = "/v1/chat/completions", **headers: str
    ) -> "Answer":
        """Send a request, and read the whole response."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(
            self.url + path,
            data=io.BytesIO(data),
            headers={"content-type": "application/json", **headers},
        ) as response:
            return Answer(
                status=response.status, headers=response.headers, body=await response.read()
            )

    async def record(self) -> UsageRecord:
        """Return the only record, once it is there."""
        async with asyncio.timeout(60):
            await self.recorded.wait()
        (record,) = self.records
        return record

    async def take_record(self) -> UsageRecord:
        """Return the only record, once it is there, and forget it."""
        record = await self.record()
        self.records.clear()
        self.recorded.clear()
        return record

    @property
    def held_bytes(self) -> int:
        """Return what all requests hold, which is within the budget."""
        memory = self.app.memory
        assert memory.size <= memory.limit
        return memory.size

    async def wait_for_held_bytes(self, least: int, most: float = math.inf) -> None:
        """Wait until all requests together hold at least, and at most, so many bytes."""

        async def are_held() -> None:
            assert least <= self.held_bytes <= most

        await eventually(are_held)

    @property
    def queued_requests(self) -> int:
        return sum(len(queue) for queue in self.admission.queues)

    async def wait_for_queue(self, requests: int) -> None:
        """Wait until so many requests wait for a place at an engine."""

        async def are_queued() -> None:
            assert self.queued_requests == requests

        await eventually(are_queued)

    async def wait_for_in_flight(self, requests: int) -> None:
        """Wait until engines work at so many requests."""

        async def are_in_flight() -> None:
            counts = self.admission.demand
            assert sum(demand.in_flight for demand in counts.values()) == requests, counts

        await eventually(are_in_flight)

    async def wait_for_tokens(self, tokens: int) -> None:
        """Wait until the client of the oldest request was sent so many tokens."""

        async def are_sent() -> None:
            assert [each.output_tokens for each in self.app.running(1)[0]] == [tokens]

        await eventually(are_sent)


@dataclass(kw_only=True)
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]

    @property
    def events(self) -> list[bytes]:
        return [each + b"\n\n" for each in self.body.split(b"\n\n")[:-1]]


def a_replica(address: str, name: str = "chat-1", **changes: Any) -> EngineReplica:
    values = {
        "pod": Ref("team-a", name),
        "uid": f"uid-{name}",
        "address": address,
        "ready_since": datetime(2026, 11, 1, tzinfo=UTC),
    }
    return EngineReplica(**{**values, **changes})


def a_model(*replicas: EngineReplica, **changes: Any) -> OfferedModel:
    values = {
        "service": Ref("team-a", MODEL),
        "uid": "uid-chat",
        "names": (MODEL,),
        "tenant": TENANT,
        "replicas": replicas,
    }
    return OfferedModel(**{**values, **changes})


def an_api_key(secret: str = KEY, **changes: Any) -> ApiKey:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return ApiKey(**{"name": "ci", "digest": digest, "tenant": TENANT, **changes})


def a_directory(*models: OfferedModel, keys: Sequence[ApiKey] = (), **changes: Any) -> Directory:
    """Return a directory whose models are offered as they say: their names have grants."""
    api_keys = keys or (an_api_key(),)
    fields = {"name_rights": grants_for(*models), **changes}
    return Directory(models=models, keys={key.digest: key for key in api_keys}, **fields)


def an_identified_request(memory: Memory | None = None, **changes: Any) -> Identified:
    """Return a chat request whose body has not come."""
    identity = changes.get("identity", Identity(tenant=TENANT))
    values = {
        "path_item": PATHS["/v1/chat/completions"],
        "query": b"",
        "headers": {},
        "request_id": "request",
        "client_address": "127.0.0.1",
        "tags": "",
        "sheddable": False,
        "identity": identity,
        "directory_number": 0,
        "holding": (memory or Memory()).open(identity, 1.0, lambda: None),
        "started_ns": 0,
        "started_at_ns": 0,
    }
    return Identified(**{**values, **changes})


def a_chosen_request(identity: Identity, model: OfferedModel, shape: RequestShape) -> Chosen:
    """Return a request of these sizes before its limits are asked."""
    body = json.dumps({"model": shape.model, "messages": []}).encode()
    identified = an_identified_request(identity=identity)
    fields = identified.path_item.decoder.decode(body)
    received = Received(
        identified=identified,
        model=fields.model,
        streams=fields.streams,
        fields=fields,
        unlisted=None,
        body=body,
    )
    return Chosen(
        received=received,
        model=model,
        summary=fields.summary(),
        size=fields.prompt_size(body),
        shape=shape,
    )


@asynccontextmanager
async def a_gateway(
    directory: Directory,
    bounds: BodyBounds | None = None,
    *,
    idle_seconds: float = 30,
    drain_seconds: float = 5,
    announce_seconds: float = 0,
    queue_bounds: QueueBounds | None = None,
    memory: Memory | None = None,
    clients: Connections | None = None,
    tls_directory: Path | None = None,
    identifier: Identifier | None = None,
    outside: OutsideClient | None = None,
    **admission_options: Any,
) -> AsyncIterator[RunningGateway]:
    """Run a gateway on a socket of its own."""
    accounts, woken = LocalAccounts(), asyncio.Event()
    admission = Admission(
        identifier or KeyIdentifier(),
        accounts.borrow,
        woken.set,
        bounds=queue_bounds or QueueBounds(),
        **admission_options,
    )
    accounts.admission = admission
    admission.update(directory)
    records: list[UsageRecord] = []
    recorded = asyncio.Event()

    def record(usage_record: UsageRecord) -> None:
        records.append(usage_record)
        recorded.set()

    engines = EngineSession(idle_seconds)
    app = GatewayApp(admission, engines, record, bounds or BodyBounds(), memory, outside)
    server = GatewayServer(
        app,
        announce_seconds=announce_seconds,
        drain_seconds=drain_seconds,
        clients=clients,
        tls_directory=tls_directory,
    )
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engines.close)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_ended, server, serving)
        client = await stack.enter_async_context(
            aiohttp.ClientSession(
                headers={"authorization": f"Bearer {KEY}"},
                connector=aiohttp.TCPConnector(limit=0),
            )
        )
        yield RunningGateway(
            app=app,
            server=server,
            admission=admission,
            accounts=accounts,
            woken=woken,
            url=f"http://127.0.0.1:{port}",
            listener=listener,
            port=port,
            records=records,
            recorded=recorded,
            client=client,
        )


@asynccontextmanager
async def served(app: Application, **options: Any) -> AsyncIterator[str]:
    """Serve an application of a gateway, and return its URL."""
    server = GatewayServer(app, announce_seconds=0, drain_seconds=1, **options)
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await _ended(server, serving)


async def _ended(server: GatewayServer, serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await serving


def event(body: object) -> bytes:
    """Return an event as engines write it."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def a_delta(content: str = " word", **changes: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None, **changes}
    return event({"id": "chatcmpl-0", "model": MODEL, "choices": [choice]})


ROLE = event(
    {
        "id": "chatcmpl-0",
        "model": MODEL,
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
    }
)
END = a_delta("", finish_reason="length")
USAGE = event(
    {
        "id": "chatcmpl-0",
        "model": MODEL,
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
)
DONE = b"data: [DONE]\n\n"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
COMPLETION = {
    "id": "chatcmpl-0",
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word"}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
