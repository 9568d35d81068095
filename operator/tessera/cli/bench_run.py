"""Sending the requests of a load test: so many at once, or when they are due."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

from tessera.adapters.openai_api import OpenAiApi, ServerError
from tessera.domain.bench.answers import Answer
from tessera.domain.bench.counters import Look, look
from tessera.domain.bench.figures import Level
from tessera.domain.bench.jobs import Job

Ask: TypeAlias = Callable[[Job, float | None], Coroutine[Any, Any, Answer]]
"""Sends a job that is due at a moment, or now."""


class Meter:
    """`/metrics` of all engines together; a look is empty when one of them cannot be had."""

    def __init__(self, api: OpenAiApi, urls: Sequence[str]) -> None:
        self._api, self._urls = api, urls

    async def look(self) -> Look:
        texts = await asyncio.gather(*map(self._text, self._urls))
        whole = [] if None in texts else [text for text in texts if text]
        return look("\n".join(whole), self._api.now)

    async def _text(self, url: str) -> str | None:
        try:
            status, body = await self._api.get(url)
        except ServerError:
            return None
        return body.decode(errors="replace") if status == HTTPStatus.OK else None


@dataclass(kw_only=True)
class Course:
    """One load under way; `stop` is set when the user has had enough."""

    api: OpenAiApi
    meter: Meter
    stop: asyncio.Event
    every_seconds: float = 1.0
    """Between two looks at the engine."""
    progress: Callable[["Course"], None] | None = None
    total: int = 0
    answers: list[Answer] = field(default_factory=list)
    in_flight: int = 0
    began: float = 0.0
    looks: list[Look] = field(default_factory=list)

    async def closed(self, name: str, jobs: Sequence[Job], concurrency: int, ask: Ask) -> Level:
        """Always as many at once as asked for: each answer makes room for the next request."""
        rest = iter(jobs)
        self.total = len(jobs)

        async def place() -> None:
            for job in rest:
                await self._one(job, ask, None)
                if self.stop.is_set():
                    return

        return await self._level(name, concurrency, lambda: [place() for _ in range(concurrency)])

    async def opened(self, name: str, jobs: Sequence[Job], ask: Ask) -> Level:
        """Each when it is due, whatever became of those before it."""
        self.total = len(jobs)

        async def due(tasks: asyncio.TaskGroup) -> None:
            for job in jobs:
                at = self.began + job.arrival
                await self._until(at)
                if self.stop.is_set():
                    return
                tasks.create_task(self._one(job, ask, at))

        async def all_due() -> None:
            async with asyncio.TaskGroup() as tasks:
                await due(tasks)

        return await self._level(name, None, lambda: [all_due()])

    async def _level(
        self,
        name: str,
        concurrency: int | None,
        work: Callable[[], Sequence[Coroutine[Any, Any, None]]],
    ) -> Level:
        before = await self.meter.look()
        self.began, cpu = self.api.now, time.process_time()
        async with self._watched():
            everything = asyncio.create_task(_all(work()))
            stopping = asyncio.create_task(self._stopped())
            await asyncio.wait({everything, stopping}, return_when=asyncio.FIRST_COMPLETED)
            unfinished = self.in_flight
            for task in (everything, stopping):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await everything
        used, ended = time.process_time() - cpu, self.api.now
        return Level(
            name=name,
            concurrency=concurrency,
            answers=tuple(self.answers),
            unfinished=unfinished if self.stop.is_set() else 0,
            began=self.began,
            ended=ended,
            cpu_seconds=used,
            before=before,
            after=await self.meter.look(),
            during=tuple(self.looks),
        )

    async def _stopped(self) -> None:
        await self.stop.wait()

    async def _one(self, job: Job, ask: Ask, due: float | None) -> None:
        self.in_flight += 1
        try:
            self.answers.append(await ask(job, due))
        finally:
            self.in_flight -= 1

    async def _until(self, at: float) -> None:
        """The moment, or the user's stop; a moment that has passed still lets others run."""
        wait = at - self.api.now
        if wait <= 0:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self.stop.wait()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        watchers = [asyncio.ensure_future(self._looking())]
        if self.progress is not None:
            watchers.append(asyncio.ensure_future(self._telling(self.progress)))
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _looking(self) -> None:
        while True:
            await asyncio.sleep(self.every_seconds)
            self.looks.append(await self.meter.look())

    async def _telling(self, progress: Callable[["Course"], None]) -> None:
        while True:
            progress(self)
            await asyncio.sleep(0.25)


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*work)
