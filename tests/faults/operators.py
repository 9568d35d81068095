"""Operators as processes of their own, which end at a chosen writing request.

A server that has imported everything forks them, so that a new one is there in moments.
"""

import asyncio
import multiprocessing
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import aiohttp

from tessera.adapters.clock import now
from tessera.adapters.kube import connect
from tessera.controller.main import operate
from tessera.settings import Settings

SENT, ANSWERED = 0, 1
ENDED_BY_FUSE = 77
_WRITES = {"POST", "PUT", "PATCH", "DELETE"}
_NAME_BYTES = 64
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.operators"])


class Fuse:
    """Counts the writing requests that name a place, and ends the process at one of them.

    It lives in memory that the test and all operators share, so that it may be set again while an
    operator runs, and its count outlives the process.
    """

    def __init__(self) -> None:
        self._place: Any = _context.Array("c", _NAME_BYTES)
        self._at = _context.Value("i", 0)
        self._moment = _context.Value("i", SENT)
        self._seen = _context.Value("i", 0)

    def set(self, place: str, at: int = 0, moment: int = SENT) -> None:
        """From now on count for `place`; end at request number `at`, which 0 never is."""
        self._place.value = place.encode()
        self._at.value, self._moment.value, self._seen.value = at, moment, 0

    @property
    def seen(self) -> int:
        return int(self._seen.value)

    def count(self, method: str, url: str) -> bool:
        """Is it this request?"""
        place = self._place.value.decode()
        if method not in _WRITES or not place or place not in url:
            return False
        with self._seen.get_lock():
            self._seen.value += 1
            return bool(self._seen.value == self._at.value)

    def burns(self, moment: int) -> bool:
        return bool(self._moment.value == moment)


def traced(fuse: Fuse) -> aiohttp.TraceConfig:
    """Hooks of the HTTP client, where requests are really sent."""
    chosen: set[int] = set()

    async def started(_: Any, context: Any, params: aiohttp.TraceRequestStartParams) -> None:
        if fuse.count(params.method, str(params.url)):
            chosen.add(id(context))

    async def sent(_: Any, context: Any, __: Any) -> None:
        if id(context) in chosen and fuse.burns(SENT):
            # The hook runs before the bytes are handed to the kernel, this a moment later.
            asyncio.get_running_loop().call_later(0.001, os._exit, ENDED_BY_FUSE)

    async def answered(_: Any, context: Any, __: Any) -> None:
        if id(context) in chosen and fuse.burns(ANSWERED):
            os._exit(ENDED_BY_FUSE)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(started)
    trace.on_request_chunk_sent.append(sent)
    trace.on_request_headers_sent.append(sent)
    trace.on_request_end.append(answered)
    return trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How an operator is started."""

    kubeconfig: Path
    pod: str = "operator-0"
    namespace: str = "default"
    prometheus_url: str | None = None
    metrics_port: int = 0
    clock_ahead: timedelta = timedelta()
    """How far its time of day is ahead of that of others."""


def _run(wiring: Wiring, fuse: Fuse) -> None:
    settings = Settings(
        namespace=wiring.namespace,
        pod_name=wiring.pod,
        prometheus_url=wiring.prometheus_url,
        metrics_port=wiring.metrics_port,
        probes_port=free_port(),
    )

    async def run() -> int:
        connection = await connect(str(wiring.kubeconfig))
        connection.trace_configs = [traced(fuse)]
        return await operate(settings, "127.0.0.1", connection, lambda: now() + wiring.clock_ahead)

    sys.exit(asyncio.run(run()))


class Operator:
    """One pod of the operator: when its process ends, the next begins."""

    def __init__(self, wiring: Wiring) -> None:
        wiring = replace(wiring, metrics_port=wiring.metrics_port or free_port())
        self.fuse = Fuse()
        self.ends: list[int | None] = []
        """Exit codes of its processes until now."""
        self._wiring = wiring
        self._process: ForkServerProcess | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def metrics(self) -> str:
        """What it says of itself and the fleet."""
        url = f"http://127.0.0.1:{self._wiring.metrics_port}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            return await answer.text()

    async def knows(self, namespace: str, service: str) -> bool:
        """Is the service in its plan?"""
        name = f'tessera_service_desired_replicas{{namespace="{namespace}"'
        told = (line for line in (await self.metrics()).splitlines() if line.startswith(name))
        return any(f'service="{service}"' in line for line in told)

    async def keep(self) -> None:
        """Until cancelled; then the process is ended too."""
        try:
            while True:
                self._process = _context.Process(target=_run, args=(self._wiring, self.fuse))
                await asyncio.to_thread(self._process.start)
                await _ended(self._process)
                self.ends.append(self._process.exitcode)
        finally:
            self.kill()
            if self._process is not None:
                await asyncio.to_thread(self._process.join)


@asynccontextmanager
async def operator(wiring: Wiring) -> AsyncIterator[Operator]:
    found = Operator(wiring)
    task = asyncio.create_task(found.keep())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ended(process: ForkServerProcess) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(process.sentinel)
    await asyncio.to_thread(process.join)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
