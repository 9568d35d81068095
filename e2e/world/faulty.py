"""A proxy before the API server that refuses, delays and cuts, as bad days do.

It ends TLS with the server's own certificate, and asks with the client certificate of the world's
administrator, since a caller's ends with its connection.
"""

import asyncio
import contextlib
import json
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import yaml
from aiohttp import web

from world.api import session
from world.slots import free_port

RETRY_AFTER_SECONDS = 2
# Longer than callers should wait.
HANG_SECONDS = 7.0
_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may happen to a request."""

    seed: int = 1
    share: float = 0.0
    """Of all requests, those that one of the kinds happens to."""
    kinds: tuple[str, ...] = ("conflict", "busy", "failed", "hung", "lost")
    """409, 429 with Retry-After, 500, no answer, an answer that is lost after the deed."""
    watch_seconds: float | None = None
    """How long a watch stream lasts before it is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came in."""

    at: float
    method: str
    path: str
    agent: str
    watching: bool
    fault: str | None


@dataclass(slots=True)
class Proxy:
    """Between one caller and the API server."""

    faults: Faults
    session: aiohttp.ClientSession
    requests: list[Request] = field(default_factory=list)
    dark: bool = False
    """While set, watches are cut and nothing is let through."""
    mute: bool = False
    """While set, watches stay open and tell nothing."""
    swallowed: int = 0
    """Pieces of watches that nobody got."""
    streams: dict[asyncio.Task[None], web.StreamResponse] = field(default_factory=dict)
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.faults.seed)  # noqa: S311 - a seeded course

    @property
    def counts(self) -> Counter[str]:
        return Counter(one.fault for one in self.requests if one.fault is not None)

    def cut(self) -> None:
        """Every open request ends in the middle; new ones are let through."""
        for task in self.streams:
            task.cancel()

    @property
    def watches(self) -> int:
        """How many were begun until now."""
        return sum(one.watching for one in self.requests)

    async def break_watches(self) -> int:
        """Every watch tells an error that no caller can expect, as after a fault of etcd."""
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500}
        line = json.dumps({"type": "ERROR", "object": status | {"message": "injected"}}) + "\n"
        broken = list(self.streams.values())
        for stream in broken:
            await stream.write(line.encode())
        return len(broken)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        watching = request.query.get("watch") == "true"
        fault = self._draw(watching)
        self.requests.append(
            Request(
                at=time.monotonic(),
                method=request.method,
                path=request.path,
                agent=request.headers.get("User-Agent", ""),
                watching=watching,
                fault=fault,
            )
        )
        if self.dark:
            return await _lost(request)
        match fault:
            case "conflict":
                return _refusal(409, "Conflict")
            case "busy":
                headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
                return _refusal(429, "TooManyRequests", headers)
            case "failed":
                return _refusal(500, "InternalError")
            case "hung":
                await asyncio.sleep(HANG_SECONDS)
                return await _lost(request)
            case _:
                return await self._pass(request, watching, lost=fault == "lost")

    def _draw(self, watching: bool) -> str | None:
        if self._chance.random() >= self.faults.share:
            return None
        kinds = [kind for kind in self.faults.kinds if not (watching and kind == "conflict")]
        return self._chance.choice(kinds)

    async def _pass(self, request: web.Request, watching: bool, lost: bool) -> web.StreamResponse:
        headers = {key: text for key, text in request.headers.items() if key.lower() not in _HOP}
        body = await request.read()
        async with self.session.request(
            request.method,
            request.rel_url,
            headers=headers,
            data=body or None,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:
            if watching and answer.status == 200:
                return await self._stream(request, answer)
            text = await answer.read()
            if lost:
                return await _lost(request)
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP}
            return web.Response(status=answer.status, headers=kept, body=text)

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        task = asyncio.create_task(self._copy(answer, stream))
        self.streams[task] = stream
        try:
            await asyncio.wait({task}, timeout=self.faults.watch_seconds)
        finally:
            del self.streams[task]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if request.transport is not None:
            request.transport.abort()
        return stream

    async def _copy(self, answer: aiohttp.ClientResponse, stream: web.StreamResponse) -> None:
        deaf = False
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async for chunk in answer.content.iter_any():
                deaf = deaf or self.mute  # what was swallowed is never made up for
                if deaf:
                    self.swallowed += 1
                else:
                    await stream.write(chunk)


async def _lost(request: web.Request) -> web.Response:
    """The connection breaks without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _refusal(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": f"injected: {reason}",
        "code": code,
    }
    return web.json_response(status, status=code, headers=headers)


@contextlib.asynccontextmanager
async def faulty(folder: Path, faults: Faults) -> AsyncIterator[tuple[Proxy, Path]]:
    """A proxy before the API server of a world's folder, and a kubeconfig that leads through it."""
    config = yaml.safe_load((folder / "kubeconfig").read_text())
    address = urlsplit(config["clusters"][0]["cluster"]["server"]).hostname or ""
    port = free_port(address)
    config["clusters"][0]["cluster"]["server"] = f"https://{address}:{port}"
    through = folder / f"through-{port}.kubeconfig"
    through.write_text(yaml.safe_dump(config))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    keys = folder / "keys"
    context.load_cert_chain(keys / "apiserver.crt", keys / "apiserver.key")
    async with session(folder / "kubeconfig") as upstream:
        proxy = Proxy(faults=faults, session=upstream)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{rest:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, address, port, ssl_context=context).start()
            yield proxy, through
        finally:
            await runner.cleanup()
