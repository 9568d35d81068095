"""What a client gets: a whole body, or a stream that may begin with comments while it waits."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.refusals import JSON, Headers, RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies of the nginx family collect a response before they pass it on.
    (b"x-accel-buffering", b"no"),
)
_HEARTBEAT = b": waiting\n\n"


class ClientResponse:
    """The response to one request; what it awaits waits while the client reads slowly."""

    def __init__(
        self, send: Send, client: GatewayProtocol, request_id: str, *, close: bool = False
    ) -> None:
        self._send = send
        self.client = client
        self._own = [(b"x-request-id", request_id.encode())]
        if close:
            self._own.append((b"connection", b"close"))
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._interval_seconds = 0.0
        self.status: int | None = None
        """Once it is sent."""

    async def send_whole(
        self, status: int, body: bytes, headers: Headers = (), content_type: bytes = JSON
    ) -> None:
        """Send a response that is not a stream."""
        await self._end_heartbeats()
        self.status = status
        head = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *self._own,
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self.write(body)
        # It waits until the client has read a large body, which counts as held until then.
        await self.end_stream()

    async def begin_stream(self, headers: Headers = ()) -> None:
        """Send the head of a stream, unless heartbeats did."""
        await self._end_heartbeats()
        if self.status is None:
            await self._send_stream_head(headers)

    async def write(self, data: bytes) -> None:
        """Send a part of the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """End the stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: RequestError) -> None:
        """Send an error: as the response, or as the last event of a stream that has begun."""
        await self._end_heartbeats()
        if self.status is None:
            await self.send_whole(error.status, error.body(), error.headers)
        else:
            await self.write(error.event())
            await self.end_stream()

    def start_heartbeats(self, interval_seconds: float) -> None:
        """Send a comment each interval until the stream begins."""
        self._interval_seconds = interval_seconds
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(interval_seconds, self._beat, interval_seconds)

    def resume_heartbeats(self) -> None:
        """Send them again until the stream goes on."""
        self.stop_heartbeats()
        self.start_heartbeats(self._interval_seconds)

    def stop_heartbeats(self) -> None:
        """Send no more heartbeats."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self, interval_seconds: float) -> None:
        if self._heartbeat is None or self._heartbeat.done():
            self._heartbeat = asyncio.create_task(self._send_heartbeat())
        self.start_heartbeats(interval_seconds)

    async def _send_heartbeat(self) -> None:
        if self.status is None:
            await self._send_stream_head(())
        await self.write(_HEARTBEAT)

    async def _send_stream_head(self, headers: Headers) -> None:
        self.status = 200
        head = [*_EVENT_STREAM, *self._own, *headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def _end_heartbeats(self) -> None:
        self.stop_heartbeats()
        if self._heartbeat is not None:
            await self._heartbeat
            self._heartbeat = None
