"""A proxy before the API server that refuses, delays and aborts requests.

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
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyFaults:
    """What may happen to a request."""

    seed: int = 1
    share: float = 0.0
    """The share of all requests that get one of the kinds of faults."""
    kinds: tuple[str, ...] = ("conflict", "busy", "failed", "hung", "lost")
    """409, 429 with Retry-After, 500, no answer, an answer that is lost after the request."""
    watch_seconds: float | None = None
    """How long a watch stream lasts before it is aborted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedRequest:
    """One request as it came in."""

    at: float
    method: str
    path: str
    agent: str
    watching: bool
    fault: str | None


@dataclass(slots=True)
class FaultProxy:
    """Between one caller and the API server."""

    faults: ProxyFaults
    session: aiohttp.ClientSession
    requests: list[ProxiedRequest] = field(default_factory=list)
    blackout: bool = False
    """While set, watches are aborted and nothing is let through."""
    silent: bool = False
    """While set, watches stay open and send nothing."""
    dropped: int = 0
    """Chunks of watch streams that were not sent on."""
    streams: dict[asyncio.Task[None], web.StreamResponse] = field(default_factory=dict)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.faults.seed)  # noqa: S311 - a seeded course

    @property
    def counts(self) -> Counter[str]:
        return Counter(request.fault for request in self.requests if request.fault is not None)

    def abort_requests(self) -> None:
        """Every open request ends in the middle; new ones are let through."""
        for task in self.streams:
            task.cancel()

    @property
    def watches(self) -> int:
        """The number of watches that began until now."""
        return sum(request.watching for request in self.requests)

    async def break_watches(self) -> int:
        """Send an unexpected error on every watch, as after a fault of etcd; return how many."""
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500}
        line = json.dumps({"type": "ERROR", "object": status | {"message": "injected"}}) + "\n"
        broken = 0
        for stream in list(self.streams.values()):
            with contextlib.suppress(ConnectionResetError):  # its client left meanwhile
                await stream.write(line.encode())
                broken += 1
        return broken

    async def handle(self, request: web.Request) -> web.StreamResponse:
        watching = request.query.get("watch") == "true"
        fault = self._choose_fault(reading=request.method == "GET")
        self.requests.append(
            ProxiedRequest(
                at=time.monotonic(),
                method=request.method,
                path=request.path,
                agent=request.headers.get("User-Agent", ""),
                watching=watching,
                fault=fault,
            )
        )
        if self.blackout:
            return await _abort(request)
        match fault:
            case "conflict":
                return _error_response(409, "Conflict")
            case "busy":
                headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
                return _error_response(429, "TooManyRequests", headers)
            case "failed":
                return _error_response(500, "InternalError")
            case "hung":
                await asyncio.sleep(HANG_SECONDS)
                return await _abort(request)
            case _:
                return await self._forward(request, watching, lost=fault == "lost")

    def _choose_fault(self, reading: bool) -> str | None:
        if self._random.random() >= self.faults.share:
            return None
        kinds = [kind for kind in self.faults.kinds if not (reading and kind == "conflict")]
        return self._random.choice(kinds)

    async def _forward(
        self, request: web.Request, watching: bool, lost: bool
    ) -> web.StreamResponse:
        headers = {
            key: text for key, text in request.headers.items() if key.lower() not in _HOP_BY_HOP
        }
        body = await request.read()
        async with self.session.request(
            request.method,
            request.rel_url,
            headers=headers,
            data=body or None,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as response:
            if watching and response.status == 200:
                return await self._stream(request, response)
            text = await response.read()
            if lost:
                return await _abort(request)
            response_headers = {
                key: value
                for key, value in response.headers.items()
                if key.lower() not in _HOP_BY_HOP
            }
            return web.Response(status=response.status, headers=response_headers, body=text)

    async def _stream(
        self, request: web.Request, response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        task = asyncio.create_task(self._copy(response, stream))
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

    async def _copy(self, response: aiohttp.ClientResponse, stream: web.StreamResponse) -> None:
        dropping = False
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async for chunk in response.content.iter_any():
                dropping = dropping or self.silent  # dropped chunks are never sent later
                if dropping:
                    self.dropped += 1
                else:
                    await stream.write(chunk)


async def _abort(request: web.Request) -> web.Response:
    """The connection breaks without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _error_response(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
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
async def fault_proxy(folder: Path, faults: ProxyFaults) -> AsyncIterator[tuple[FaultProxy, Path]]:
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
        proxy = FaultProxy(faults=faults, session=upstream)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{rest:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, address, port, ssl_context=context).start()
            yield proxy, through
        finally:
            await runner.cleanup()
