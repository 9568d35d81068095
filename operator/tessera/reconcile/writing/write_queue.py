"""The queue between deciding and writing: the work of the newest plan, in the order of its urgency.

A cycle hands over all work at once, in place of what an earlier plan left undone. No plan is
decided while a request of an earlier one is on its way, so each plan knows every write before it,
and work that was replaced or stopped half-way is decided again: for the objects that is as if the
process had ended there. Writes of which the next plan would misread the first ones are completed.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from tessera.reconcile.writing.service_work import by_turns
from tessera.reconcile.writing.writer import NotLeadingError, SupersededError
from tessera.resources.manifest import ObjectKey

# Maximum number of objects in progress, and of writing requests, at a time.
MAX_CONCURRENCY = 16
# After so many seconds a status is late.
PATIENCE_SECONDS = 5.0
# One worker of so many writes late statuses before children.
LATE_SHARE = 16
# How long a cycle waits for the requests of single objects that are on their way.
SETTLE_SECONDS = 1.0


class Stage(IntEnum):
    """What comes first."""

    FLEET = 0
    """Pools and budgets, on which decisions about others rely: no plan is decided meanwhile."""
    CHILDREN = 1
    STATUS = 2


class WorkKey(NamedTuple):
    """Names work, across plans."""

    owner: ObjectKey
    """The object whose writes come one after the other."""
    stage: Stage


@dataclass(frozen=True, slots=True)
class Work:
    """The writes that a plan decided for one object."""

    key: WorkKey
    write: Callable[[], Awaitable[object]]
    after: tuple[WorkKey, ...] = ()
    """Work that must have ended before, whatever its result, if it is in the queue."""


class WriteQueue:
    """Work that is not finished; at most MAX_CONCURRENCY objects are in progress at a time."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._children: deque[Work] = deque()
        """Work that may begin, most urgent first; so are the next two."""
        self._late: deque[Work] = deque()
        self._statuses: deque[Work] = deque()
        self._blocked: defaultdict[WorkKey, list[tuple[deque[Work], Work]]] = defaultdict(list)
        """Work that waits for other work, by the key of that, with the queue that it came from."""
        self._since: dict[WorkKey, float] = {}
        """The monotonic seconds since which each unfinished work waits."""
        self._running = set[WorkKey]()
        self._superseded = set[ObjectKey]()
        """Owners in progress for which a newer plan has work."""
        self._error: Exception | None = None
        self._group: asyncio.TaskGroup | None = None
        self._workers = 0
        self._available = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_paused = False

    @property
    def waiting(self) -> int:
        """Work that has not begun."""
        return len(self._children) + len(self._late) + len(self._statuses)

    def is_paused(self) -> bool:
        """Return whether no request may be sent, since a newer plan is being decided."""
        return self._is_paused

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Send nothing in this block, which begins when the requests on their way have ended.

        Those of a single object are waited for no longer than SETTLE_SECONDS. Raises what stopped
        the writing since the last time.
        """
        self._is_paused = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await self._wait_while(lambda: bool(self._running))
            await self._wait_while(lambda: any(key.stage is Stage.FLEET for key in self._running))
            error, self._error = self._error, None
            if error is not None:
                raise error
            yield
        finally:
            self._is_paused = False
            self._start_worker()

    def replace(self, works: Iterable[Work]) -> None:
        """Replace all work that is not in progress by that of a newer plan.

        An owner in progress gets no newer work, but another cycle when it has ended.
        """
        now = time.monotonic()
        in_progress = {key.owner for key in self._running}
        since = {key: self._since[key] for key in self._running}
        fleet, children, late, statuses = list[Work](), list[Work](), list[Work](), list[Work]()
        for work in works:
            if work.key.owner in in_progress:
                self._superseded.add(work.key.owner)
                continue
            begun = since[work.key] = self._since.get(work.key, now)
            match work.key.stage:
                case Stage.FLEET:
                    fleet.append(work)
                case Stage.CHILDREN:
                    children.append(work)
                case Stage.STATUS:
                    (late if now - begun > PATIENCE_SECONDS else statuses).append(work)
        self._since = since
        self._blocked.clear()

        def ordered(unordered: list[Work]) -> list[Work]:
            unordered.sort(key=lambda work: since[work.key])
            return by_turns(unordered, lambda work: work.key.owner.namespace)

        self._children = deque(ordered(fleet) + ordered(children))
        self._late, self._statuses = deque(ordered(late)), deque(ordered(statuses))

    async def run(self) -> None:
        """Write forever."""
        while True:
            await self._available.wait()
            self._available.clear()
            await self.drain()

    async def drain(self) -> None:
        """Write until nothing is left."""
        async with asyncio.TaskGroup() as self._group:
            self._add_worker(self._group)

    def _start_worker(self) -> None:
        """Start one more worker if there is work for it, which then starts the next one."""
        if not self.waiting or self._is_paused or self._workers == MAX_CONCURRENCY:
            return
        # Without a worker, a group has ended or is about to.
        if self._workers == 0 or self._group is None:
            self._available.set()
            return
        self._add_worker(self._group)

    def _add_worker(self, group: asyncio.TaskGroup) -> None:
        self._workers += 1
        group.create_task(self._work(prefers_late=self._workers % LATE_SHARE == 0))

    async def _work(self, *, prefers_late: bool) -> None:
        try:
            while not self._is_paused and (queue := self._next_queue(prefers_late=prefers_late)):
                work = queue.popleft()
                blocker = next((key for key in work.after if key in self._since), None)
                if blocker is not None:
                    self._blocked[blocker].append((queue, work))
                    continue
                self._start_worker()
                await self._write(work)
                await asyncio.sleep(0)  # so that a large fleet does not delay the probes
        finally:
            self._workers -= 1

    def _next_queue(self, *, prefers_late: bool) -> deque[Work] | None:
        first = (self._late, self._children) if prefers_late else (self._children, self._late)
        return next((queue for queue in (*first, self._statuses) if queue), None)

    async def _write(self, work: Work) -> None:
        self._running.add(work.key)
        try:
            await work.write()
        except SupersededError:
            return  # it is decided again, and has waited since before
        except NotLeadingError as error:
            for queue in (self._children, self._late, self._statuses):
                queue.clear()
            self._error = error
        except Exception as error:  # noqa: BLE001 - it fails the next cycle, which counts it
            self._error = self._error or error
        finally:
            self._running.discard(work.key)
            self._ended.set()
            if work.key.owner in self._superseded:
                self._superseded.discard(work.key.owner)
                self._wake()
        self._since.pop(work.key, None)
        for queue, released in reversed(self._blocked.pop(work.key, [])):
            queue.appendleft(released)
        self._start_worker()

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            self._ended.clear()
            await self._ended.wait()
