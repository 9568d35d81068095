"""The queue between deciding and writing: the work of the newest plan, in the order of its urgency.

A cycle hands over all work at once, in place of what an earlier plan left undone. Work that was
replaced or stopped half-way is decided again: for the objects that is as if the process had ended
there. Writes of which the next plan would misread the first ones are completed. A plan waits for
the requests that are on their way, so that it knows every write before it, but not long for those
of a single object: that one gets no newer work until its request has ended.

Whatever is raised by ordering or running the work of one object costs that object alone.
"""

import asyncio
import heapq
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from tessera.reconcile.loop import Backlog
from tessera.reconcile.writing.defects import Defects
from tessera.reconcile.writing.service_work import by_turns
from tessera.reconcile.writing.writer import NotLeadingError, SupersededError
from tessera.resources.manifest import ObjectKey

# Maximum number of objects in progress, and of writing requests, at a time.
MAX_CONCURRENCY = 16
# With more work left than this, an API server that is busy with its consequences takes seconds.
MANY = 8 * MAX_CONCURRENCY
# A status is written so long after the last write for its object, since it changes soon again.
STATUS_DELAY_SECONDS = 1.0
# The same for a status that only says that a start goes on; the first one waits so long, too.
SETTLING_DELAY_SECONDS = 5.0
# The same while many objects are left, and the longest delay of a status.
BURST_STATUS_DELAY_SECONDS = 120.0
# How long a cycle waits for the requests of single objects that are on their way.
SETTLE_SECONDS = 1.0
# The same in a burst, in which the API server creates one Service after the other: the requests for
# Deployments end sooner, those for Services later.
BURST_SETTLE_SECONDS = 0.25


_owner: ContextVar[ObjectKey | None] = ContextVar("owner", default=None)


class Stage(IntEnum):
    """What comes first."""

    FLEET = 0
    """Pools and budgets, on which decisions about others rely: no plan is decided meanwhile."""
    CHILDREN = 1
    GATES = 2
    """Replicas begin to take requests; their children are in place."""
    STATUS = 3


# How many places a stage has while an earlier one waits too, and how many otherwise.
PLACES = {
    Stage.FLEET: (0, MAX_CONCURRENCY),
    Stage.CHILDREN: (0, MAX_CONCURRENCY),
    Stage.GATES: (4, MAX_CONCURRENCY),
    Stage.STATUS: (1, 4),
}


class WorkKey(NamedTuple):
    """Names work, across plans."""

    owner: ObjectKey
    """The object whose writes come one after the other."""
    stage: Stage


class DoubleWorkError(Exception):
    """A plan has two works with one key."""


@dataclass(frozen=True, slots=True)
class Work:
    """The writes that a plan decided for one object."""

    key: WorkKey
    write: Callable[[], Awaitable[object]]
    after: tuple[WorkKey, ...] = ()
    """Work that must have ended before, whatever its result, if it is in the queue."""
    is_settling: bool = False
    """It is a status that another one is about to follow."""


class WriteQueue:
    """Work that is not finished; at most MAX_CONCURRENCY objects are in progress at a time."""

    def __init__(
        self, wake: Callable[[], None], end_burst: Callable[[], None] = lambda: None
    ) -> None:
        """Create an empty queue.

        `wake` is called when an owner needs another plan, `end_burst` when a burst has ended.
        """
        self._wake = wake
        self._end_burst = end_burst
        self._queues = {stage: deque[Work]() for stage in Stage}
        """Work that may begin, most urgent first."""
        self._blocked: defaultdict[WorkKey, list[Work]] = defaultdict(list)
        """Work that waits for other work, by the key of that."""
        self._held: list[tuple[float, int, Work]] = []
        """Statuses that wait for their time, a heap by that."""
        self._serial = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._may_hold = True
        self._since: dict[WorkKey, float] = {}
        """The monotonic seconds since which each unfinished work waits."""
        self._written: dict[ObjectKey, float] = {}
        """When work of an owner ended last."""
        self._left = Counter[Stage]()
        """How much work has not ended."""
        self._running = set[WorkKey]()
        self._superseded = set[ObjectKey]()
        """Owners in progress for which a newer plan has work."""
        self._error: NotLeadingError | None = None
        self.defects = Defects()
        self._group: asyncio.TaskGroup | None = None
        self._workers = 0
        self._available = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_paused = False

    @property
    def backlog(self) -> Backlog:
        """Return of what so much is left that it takes some seconds."""
        left = self._left
        if left[Stage.CHILDREN] + left[Stage.GATES] > MANY:
            return Backlog.OBJECTS
        return Backlog.STATUSES if left[Stage.STATUS] > MANY else Backlog.NONE

    @property
    def _is_burst(self) -> bool:
        return self.backlog is Backlog.OBJECTS

    def is_superseded(self) -> bool:
        """Return whether the work that calls it may send no more requests, for a newer plan."""
        return self._is_paused or _owner.get() in self._superseded

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Send nothing in this block, which begins when the requests on their way have ended.

        Those of single objects are waited for no longer than SETTLE_SECONDS. Raises what stopped
        the writing since the last time.
        """
        self._is_paused = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    BURST_SETTLE_SECONDS if self._is_burst else SETTLE_SECONDS
                ):
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

        An owner in progress gets no newer work, but another cycle when it has ended. Of two works
        with one key the second is dropped, as a defect.
        """
        now = time.monotonic()
        in_progress = {key.owner for key in self._running}
        since = {key: self._since[key] for key in self._running}
        stages: dict[Stage, list[Work]] = {stage: [] for stage in Stage}
        for work in works:
            if work.key.owner in in_progress:
                self._superseded.add(work.key.owner)
            elif work.key in since:
                self.defects.report(work.key.owner, DoubleWorkError(work.key))
            else:
                since[work.key] = self._since.get(work.key, now)
                stages[work.key.stage].append(work)
        self._since = since
        self._left = Counter(key.stage for key in since)
        oldest = now - BURST_STATUS_DELAY_SECONDS
        self._written = {owner: at for owner, at in self._written.items() if at > oldest}
        self.defects.forget_all_but({key.owner for key in since})
        self._blocked.clear()
        self._held.clear()
        for stage, queued in stages.items():
            queued.sort(key=lambda work: since[work.key])
            ordered = by_turns(queued, lambda work: work.key.owner.namespace)
            self._queues[stage] = deque(ordered)

    async def run(self) -> None:
        """Write forever."""
        while True:
            await self._available.wait()
            self._available.clear()
            await self._write_all()

    async def drain(self) -> None:
        """Write until nothing is left, and no status later than it could be."""
        self._may_hold = False
        self._release_held()
        await self._write_all()
        self._may_hold = True

    async def _write_all(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            self._add_worker(self._group)

    def _start_worker(self) -> None:
        """Start one more worker if there is work for it, which then starts the next one."""
        if self._is_paused or self._workers == MAX_CONCURRENCY or self._next_queue() is None:
            return
        # Without a worker, a group has ended or is about to.
        if self._workers == 0 or self._group is None:
            self._available.set()
            return
        self._add_worker(self._group)

    def _add_worker(self, group: asyncio.TaskGroup) -> None:
        self._workers += 1
        group.create_task(self._work())

    async def _work(self) -> None:
        try:
            while not self._is_paused and (queue := self._next_queue()) is not None:
                work = queue.popleft()
                try:
                    may_begin = self._may_begin(work)
                except Exception as error:  # noqa: BLE001 - it costs this object, not the leader
                    self.defects.report(work.key.owner, error)
                    self._end(work)
                    continue
                if may_begin:
                    self._start_worker()
                    await self._write(work)
                    await asyncio.sleep(0)  # so that a large fleet does not delay the probes
        finally:
            self._workers -= 1

    def _may_begin(self, work: Work) -> bool:
        """Return whether the work begins now; otherwise it is kept until it may."""
        blocker = next((key for key in work.after if key in self._since), None)
        if blocker is not None:
            self._blocked[blocker].append(work)
            return False
        due = self._due(work)
        if due > time.monotonic():
            heapq.heappush(self._held, (due, next(self._serial), work))
            self._release_held()
            return False
        return True

    def _next_queue(self) -> deque[Work] | None:
        """Return the queue from which work may begin now."""
        running = Counter(key.stage for key in self._running)
        waiting = [stage for stage, queue in self._queues.items() if queue]
        for stage in waiting:
            few, many = PLACES[stage]
            reserved = sum(PLACES[later][0] for later in waiting if later > stage)
            if running[stage] < (many - reserved if stage is waiting[0] else few):
                return self._queues[stage]
        return None

    def _due(self, work: Work) -> float:
        """Return the monotonic seconds before which the work does not begin."""
        since = self._since[work.key]
        written = self._written.get(work.key.owner, since if work.is_settling else None)
        if work.key.stage is not Stage.STATUS or written is None or not self._may_hold:
            return 0.0
        delay = SETTLING_DELAY_SECONDS if work.is_settling else STATUS_DELAY_SECONDS
        if self._is_burst:
            delay = BURST_STATUS_DELAY_SECONDS
        return min(written + delay, since + BURST_STATUS_DELAY_SECONDS)

    def _release_held(self) -> None:
        """Queue the statuses that are due, and come back when the next one is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        while self._held and (self._held[0][0] <= now or not self._may_hold):
            self._queues[Stage.STATUS].append(heapq.heappop(self._held)[-1])
        if self._held:
            seconds = self._held[0][0] - now
            self._timer = asyncio.get_running_loop().call_later(seconds, self._release_held)
        self._start_worker()

    async def _write(self, work: Work) -> None:
        self._running.add(work.key)
        _owner.set(work.key.owner)
        try:
            await work.write()
            self.defects.resolve(work.key.owner)
        except SupersededError:
            return  # it is decided again, and has waited since before
        except NotLeadingError as error:
            self.replace(())
            self._error = error
        except Exception as error:  # noqa: BLE001 - it costs this object, not the leader
            self.defects.report(work.key.owner, error)
        finally:
            self._running.discard(work.key)
            self._ended.set()
            if work.key.owner in self._superseded:
                self._superseded.discard(work.key.owner)
                self._wake()
        self._written[work.key.owner] = time.monotonic()
        self._end(work)

    def _end(self, work: Work) -> None:
        """Go on with what waits for the work."""
        self._since.pop(work.key, None)
        was_burst = self._is_burst
        self._left[work.key.stage] -= 1
        if was_burst and not self._is_burst:
            self._end_burst()
        for released in reversed(self._blocked.pop(work.key, [])):
            self._queues[released.key.stage].appendleft(released)
        self._start_worker()

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            self._ended.clear()
            await self._ended.wait()
