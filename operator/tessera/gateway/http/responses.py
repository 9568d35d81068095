"""What a client gets: a whole body, or a stream that may begin with comments while it waits."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Protocol

from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.refusals import JSON, Headers, RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Coroutine[Any, Any, None]]

# Of a stream that its client reads slowly; then the engine is held back.
MAX_UNREAD_BYTES = 2**20
# While others wait for that engine, such a client reads so much in so long: as much as 100 tokens a
# second take in events of text.
UNREAD_SECONDS = 10.0
UNREAD_LEAST_BYTES = 2**18
_EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies of the nginx family collect a response before they pass it on.
    (b"x-accel-buffering", b"no"),
)
_HEARTBEAT = b": waiting\n\n"
_END: Message = {"body": b"", "more_body": False}


class EndedAnswer(Protocol):
    """What is known once the source of an answer has ended."""

    @property
    def headers(self) -> Headers:
        """Return those of a whole answer."""


class ClientResponse:
    """The response to one request, and the sink of its answer; what it awaits waits for a client
    that reads slowly.
    """

    def __init__(
        self, send: Send, client: GatewayProtocol, request_id: str, *, close: bool = False
    ) -> None:
        self._send = send
        self.client = client
        self._own = [(b"x-request-id", request_id.encode())]
        if close:
            self._own.append((b"connection", b"close"))
        self._timer: asyncio.TimerHandle | None = None
        self._interval_seconds = 0.0
        self._whole = b""
        # What is sent once the client has read what comes before.
        self._rest: list[Message] = []
        self._is_complete = False
        self.unread_bytes = 0
        """Of a stream, those that wait for the client."""
        self.status: int | None = None
        """Once it is sent."""
        self.ended: Callable[[TokenCounts | None], EndedAnswer]
        """Called at the end of the answer's source; who relays an answer sets it."""
        self.is_in_the_way: Callable[[], bool]
        """Returns whether others wait for the source of a stream; who relays it sets it."""

    @property
    def ends_at_once(self) -> bool:
        """Return whether the end of its source ends the answer: nothing waits for the client."""
        return self.client.takes(len(self._whole))

    def begin(self, headers: Headers) -> bool:
        """Send the head of a stream; False if heartbeats did, with other headers."""
        self.stop_heartbeats()
        if self.status is not None:
            return False
        self._send_stream_head(headers)
        return True

    def part(self, data: bytes) -> bool:
        """Send a part of the stream; False where the client has too much to read."""
        if self._timer is not None:
            self.stop_heartbeats()
        self.unread_bytes = self.client.write_chunk(data)
        return self.unread_bytes <= MAX_UNREAD_BYTES

    def whole(self, body: bytes) -> None:
        """Take an answer that is no stream."""
        self._whole = body

    def end(self, counts: TokenCounts | None) -> None:
        """Send what follows the end of the answer's source."""
        answer = self.ended(counts)
        if self.status is None:
            body, self._whole = self._whole, b""
            self._begin_whole(200, body, answer.headers)
        else:
            self._rest.append(_END)
        self._go_on()

    def interrupted(self) -> None:
        """Send heartbeats again until the stream goes on."""
        self.stop_heartbeats()
        self.start_heartbeats(self._interval_seconds)

    async def drained(self) -> None:
        """Wait while the client reads slowly; one that stops and is in the way of others is cut."""
        client = self.client
        while client.reads_slowly:
            read_bytes = client.read_bytes
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    await client.drained()
            except TimeoutError:
                has_stopped = client.read_bytes < read_bytes + UNREAD_LEAST_BYTES
                if has_stopped and self.is_in_the_way():
                    client.abort()
        self.unread_bytes = 0

    async def finish(self) -> None:
        """Wait until the client has read a large body, which counts as held until then."""
        while self._rest:
            await self.client.drained()
            self._go_on()

    async def send_whole(
        self, status: int, body: bytes, headers: Headers = (), content_type: bytes = JSON
    ) -> None:
        """Send a response that is not a stream."""
        self.stop_heartbeats()
        self._begin_whole(status, body, headers, content_type)
        await self.finish()

    async def fail(self, error: RequestError, event_name: bytes = b"") -> None:
        """Send an error: as the response, or as the last event of a stream that has begun, with a
        line before it."""
        self.stop_heartbeats()
        if self.status is None:
            await self.send_whole(error.status, error.body(event_name), error.headers)
        elif not self._is_complete:
            self._rest = [_more(error.event(event_name)), _END]
            await self.finish()

    def start_heartbeats(self, interval_seconds: float) -> None:
        """Send a comment each interval until the stream begins."""
        self._interval_seconds = interval_seconds
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(interval_seconds, self._beat, interval_seconds)

    def stop_heartbeats(self) -> None:
        """Send no more heartbeats."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self, interval_seconds: float) -> None:
        # Who reads slowly has enough to read.
        if not self.client.reads_slowly:
            if self.status is None:
                self._send_stream_head(())
            self.client.write_chunk(_HEARTBEAT)
        self.start_heartbeats(interval_seconds)

    def _send_stream_head(self, headers: Headers) -> None:
        head = [*_EVENT_STREAM, *self._own, *headers]
        self._send_now(self._head(200, head))

    def _begin_whole(
        self, status: int, body: bytes, headers: Headers, content_type: bytes = JSON
    ) -> None:
        head = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *self._own,
            *headers,
        ]
        is_small = self.client.takes(len(body))
        parts = [{"body": body, "more_body": False}] if is_small else [_more(body), _END]
        self._rest = [self._head(status, head), *parts]

    def _head(self, status: int, headers: Headers) -> Message:
        self.status = status
        return {"type": "http.response.start", "status": status, "headers": headers}

    def _go_on(self) -> None:
        """Send what is left, as far as the client reads."""
        while self._rest and not self.client.reads_slowly:
            message = self._rest.pop(0)
            self._is_complete = not message.get("more_body", True)
            self._send_now(message)

    def _send_now(self, message: Message) -> None:
        """Send a message, which waits for nothing while the client reads."""
        sending = self._send({"type": "http.response.body", **message})
        try:
            sending.send(None)
        except StopIteration:
            return
        sending.close()
        raise RuntimeError("a message waits for a client that reads slowly")


def _more(body: bytes) -> Message:
    """Return a part of a response, which does not end before the client has read it."""
    return {"body": body, "more_body": True}
