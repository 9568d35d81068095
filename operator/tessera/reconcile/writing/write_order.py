"""The order in which decided work is written: works and the time go in, the next work comes out.

Nothing here starts work or reads a clock. All work waits in one way: it has a time before which it
does not begin, which is unknown as long as it waits for other work.
"""

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from tessera.api.api_resource import ApiResource
from tessera.domain.observed.snapshot import Ref
from tessera.domain.status.service import StatusUrgency
from tessera.reconcile.loop import Backlog
from tessera.reconcile.writing.defects import Defects
from tessera.resources.manifest import ObjectKey

# Maximum number of objects in progress, and of writing requests, at a time.
MAX_CONCURRENCY = 16
# With more work left than this, an API server that is busy with its consequences takes seconds.
MANY = 8 * MAX_CONCURRENCY
# A status is written so long after the last write for its object, since it changes soon again.
STATUS_DELAY_SECONDS = 1.0
# The same for a status that only says that a start goes on; the first one waits so long, too.
SETTLING_DELAY_SECONDS = 5.0
_DELAY_SECONDS = {
    StatusUrgency.SETTLING: SETTLING_DELAY_SECONDS,
    StatusUrgency.USUAL: STATUS_DELAY_SECONDS,
    StatusUrgency.AT_ONCE: 0.0,
}
# The same while many objects are left, and the longest delay of a status.
BURST_STATUS_DELAY_SECONDS = 120.0


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


def work_key(kind: ApiResource, ref: Ref, stage: Stage) -> WorkKey:
    """Return the key of work for one object."""
    return WorkKey(ObjectKey(kind.plural, ref.namespace, ref.name), stage)


class DoubleWorkError(Exception):
    """A plan has two works with one key."""


@dataclass(frozen=True, slots=True)
class Work:
    """The writes that a plan decided for one object."""

    key: WorkKey
    write: Callable[[], Awaitable[object]]
    after: tuple[WorkKey, ...] = ()
    """Work that must have ended before, whatever its result, if it is in the queue."""
    urgency: StatusUrgency = StatusUrgency.USUAL
    """Only statuses have another one."""


class WriteOrder:
    """Work that is not finished; at most MAX_CONCURRENCY objects are in progress at a time.

    All times are monotonic seconds.
    """

    def __init__(self, defects: Defects) -> None:
        self._defects = defects
        self._queues: dict[Stage, list[tuple[int, Work]]] = {stage: [] for stage in Stage}
        """What waits for a place alone, heaps by the rank of the work."""
        self._held: list[tuple[float, int, Work]] = []
        """What waits for its time, a heap by that."""
        self._blocked: defaultdict[WorkKey, list[tuple[int, Work]]] = defaultdict(list)
        """What waits for other work, by the key of that, with its rank."""
        self._since: dict[WorkKey, float] = {}
        """When each unfinished work was decided first."""
        self._written: dict[ObjectKey, float] = {}
        """When work of an owner ended last."""
        self._left = Counter[Stage]()
        """How much work has not ended."""
        self._running = set[WorkKey]()

    @property
    def backlog(self) -> Backlog:
        """Of what so much is left that it takes some seconds."""
        if self._left[Stage.CHILDREN] + self._left[Stage.GATES] > MANY:
            return Backlog.OBJECTS
        return Backlog.STATUSES if self._left[Stage.STATUS] > MANY else Backlog.NONE

    @property
    def next_due(self) -> float:
        """When the next work is due."""
        return self._held[0][0] if self._held else math.inf

    def is_running(self, *stages: Stage) -> bool:
        """Return whether work of these stages, or any, is in progress."""
        return any(key.stage in (stages or Stage) for key in self._running)

    def replace(self, works: Iterable[Work], now: float) -> set[ObjectKey]:
        """Replace all work that is not in progress; return the owners that are, and have newer.

        These get none of it. Of two works with one key the second is dropped, as a defect.
        """
        in_progress, superseded = {key.owner for key in self._running}, set[ObjectKey]()
        since = {key: self._since[key] for key in self._running}
        stages: dict[Stage, list[Work]] = {stage: [] for stage in Stage}
        for work in works:
            if work.key.owner in in_progress:
                superseded.add(work.key.owner)
            elif work.key in since:
                self._defects.report(work.key.owner, DoubleWorkError(work.key))
            else:
                since[work.key] = self._since.get(work.key, now)
                stages[work.key.stage].append(work)
        self._since = since
        self._left = Counter(key.stage for key in since)
        oldest = now - BURST_STATUS_DELAY_SECONDS
        self._written = {owner: at for owner, at in self._written.items() if at > oldest}
        self._defects.forget_all_but({key.owner for key in since})
        self._blocked.clear()
        self._held.clear()
        ranks = itertools.count()
        for stage, queued in stages.items():
            self._queues[stage].clear()
            queued.sort(key=lambda work: since[work.key])
            for work in _by_turns(queued):
                self._add(next(ranks), work)
        return superseded

    def next(self, now: float) -> Work | None:
        """Return the most urgent work that may begin now, which is in progress from then on."""
        if len(self._running) == MAX_CONCURRENCY:
            return None
        while self._held and self._held[0][0] <= now:
            _, rank, work = heapq.heappop(self._held)
            heapq.heappush(self._queues[work.key.stage], (rank, work))
        running = Counter(key.stage for key in self._running)
        waiting = [stage for stage, queue in self._queues.items() if queue]
        for stage in waiting:
            few, many = PLACES[stage]
            reserved = sum(PLACES[later][0] for later in waiting if later > stage)
            if running[stage] < (many - reserved if stage is waiting[0] else few):
                _, work = heapq.heappop(self._queues[stage])
                self._running.add(work.key)
                return work
        return None

    def end(self, work: Work, now: float, *, is_finished: bool) -> None:
        """Go on with what waits for the work; unfinished work is decided again."""
        self._running.discard(work.key)
        if is_finished:
            self._written[work.key.owner] = now
            self._forget(work)

    def _forget(self, work: Work) -> None:
        self._since.pop(work.key, None)
        self._left[work.key.stage] -= 1
        for rank, released in self._blocked.pop(work.key, ()):
            self._add(rank, released)

    def _add(self, rank: int, work: Work) -> None:
        try:
            blocker = next((key for key in work.after if key in self._since), None)
            if blocker is not None:
                self._blocked[blocker].append((rank, work))
            else:
                heapq.heappush(self._held, (self._due(work), rank, work))
        except Exception as error:  # noqa: BLE001 - it costs this object, not the leader
            self._defects.report(work.key.owner, error)
            self._forget(work)

    def _due(self, work: Work) -> float:
        """Return when the work may begin; only statuses wait."""
        since = self._since[work.key]
        settles = work.urgency is StatusUrgency.SETTLING
        written = self._written.get(work.key.owner, since if settles else None)
        if work.key.stage is not Stage.STATUS or written is None:
            return 0.0
        is_burst = self.backlog is Backlog.OBJECTS
        delay = BURST_STATUS_DELAY_SECONDS if is_burst else _DELAY_SECONDS[work.urgency]
        return min(written + delay, since + BURST_STATUS_DELAY_SECONDS)


def _by_turns(works: Iterable[Work]) -> list[Work]:
    """Return the work in turns of the namespaces, so that a large one delays no other.

    The order within a namespace stays, and so does that of the namespaces within a turn.
    """
    turns = Counter[str]()
    ordered = []
    for work in works:
        namespace = work.key.owner.namespace
        ordered.append((turns[namespace], work))
        turns[namespace] += 1
    return [work for _, work in sorted(ordered, key=lambda turn_and_work: turn_and_work[0])]
