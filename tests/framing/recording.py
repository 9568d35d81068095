"""A gateway and its engine, both of which write down what reaches them, and a raw client."""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any, cast

from typing_extensions import override

from tessera.gateway.http.protocol import GatewayProtocol
from tests.framing.strict import Request, Response, read, read_responses
from tests.gateway.harness import CHAT, COMPLETION, KEY, a_directory, a_gateway, a_model, a_replica

CHAT_PATH = b"/v1/chat/completions"
AUTHORIZATION = f"Bearer {KEY}".encode()
# What an engine gets of the headers of a client, beside those of its own connection.
_ENGINE_HEADERS = {b"host", b"content-type", b"content-length", b"x-request-id"}
# Far longer than anything here takes on a busy machine; it ends a case that hangs.
_SECONDS = 30


@dataclass
class Recording:
    """What reached the gateway and the engine, by connections of the gateway and by requests."""

    bytes_read: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    """By the port of the other end, as are the requests."""
    heads: dict[int, list[Request]] = field(default_factory=lambda: defaultdict(list))
    """Requests that the application got, without their bodies and offers to upgrade."""
    calls: list[Request] = field(default_factory=list)
    """Requests that the engine got."""
    ended: set[int] = field(default_factory=set)
    """Connections of the gateway that are no more."""

    def clear(self) -> None:
        self.bytes_read.clear()
        self.heads.clear()
        self.calls.clear()
        self.ended.clear()


class _Engine(asyncio.Protocol):
    """Answers with the digest of the body and the id of each request."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._received = b""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += data
        reading = read(self._received)
        self._received = self._received[reading.size :]
        for request in reading.requests:
            self._recording.calls.append(request)
            answer = json.dumps(answer_to(request.id, request.body)).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(answer), answer)
            )


class _Wire(asyncio.Protocol):
    """The client's end of a connection."""

    def __init__(self) -> None:
        self.received = b""
        self.changed = asyncio.Event()
        self.closed = False

    @override
    def data_received(self, data: bytes) -> None:
        self.received += data
        self.changed.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.changed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a client got."""

    received: bytes
    ended_first: bool
    """The other end closed the connection before the client had what it waited for."""


def answer_to(request_id: str, body: bytes) -> dict[str, Any]:
    """Return the completion by which a client knows its own request."""
    content = f"{request_id} {hashlib.sha256(body).hexdigest()}"
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    return {**COMPLETION, "choices": [choice]}


def is_for_engine(request: Request) -> bool:
    """Tell whether the gateway relays a request."""
    if request.method != b"POST" or request.target.partition(b"?")[0] != CHAT_PATH:
        return False
    if dict(request.headers).get(b"authorization") != AUTHORIZATION:
        return False
    try:
        # Text of fields that the gateway does not read is its engine's to refuse.
        body = json.loads(request.body.decode(errors="replace"))
    except ValueError:
        return False
    return isinstance(body, dict) and body.get("model") == CHAT["model"]


def wrong_response(request: Request, response: Response) -> str | None:
    """Say why a response is not that of the request, if it is not: `kind: what`."""
    if request.id and response.headers.get(b"x-request-id", b"").decode() != request.id:
        return f"response of another: {request.id}, {response}"
    if is_for_engine(request):
        if response.status != 200:
            return f"no answer: {request.id}, {response}"
        request_id = response.headers[b"x-request-id"].decode()
        if json.loads(response.body) != answer_to(request_id, request.body):
            return f"answer of another: {request.id}, {response}"
    elif response.status == 200 and b'"choices"' in response.body:
        return f"needless answer: {request.id}, {response}"
    return None


def calls_of(request: Request, calls: Sequence[Request]) -> list[Request]:
    """Return the calls of the engine for a request."""
    if request.id:
        return [call for call in calls if call.id == request.id]
    return [call for call in calls if call.body == request.body]


def wrong_call(request: Request, calls: Sequence[Request]) -> str | None:
    """Say what an engine got else than exactly this request, or nothing of it: `kind: what`."""
    if len(calls) != is_for_engine(request):
        return f"number of calls: {request.id}, {calls}"
    for call in calls:
        if (call.method, call.target, call.body) != (b"POST", request.target, request.body):
            return f"another call: {request.id}, {call}"
        if {name for name, _ in call.headers} != _ENGINE_HEADERS:
            return f"headers of a call: {request.id}, {call}"
    return None


@asynccontextmanager
async def a_recorded_gateway(
    protocol: type[GatewayProtocol] = GatewayProtocol,
) -> AsyncIterator[tuple[int, Recording]]:
    """Run a gateway before an engine; return its port, and what both get."""
    recording = Recording()
    loop = asyncio.get_running_loop()
    engine = await loop.create_server(lambda: _Engine(recording), "127.0.0.1", 0)
    with closing(engine):
        host, port = engine.sockets[0].getsockname()[:2]
        async with a_gateway(a_directory(a_model(a_replica(f"{host}:{port}")))) as gateway:
            while not gateway.server.started:  # noqa: ASYNC110 - it says so by nothing else
                await asyncio.sleep(0)
            config = gateway.server.config
            config.loaded_app = _recorded(config.loaded_app, recording)
            config.http_protocol_class = _tapped(protocol, recording)
            yield gateway.port, recording


def _recorded(app: Callable[..., Awaitable[None]], recording: Recording) -> Any:
    async def record(scope: dict[str, Any], receive: Any, send: Any) -> None:
        target = scope["raw_path"] + b"?" * bool(scope["query_string"]) + scope["query_string"]
        headers = [
            (name, value.strip(b" \t")) for name, value in scope["headers"] if name != b"upgrade"
        ]
        recording.heads[scope["client"][1]].append(
            Request(method=scope["method"].encode(), target=target, headers=tuple(headers))
        )
        await app(scope, receive, send)

    return record


def _tapped(protocol: type[GatewayProtocol], recording: Recording) -> type[GatewayProtocol]:
    class Tapped(protocol):  # type: ignore[misc, valid-type] # a class is a value here
        @override
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            # None if the other end was gone at once.
            self.peer_port = self.client[1] if self.client else 0

        @override
        def data_received(self, data: bytes) -> None:
            recording.bytes_read[self.peer_port] += data
            super().data_received(data)

        @override
        def connection_lost(self, exc: Exception | None) -> None:
            recording.ended.add(self.peer_port)
            super().connection_lost(exc)

    return Tapped


class Client:
    """One connection to the gateway, or to a proxy before it."""

    def __init__(self, transport: asyncio.Transport, wire: _Wire) -> None:
        self._transport = transport
        self._wire = wire
        self.port: int = transport.get_extra_info("sockname")[1]

    @classmethod
    async def connect(cls, port: int) -> "Client":
        loop = asyncio.get_running_loop()
        transport, wire = await loop.create_connection(_Wire, "127.0.0.1", port)
        return cls(transport, wire)

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Send pieces, of which the other end probably reads each by itself."""
        for piece in pieces:
            if self._transport.is_closing():
                return
            self._transport.write(piece)
            for _ in range(2 * (len(pieces) > 1)):
                await asyncio.sleep(0)

    async def responses(self, methods: Sequence[bytes]) -> list[Response] | None:
        """Wait for the responses to requests of these methods; None if the connection ends."""
        async with asyncio.timeout(_SECONDS):
            while True:
                try:
                    responses = read_responses(self._wire.received, methods)
                except ValueError:
                    responses = []
                if len(responses) >= len(methods):
                    return responses
                if self._wire.closed:
                    return None
                self._wire.changed.clear()
                await self._wire.changed.wait()

    async def ended(self) -> bytes:
        """Wait until the other end closes, and return all that came."""
        async with asyncio.timeout(_SECONDS):
            while not self._wire.closed:
                self._wire.changed.clear()
                await self._wire.changed.wait()
        return self._wire.received

    @property
    def received(self) -> bytes:
        return self._wire.received

    def finish(self) -> None:
        """Send the end of the connection."""
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.abort()
