"""The queue between deciding and writing: the work of the newest plan, in its order.

A cycle hands over all work at once, in place of what an earlier plan left undone. Work that was
replaced or stopped half-way is decided again: for the objects that is as if the process had ended
there. Writes of which the next plan would misread the first ones are completed. A plan waits for
the requests that are on their way, so that it knows every write before it, but not long for those
of a single object: that one gets no newer work until its request has ended.

Whatever is raised by ordering or running the work of one object costs that object alone.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

from tessera.reconcile.loop import Backlog
from tessera.reconcile.writing.defects import Defects
from tessera.reconcile.writing.write_order import Stage, Work, WriteOrder
from tessera.reconcile.writing.writer import NotLeadingError, SupersededError
from tessera.resources.manifest import ObjectKey

# How long a cycle waits for the requests of single objects that are on their way.
SETTLE_SECONDS = 1.0
# The same in a burst, in which the API server creates one Service after the other: the requests for
# Deployments end sooner, those for Services later.
BURST_SETTLE_SECONDS = 0.25


_owner: ContextVar[ObjectKey | None] = ContextVar("owner", default=None)


class WriteQueue:
    """Runs work in the order of its urgency, except while a plan is decided."""

    def __init__(
        self, wake: Callable[[], None], end_burst: Callable[[], None] = lambda: None
    ) -> None:
        """Create an empty queue.

        `wake` is called when an owner needs another plan, `end_burst` when a burst has ended.
        """
        self._wake = wake
        self._end_burst = end_burst
        self.defects = Defects()
        self._order = WriteOrder(self.defects)
        self._superseded = set[ObjectKey]()
        """Owners in progress for which a newer plan has work."""
        self._error: NotLeadingError | None = None
        self._group: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._may_hold = True
        self._is_paused = False

    @property
    def backlog(self) -> Backlog:
        """Return of what so much is left that it takes some seconds."""
        return self._order.backlog

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
        is_burst = self.backlog is Backlog.OBJECTS
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(BURST_SETTLE_SECONDS if is_burst else SETTLE_SECONDS):
                    await self._wait_for_end()
            await self._wait_for_end(Stage.FLEET)
            error, self._error = self._error, None
            if error is not None:
                raise error
            yield
        finally:
            self._is_paused = False
            self._begin()

    def replace(self, works: Iterable[Work]) -> None:
        """Replace all work that is not in progress by that of a newer plan.

        An owner in progress gets no newer work, but another cycle when it has ended.
        """
        self._superseded |= self._order.replace(works, time.monotonic())

    async def run(self) -> None:
        """Write forever."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                self._begin()
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def drain(self) -> None:
        """Write until nothing is left, and no status later than it could be."""
        self._may_hold = False
        async with asyncio.TaskGroup() as self._group:
            self._begin()
        self._group, self._may_hold = None, True

    def _begin(self) -> None:
        """Begin all work that may begin now, and come back when more is due."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_paused or self._group is None:
            return
        now = time.monotonic() if self._may_hold else math.inf
        while (work := self._order.next(now)) is not None:
            self._group.create_task(self._write(work))
        if now < (due := self._order.next_due) < math.inf:
            self._timer = asyncio.get_running_loop().call_later(due - now, self._begin)

    async def _write(self, work: Work) -> None:
        owner, is_finished = work.key.owner, False
        _owner.set(owner)
        try:
            await work.write()
            self.defects.resolve(owner)
            is_finished = True
        except SupersededError:
            pass  # it is decided again, and has waited since before
        except NotLeadingError as error:
            self.replace(())
            self._error = error
        except Exception as error:  # noqa: BLE001 - it costs this object, not the leader
            self.defects.report(owner, error)
            is_finished = True
        finally:
            self._end(work, is_finished=is_finished)

    def _end(self, work: Work, *, is_finished: bool) -> None:
        was_burst = self.backlog is Backlog.OBJECTS
        self._order.end(work, time.monotonic(), is_finished=is_finished)
        self._ended.set()
        if work.key.owner in self._superseded:
            self._superseded.discard(work.key.owner)
            self._wake()
        if was_burst and self.backlog is not Backlog.OBJECTS:
            self._end_burst()
        self._begin()

    async def _wait_for_end(self, *stages: Stage) -> None:
        while self._order.is_running(*stages):
            self._ended.clear()
            await self._ended.wait()
