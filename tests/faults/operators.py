"""Operators as separate processes, which end at a chosen write request.

A server that has imported everything forks them, so that a new one is there in moments.
"""

import asyncio
import multiprocessing
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tessera.adapters.clock import now
from tessera.adapters.kube.connection import connect
from tessera.controller.main import operate
from tessera.settings import Settings
from world.folders import SCRAPE_TOKEN
from world.slots import free_port
from world.testing import eventually

SENT, ANSWERED = 0, 1
CRASH_EXIT_CODE = 77
_WRITES = {"POST", "PUT", "PATCH", "DELETE"}
_NAME_BYTES = 64
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.operators"])


class CrashTrigger:
    """Counts the write requests whose URL has a given part, and ends the process at one of them.

    Its values are in memory that the test and all operators share: a test can arm it again while
    an operator runs, and the count is not lost with the process.
    """

    def __init__(self) -> None:
        self._url_part: Any = _context.Array("c", _NAME_BYTES)
        self._at = _context.Value("i", 0)
        self._moment = _context.Value("i", SENT)
        self._seen = _context.Value("i", 0)

    def arm(self, url_part: str, at: int = 0, moment: int = SENT) -> None:
        """Count from now on the requests for `url_part`; end at number `at`, 0 for never."""
        self._url_part.value = url_part.encode()
        self._at.value, self._moment.value, self._seen.value = at, moment, 0

    @property
    def requests_seen(self) -> int:
        return int(self._seen.value)

    def count_request(self, method: str, url: str) -> bool:
        """Count a request, and say whether the process ends at it."""
        url_part = self._url_part.value.decode()
        if method not in _WRITES or not url_part or url_part not in url:
            return False
        with self._seen.get_lock():
            self._seen.value += 1
            return bool(self._seen.value == self._at.value)

    def crashes_when(self, moment: int) -> bool:
        return bool(self._moment.value == moment)


def trace_config(trigger: CrashTrigger) -> aiohttp.TraceConfig:
    """Return hooks of the HTTP client, which run where requests are sent."""
    chosen: set[int] = set()

    async def started(_: Any, context: Any, params: aiohttp.TraceRequestStartParams) -> None:
        if trigger.count_request(params.method, str(params.url)):
            chosen.add(id(context))

    async def sent(_: Any, context: Any, __: Any) -> None:
        if id(context) in chosen and trigger.crashes_when(SENT):
            # The hook runs before the bytes are handed to the kernel, this a moment later.
            asyncio.get_running_loop().call_later(0.001, os._exit, CRASH_EXIT_CODE)

    async def answered(_: Any, context: Any, __: Any) -> None:
        if id(context) in chosen and trigger.crashes_when(ANSWERED):
            os._exit(CRASH_EXIT_CODE)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(started)
    trace.on_request_chunk_sent.append(sent)
    trace.on_request_headers_sent.append(sent)
    trace.on_request_end.append(answered)
    return trace


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorOptions:
    """Options of an operator process."""

    kubeconfig: Path
    pod: str = "operator-0"
    namespace: str = "default"
    prometheus_url: str | None = None
    metrics_port: int = 0
    probes_port: int = 0
    clock_ahead: timedelta = timedelta()
    """The difference of its time of day from the real one, at its start."""


def _run(options: OperatorOptions, trigger: CrashTrigger, seconds_ahead: Any) -> None:
    settings = Settings(
        namespace=options.namespace,
        pod_name=options.pod,
        prometheus_url=options.prometheus_url,
        metrics_port=options.metrics_port,
        probes_port=options.probes_port,
    )

    def clock() -> datetime:
        return now() + timedelta(seconds=seconds_ahead.value)

    async def run() -> int:
        connection = await connect(str(options.kubeconfig))
        connection.trace_configs = [trace_config(trigger)]
        return await operate(settings, "127.0.0.1", connection, clock)

    sys.exit(asyncio.run(run()))


class RestartingOperator:
    """One pod of the operator: when its process ends, the next one starts."""

    def __init__(self, options: OperatorOptions) -> None:
        options = replace(
            options,
            metrics_port=options.metrics_port or free_port(),
            probes_port=options.probes_port or free_port(),
        )
        self.crash_trigger = CrashTrigger()
        self.exit_codes: list[int | None] = []
        """Exit codes of its processes so far."""
        self._options = options
        self._seconds_ahead = _context.Value("d", options.clock_ahead.total_seconds())
        self._process: ForkServerProcess | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def set_clock(self, ahead: timedelta) -> None:
        """Set how far its time of day is ahead, while it runs."""
        self._seconds_ahead.value = ahead.total_seconds()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def metrics(self) -> str:
        """Return the metrics that it exports."""
        url = f"https://127.0.0.1:{self._options.metrics_port}/metrics"
        token = (self._options.kubeconfig.parent / SCRAPE_TOKEN).read_text()
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers, raise_for_status=True) as http,
            http.get(url, ssl=False) as response,
        ):
            return await response.text()

    async def planned_services(self, namespace: str) -> set[str]:
        """Return the services of a namespace in its plan; a new process has none at first."""
        labels = [
            sample.labels
            for family in text_string_to_metric_families(await self.metrics())
            for sample in family.samples
            if sample.name == "tessera_service_desired_replicas"
        ]
        assert labels, "no service is planned"
        return {each["service"] for each in labels if each["namespace"] == namespace}

    async def wait_until_unplanned(self, namespace: str, service: str) -> None:
        async def is_unplanned() -> None:
            assert service not in await self.planned_services(namespace)

        await eventually(is_unplanned, within=90)

    async def keep_running(self) -> None:
        """Restart the process whenever it ends, until cancelled; then kill it."""
        try:
            while True:
                self._process = _context.Process(
                    target=_run, args=(self._options, self.crash_trigger, self._seconds_ahead)
                )
                await asyncio.to_thread(self._process.start)
                await _wait_for_exit(self._process)
                self.exit_codes.append(self._process.exitcode)
        finally:
            self.kill()
            if self._process is not None:
                await asyncio.to_thread(self._process.join)


@asynccontextmanager
async def running_operator(options: OperatorOptions) -> AsyncIterator[RestartingOperator]:
    restarting_operator = RestartingOperator(options)
    task = asyncio.create_task(restarting_operator.keep_running())
    try:
        yield restarting_operator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _wait_for_exit(process: ForkServerProcess) -> None:
    loop, exited = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(process.sentinel)
    await asyncio.to_thread(process.join)
