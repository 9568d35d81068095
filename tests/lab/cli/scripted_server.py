"""A small server of chat completions whose responses a test scripts."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from world.slots import free_port

ResponseHandler = Callable[
    ["ScriptedServer", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]
]


@dataclass(kw_only=True)
class ScriptedServer:
    """Records requests, and passes those after the probes to `handler`."""

    handler: ResponseHandler
    models: tuple[str, ...] = ("odd",)
    key: str | None = None
    longest: int | None = None
    probes: int = 2
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Request bodies in the order of their arrival."""
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def counted_bodies(self) -> list[dict[str, Any]]:
        """Return the request bodies without those of the probes."""
        return self.bodies[self.probes :]

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.counted_bodies]

    async def wait_for_requests(self, count: int) -> None:
        """Wait until `count` requests after the probes have arrived."""
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.counted_bodies) >= count)

    async def list_models(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        if self.key is not None and self.keys[-1] != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        limit = {"max_model_len": self.longest} if self.longest else {}
        return web.json_response({"data": [{"id": name, **limit} for name in self.models]})

    async def complete_chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        async with self.arrived:
            self.bodies.append(body)
            self.arrived.notify_all()
        if len(self.bodies) <= self.probes:
            return await good(self, request, body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.handler(self, request, body)
        finally:
            self.at_once -= 1


@asynccontextmanager
async def scripted_server(handler: ResponseHandler, **fields: Any) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(handler=handler, **fields)
    app = web.Application()
    app.router.add_get("/v1/models", server.list_models)
    app.router.add_post("/v1/chat/completions", server.complete_chat)
    # A client that disconnects ends its handler, as in real servers.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server.url = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def event(body: Any) -> bytes:
    return b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"


def chunk(text: str, end: str | None = None) -> bytes:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": end}]})


def usage(body: dict[str, Any], tokens: int, cached: int | None = None) -> bytes:
    """Return the last chunk; a word is a token, and the chat template has three."""
    prompt = 3 + len(body["messages"][0]["content"].split())
    details = None if cached is None else {"cached_tokens": cached}
    usage_body = {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "prompt_tokens_details": details,
    }
    return event({"choices": [], "usage": usage_body})


async def stream_events(request: web.Request, *events: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for data in events:
        await response.write(data)
    return response


async def good(_: ScriptedServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Send as many tokens as requested."""
    tokens = body["max_tokens"]
    said = [chunk("a ", "length" if number == tokens else None) for number in range(1, tokens + 1)]
    last = [usage(body, tokens)] if "stream_options" in body else []
    return await stream_events(request, *said, *last, event(b"[DONE]"))


async def refusing(_: ScriptedServer, __: web.Request, ___: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "engine is currently busy"}}, status=503)


async def cutting(
    _: ScriptedServer, request: web.Request, __: dict[str, Any]
) -> web.StreamResponse:
    """Abort the connection in the middle of a response."""
    response = await stream_events(request, chunk("a"))
    assert request.transport is not None
    request.transport.abort()
    return response


async def failing(
    _: ScriptedServer, request: web.Request, __: dict[str, Any]
) -> web.StreamResponse:
    return await stream_events(request, chunk("a"), event({"error": {"message": "out of memory"}}))


async def hanging(
    _: ScriptedServer, request: web.Request, __: dict[str, Any]
) -> web.StreamResponse:
    """Send one token, and nothing more."""
    response = await stream_events(request, chunk("a"))
    await asyncio.Event().wait()
    return response
