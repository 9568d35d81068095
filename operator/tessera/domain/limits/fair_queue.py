"""The queue of requests that wait for room on a replica: fair between tenants, classes first.

Of one tenant, a request that cannot be in time any more lets others go before it that still can:
served in the order of their arrival, a load just above what replicas carry makes all late, and here
only its excess. It is sent before its deadline nevertheless.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tessera.api.service_class import ServiceClass
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority

# After so many requests of other classes, the next is of the class that they passed over.
MAX_PASSES = 16

# How long a full queue needs is unknown while no replica serves.
UNKNOWN_RETRY_SECONDS = 5.0

# Late requests go first while all of them need so great a share of the time that is left.
_URGENT_SHARE = 0.5

_CLASSES: tuple[ServiceClass, ...] = ("Interactive", "Standard", "Batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBounds:
    """Limits of one queue."""

    requests: int = 1000
    requests_per_tenant: int = 250


@dataclass(frozen=True, slots=True)
class QueueRefusal:
    """A request that may not wait."""

    reason: RequestReason
    retry_after_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueueEntry:
    """A request that waits; two entries are never equal."""

    tenant: str
    weight: float = 1.0
    service_class: ServiceClass = "Interactive"
    priority: RequestPriority = RequestPriority.DEFAULT
    work_seconds: float
    """Predicted seconds of a replica; fairness is counted in it."""
    due: float = float("inf")
    """Until then its first token is in time; monotonic seconds."""
    deadline: float = float("inf")
    """The first token is of no use after it; monotonic seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueService:
    """What serves a queue at one moment."""

    now: float
    replicas: int
    is_late: Callable[[QueueEntry], bool] = lambda _: False
    """Whether an entry would get its first token too late if it were sent now."""
    has_place: Callable[[QueueEntry], bool] | None = None
    """Whether one of those with room takes an entry; None where each takes all."""

    def takes(self, entry: QueueEntry) -> bool:
        """Return whether an entry can be sent now."""
        return self.has_place is None or self.has_place(entry)


@dataclass(slots=True, kw_only=True)
class _Flow:
    """What one tenant has waiting in one class."""

    start: float
    """Virtual time at which its next entry starts."""
    weight: float
    entries: OrderedDict[QueueEntry, None] = field(default_factory=OrderedDict)
    """Those that may be in time, or that were not looked at yet."""
    late: OrderedDict[QueueEntry, None] = field(default_factory=OrderedDict)
    work_seconds: float = 0.0
    late_seconds: float = 0.0
    """Work of the late ones."""

    def __len__(self) -> int:
        return len(self.entries) + len(self.late)

    def take(self, service: QueueService, share: float) -> QueueEntry | None:
        """Take the oldest entry that can be in time, or the oldest late one; None without a place.

        A late one goes first once it is urgent, where the tenant has a `share` of what is served.
        """
        if self._is_urgent(service, share):
            return self._take_late(service) or self._take_early(service)
        return self._take_early(service) or self._take_late(service)

    def _take_late(self, service: QueueService) -> QueueEntry | None:
        entry = next(filter(service.takes, self.late), None)
        if entry is not None:
            self.drop(entry)
        return entry

    def _take_early(self, service: QueueService) -> QueueEntry | None:
        """Take the oldest entry that can be in time; those that are late are so from now on."""
        placeless = list[QueueEntry]()
        chosen = None
        while self.entries:
            entry, _ = self.entries.popitem(last=False)
            if not service.takes(entry):
                placeless.append(entry)
            elif service.is_late(entry):
                self.late[entry] = None
                self.late_seconds += entry.work_seconds
            else:
                chosen = entry
                break
        for entry in reversed(placeless):
            self.entries[entry] = None
            self.entries.move_to_end(entry, last=False)
        return chosen

    def drop(self, entry: QueueEntry) -> bool:
        """Take an entry out; False if it is not here."""
        if entry in self.entries:
            del self.entries[entry]
            return True
        if entry not in self.late:
            return False
        del self.late[entry]
        self.late_seconds = self.late_seconds - entry.work_seconds if self.late else 0.0
        return True

    def _is_urgent(self, service: QueueService, share: float) -> bool:
        if not self.late:
            return False
        left = next(iter(self.late)).deadline - service.now
        return self.late_seconds >= _URGENT_SHARE * left * service.replicas * share


class _ClassQueue:
    """Start-time fair queueing between the tenants of one class (Goyal, Vin, Cheng 1996).

    Each entry starts, in virtual time, when the one before it of its tenant finishes, or now if
    there is none; it finishes `work / weight` later. The earliest start is served next, and is the
    virtual time then. So while two tenants wait, the work of each divided by its weight differs by
    at most that of one entry of each, whatever one of them sends.
    """

    def __init__(self) -> None:
        self.count = 0
        self.work_seconds = 0.0
        self.passes = 0
        self._time = 0.0
        self._order = 0
        self._flows: dict[str, _Flow] = {}
        # Every flow is in here once, those without entries too. So a start is before `_time` only
        # of a flow whose entries had no place.
        self._heap: list[tuple[float, int, str]] = []

    def waiting(self, tenant: str) -> int:
        flow = self._flows.get(tenant)
        return len(flow) if flow is not None else 0

    def add(self, entry: QueueEntry) -> None:
        flow = self._flows.get(entry.tenant)
        if flow is None:
            flow = self._flows[entry.tenant] = _Flow(start=self._time, weight=entry.weight)
            self._push(entry.tenant, flow)
        flow.weight = entry.weight
        flow.entries[entry] = None
        flow.work_seconds += entry.work_seconds
        self.count += 1
        self.work_seconds += entry.work_seconds

    def remove(self, entry: QueueEntry) -> bool:
        flow = self._flows.get(entry.tenant)
        if flow is None or not flow.drop(entry):
            return False
        self._subtract(flow, entry)
        return True

    def pop(self, service: QueueService) -> QueueEntry | None:
        """Take an entry of the tenant whose next one starts first; None if none has a place.

        A tenant whose entries have none keeps its turn.
        """
        placeless = list[tuple[float, int, str]]()
        chosen = None
        while chosen is None and self._heap:
            start, order, tenant = heapq.heappop(self._heap)
            flow = self._flows[tenant]
            if not len(flow):
                del self._flows[tenant]
                continue
            # Of late requests alone it matters how much of what is served is the tenant's.
            share = flow.weight / self._waiting_weight() if flow.late else 1.0
            chosen = flow.take(service, share)
            if chosen is None:
                placeless.append((start, order, tenant))
                continue
            self._subtract(flow, chosen)
            # While its entries had no place others were served, for which it gets no credit.
            self._time = max(self._time, start)
            flow.start = self._time + chosen.work_seconds / chosen.weight
            self._push(tenant, flow)
        for each in placeless:
            heapq.heappush(self._heap, each)
        return chosen

    def work_before(self, entry: QueueEntry) -> float:
        """Return the work that is served before a new entry, if nothing else arrives."""
        own = self._flows.get(entry.tenant)
        before = own.work_seconds if own is not None else 0.0
        start = (own.start if own is not None else self._time) + before / entry.weight
        others = (flow for flow in self._flows.values() if flow is not own and len(flow))
        # Of another tenant, what starts until then.
        return before + sum(
            min(flow.work_seconds, max(0.0, start - flow.start) * flow.weight) for flow in others
        )

    def entries(self) -> list[QueueEntry]:
        return [entry for flow in self._flows.values() for entry in (*flow.late, *flow.entries)]

    def shares(self) -> Iterator[tuple[str, float]]:
        """Yield how many requests each tenant has waiting for its weight."""
        for tenant, flow in self._flows.items():
            yield tenant, len(flow) / flow.weight

    def newest(self, tenant: str) -> QueueEntry:
        """Return the last entry of a tenant that has some."""
        flow = self._flows[tenant]
        return next(reversed(flow.entries or flow.late))

    def _waiting_weight(self) -> float:
        return sum(flow.weight for flow in self._flows.values() if len(flow))

    def _push(self, tenant: str, flow: _Flow) -> None:
        self._order += 1
        heapq.heappush(self._heap, (flow.start, self._order, tenant))

    def _subtract(self, flow: _Flow, entry: QueueEntry) -> None:
        self.count -= 1
        # Sums of floats drift; an empty flow or queue has no work.
        flow.work_seconds = flow.work_seconds - entry.work_seconds if len(flow) else 0.0
        self.work_seconds = self.work_seconds - entry.work_seconds if self.count else 0.0


class FairQueue:
    """Requests of one model that wait for a replica.

    Higher classes go first, strictly but for one bound: after `MAX_PASSES` entries in a row of
    other classes, a waiting class gets the next. So of 18 entries one is of each waiting class.

    Entries that yield are served while nothing else waits, whatever their class, and are the first
    to leave a full queue.
    """

    def __init__(
        self,
        bounds: QueueBounds,
        displace: Callable[[QueueEntry, QueueRefusal], None] = lambda *_: None,
    ) -> None:
        """Take `displace`, which is called with an entry that had to leave a full queue."""
        self._bounds = bounds
        self._displace = displace
        self._classes = {service_class: _ClassQueue() for service_class in _CLASSES}
        self._yielding = _ClassQueue()

    def __len__(self) -> int:
        return self.unyielding + self._yielding.count

    @property
    def unyielding(self) -> int:
        """Return how many wait that do not yield."""
        return sum(queue.count for queue in self._classes.values())

    @property
    def work_seconds(self) -> float:
        """Return the predicted work of all that waits."""
        return sum(queue.work_seconds for queue in self._queues())

    def offer(self, entry: QueueEntry, now: float, *, replicas: int) -> QueueRefusal | None:
        """Let a request wait, or say at once why it may not.

        `replicas` serve the queue; with none, as while a service wakes, the wait is unknown and the
        deadline is not checked.
        """
        wait = self._work_before(entry) / replicas if replicas else None
        late = 0.0 if wait is None else now + wait - entry.deadline
        displaced, reason = None, RequestReason.QUEUE_FULL
        # A place is free when the next entry goes: of this tenant, or of all.
        if (waiting := self._waiting(entry.tenant)) >= self._bounds.requests_per_tenant:
            reason = RequestReason.TENANT_QUEUE_FULL
            if entry.priority.yields or not self._yielding.waiting(entry.tenant):
                retry_after = UNKNOWN_RETRY_SECONDS if wait is None else wait / waiting
                return _refusal(entry, reason, retry_after)
            displaced = self._yielding.newest(entry.tenant)
        if late > 0:
            return _refusal(entry, RequestReason.DEADLINE_UNREACHABLE, late)
        if displaced is None and len(self) < self._bounds.requests:
            self._queue_of(entry).add(entry)
            return None
        work = self.work_seconds / replicas if replicas else None
        retry_after = UNKNOWN_RETRY_SECONDS if work is None else work / max(1, len(self))
        displaced = displaced or self._displaced_by(entry)
        if displaced is None:
            return _refusal(entry, reason, retry_after)
        self.cancel(displaced)
        self._displace(displaced, _refusal(displaced, reason, retry_after))
        self._queue_of(entry).add(entry)
        return None

    def pop(self, service: QueueService) -> QueueEntry | None:
        """Take the entry that is served next; None if nothing waits that has a place."""
        waiting = [queue for queue in self._classes.values() if queue.count]
        if not waiting:
            return self._yielding.pop(service) if self._yielding.count else None
        most_passed = max(waiting, key=lambda queue: queue.passes)
        if most_passed.passes >= MAX_PASSES:
            waiting.remove(most_passed)
            waiting.insert(0, most_passed)
        for chosen in waiting:
            if (entry := chosen.pop(service)) is not None:
                for queue in self._classes.values():
                    queue.passes = queue.passes + 1 if queue.count and queue is not chosen else 0
                return entry
        return None

    def cancel(self, entry: QueueEntry) -> bool:
        """Remove an entry whose client went away; False if it does not wait."""
        return self._queue_of(entry).remove(entry)

    def expire(self, now: float) -> list[QueueEntry]:
        """Remove and return the entries whose deadline has passed."""
        expired = [
            entry for queue in self._queues() for entry in queue.entries() if entry.deadline < now
        ]
        for entry in expired:
            self.cancel(entry)
        return expired

    def _queues(self) -> tuple[_ClassQueue, ...]:
        """Return all queues, the one that is served last at the end."""
        return (*self._classes.values(), self._yielding)

    def _queue_of(self, entry: QueueEntry) -> _ClassQueue:
        return self._yielding if entry.priority.yields else self._classes[entry.service_class]

    def _work_before(self, entry: QueueEntry) -> float:
        queues, own = self._queues(), self._queue_of(entry)
        higher = queues[: queues.index(own)]
        return sum(queue.work_seconds for queue in higher) + own.work_before(entry)

    def _displaced_by(self, entry: QueueEntry) -> QueueEntry | None:
        """Return which entry leaves a full queue for a new one.

        It is the newest of the tenant that has most waiting by its weight, of those that yield
        while there are any. None if the new one yields and those do not, or if that tenant is its
        own and either both yield or none.
        """
        yields = entry.priority.yields
        queues = (self._yielding,) if yields or self._yielding.count else self._queues()
        shares: dict[str, float] = {}
        for queue in queues:
            for tenant, share in queue.shares():
                shares[tenant] = shares.get(tenant, 0.0) + share
        most = max(shares, key=shares.__getitem__, default=entry.tenant)
        if (yields or not self._yielding.count) and (
            shares.get(most, 0.0) <= shares.get(entry.tenant, 0.0) + 1 / entry.weight
        ):
            return None
        return next(each for each in reversed(queues) if each.waiting(most)).newest(most)

    def _waiting(self, tenant: str) -> int:
        return sum(queue.waiting(tenant) for queue in self._queues())


def _refusal(entry: QueueEntry, reason: RequestReason, retry_after: float) -> QueueRefusal:
    is_sheddable = entry.priority is RequestPriority.SHEDDABLE
    return QueueRefusal(RequestReason.SHED if is_sheddable else reason, retry_after)
