"""Sends the requests of a load test: with fixed concurrency, or when they are due."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

from tessera_lab.load.engine_metrics import MetricsSnapshot, parse_metrics
from tessera_lab.load.load_metrics import LoadMeasurement
from tessera_lab.load.openai_client import OpenAiClient, ServerError
from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.responses import BenchResponse

# Sends a job that is due at a moment, or now.
SendRequest: TypeAlias = Callable[[BenchRequest, float | None], Coroutine[Any, Any, BenchResponse]]


class MetricsScraper:
    """`/metrics` of all engines together; a snapshot is empty when one of them is unavailable."""

    def __init__(self, api: OpenAiClient, urls: Sequence[str]) -> None:
        self._api, self._urls = api, urls

    async def scrape(self) -> MetricsSnapshot:
        texts = await asyncio.gather(*map(self._text, self._urls))
        pages = [] if None in texts else [text for text in texts if text]
        return parse_metrics("\n".join(pages), self._api.now)

    async def _text(self, url: str) -> str | None:
        try:
            status, body = await self._api.get(url)
        except ServerError:
            return None
        return body.decode(errors="replace") if status == HTTPStatus.OK else None


@dataclass(kw_only=True)
class LoadRunner:
    """One load in progress; `stop` is set when the user interrupts it."""

    api: OpenAiClient
    meter: MetricsScraper
    stop: asyncio.Event
    scrape_seconds: float = 1.0
    """Interval between two scrapes of the engine."""
    progress: Callable[["LoadRunner"], None] | None = None
    total: int = 0
    responses: list[BenchResponse] = field(default_factory=list)
    in_flight: int = 0
    started_at: float = 0.0
    snapshots: list[MetricsSnapshot] = field(default_factory=list)

    async def run_closed_loop(
        self, name: str, requests: Sequence[BenchRequest], concurrency: int, send: SendRequest
    ) -> LoadMeasurement:
        """Keep so many requests in flight: each response starts the next request."""
        remaining = iter(requests)
        self.total = len(requests)

        async def worker() -> None:
            for request in remaining:
                await self._send(request, send, None)
                if self.stop.is_set():
                    return

        async def workers() -> None:
            await asyncio.gather(*(worker() for _ in range(concurrency)))

        return await self._measure(name, concurrency, workers())

    async def run_open_loop(
        self, name: str, requests: Sequence[BenchRequest], send: SendRequest
    ) -> LoadMeasurement:
        """Send each request when it is due, independent of those before it."""
        self.total = len(requests)

        async def send_all() -> None:
            async with asyncio.TaskGroup() as tasks:
                for request in requests:
                    due_at = self.started_at + request.arrival
                    await self._wait_until(due_at)
                    if self.stop.is_set():
                        return
                    tasks.create_task(self._send(request, send, due_at))

        return await self._measure(name, None, send_all())

    async def _measure(
        self, name: str, concurrency: int | None, load: Coroutine[Any, Any, None]
    ) -> LoadMeasurement:
        before = await self.meter.scrape()
        self.started_at, cpu = self.api.now, time.process_time()
        requests, stopped = asyncio.create_task(load), asyncio.create_task(self.stop.wait())
        watchers = [asyncio.create_task(self._scrape_periodically())]
        if self.progress is not None:
            watchers.append(asyncio.create_task(self._report_progress(self.progress)))
        try:
            await asyncio.wait({requests, stopped}, return_when=asyncio.FIRST_COMPLETED)
            unfinished = self.in_flight
            requests.cancel()
            with suppress(asyncio.CancelledError):
                await requests
        finally:
            for task in (requests, stopped, *watchers):
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
        cpu_seconds, ended = time.process_time() - cpu, self.api.now
        return LoadMeasurement(
            name=name,
            concurrency=concurrency,
            responses=tuple(self.responses),
            unfinished=unfinished if self.stop.is_set() else 0,
            started_at=self.started_at,
            ended_at=ended,
            cpu_seconds=cpu_seconds,
            before=before,
            after=await self.meter.scrape(),
            during=tuple(self.snapshots),
        )

    async def _send(self, request: BenchRequest, send: SendRequest, due_at: float | None) -> None:
        self.in_flight += 1
        try:
            self.responses.append(await send(request, due_at))
        finally:
            self.in_flight -= 1

    async def _wait_until(self, at: float) -> None:
        """Wait for the moment, or for the interrupt; a past moment still yields to other tasks."""
        wait = at - self.api.now
        if wait <= 0:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self.stop.wait()

    async def _scrape_periodically(self) -> None:
        while True:
            await asyncio.sleep(self.scrape_seconds)
            self.snapshots.append(await self.meter.scrape())

    async def _report_progress(self, progress: Callable[["LoadRunner"], None]) -> None:
        while True:
            progress(self)
            await asyncio.sleep(0.25)
