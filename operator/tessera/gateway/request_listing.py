"""The requests that run in all workers of one gateway, asked for when somebody looks."""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tessera.domain.gateway.requests import RunningRequest
from tessera.gateway.frames import ListRequests, RequestList, ToWorker

MAX_LISTED = 500
# A worker answers between two steps of its event loop.
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRequests:
    """Requests that run, the oldest first."""

    requests: Sequence[RunningRequest]
    total: int
    """With those that are not listed."""
    silent_workers: int
    """Workers that did not answer in time."""


class RequestListing:
    """Asks all workers, and puts their answers together."""

    def __init__(self, broadcast: Callable[[ToWorker], None], workers: Callable[[], int]) -> None:
        """Ask by `broadcast`; `workers` returns how many will answer."""
        self._broadcast, self._workers = broadcast, workers
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[RequestList]] = {}

    async def read(self) -> RunningRequests:
        """Return what the workers answer in time."""
        number, workers = next(self._numbers), self._workers()
        arrived = self._waiting[number] = asyncio.Queue[RequestList]()
        answers: list[RequestList] = []
        try:
            self._broadcast(ListRequests(number, MAX_LISTED))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    while len(answers) < workers:
                        answers.append(await arrived.get())
        finally:
            del self._waiting[number]
        requests = [request for answer in answers for request in answer.requests]
        return RunningRequests(
            requests=heapq.nlargest(MAX_LISTED, requests, key=lambda each: each.age_seconds),
            total=sum(answer.total for answer in answers),
            silent_workers=workers - len(answers),
        )

    def receive(self, answer: RequestList) -> None:
        """Take the answer of a worker."""
        if answer.number in self._waiting:
            self._waiting[answer.number].put_nowait(answer)
