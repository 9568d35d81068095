"""An engine of OpenAI's API over a real socket, whose answers a function says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from world.slots import free_port

Script = Callable[[Mapping[str, Any]], Any]


@dataclass
class ScriptedEngine:
    """Answers with a text as a stream, with fields of a message, or with what aiohttp sends."""

    script: Script
    url: str = ""
    gap_seconds: float = 0.0
    """Time between two tokens; without any, many arrive at once."""
    bodies: list[Mapping[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """`Authorization` of each request; empty without any."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.tokens.append(request.headers.get("Authorization", ""))
        said = self.script(body)
        if isinstance(said, web.StreamResponse):
            return said
        if not body.get("stream"):
            return web.json_response(said)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events(said):
            await response.write(event)
            if self.gap_seconds:
                await asyncio.sleep(self.gap_seconds)
        return response


def events(said: str | Mapping[str, Any]) -> list[bytes]:
    """Return the events of a stream: a token for each word, or one of these fields."""
    fields = {"content": said} if isinstance(said, str) else dict(said)
    reason, logprobs = fields.pop("finish_reason", "stop"), fields.pop("logprobs", None)
    words = fields.pop("content", None) or ""
    deltas = [{"content": word} for word in words.split(" ")] if words else []
    deltas = [deltas[0], *({"content": " " + d["content"]} for d in deltas[1:])] if deltas else []
    deltas += [fields] if fields else []
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "logprobs": logprobs}]} for delta in deltas
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    chunks.append({"choices": [], "usage": {"completion_tokens": len(deltas)}})
    return [*(b"data: %s\n\n" % json.dumps(each).encode() for each in chunks), b"data: [DONE]\n\n"]


def last_text(body: Mapping[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


@asynccontextmanager
async def serve_engine(script: Script, gap_seconds: float = 0.0) -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(script, gap_seconds=gap_seconds)
    app = web.Application()
    for path in ("/v1/chat/completions", "/v1/rerank", "/v1/embeddings"):
        app.router.add_post(path, engine.answer)

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/health", healthy)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    engine.url = f"http://127.0.0.1:{port}"
    try:
        yield engine
    finally:
        await runner.cleanup()
