"""Events about what changed, written beside the cycles: none of them waits for an Event."""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from tessera.api.api_resource import ApiResource
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.status.events import event_notes
from tessera.ports import Clock, ClusterError, ClusterObject, EventOutcome, EventSink
from tessera.resources.event import EventSeries, event_manifest

log = logging.getLogger("tessera")

# Requests for Events of one object within a minute.
MAX_PER_MINUTE = 10
# After so long an equal Event is a new one, as in client-go.
SERIES_SECONDS = 360.0
# Equal Events that are counted on, of one object.
MAX_SERIES = 4
# Changes that wait for their Events, and objects whose last Events are known.
MAX_PENDING = 2048
MAX_OBJECTS = 2048


@dataclass(frozen=True, slots=True)
class _StatusChange:
    kind: ApiResource
    observed: ClusterObject
    status: object
    at: datetime


@dataclass(slots=True)
class _ObjectHistory:
    """The last Events of one object; times are monotonic seconds."""

    sent: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_PER_MINUTE))
    series: dict[EventNote, tuple[EventSeries, float]] = field(default_factory=dict)


class EventRecorder:
    """Writes the Events of changed statuses; one that is refused or too many is dropped."""

    def __init__(
        self,
        sink: EventSink,
        *,
        instance: str,
        clock: Clock,
        monotonic: Callable[[], float],
        count: Callable[[EventOutcome], None],
    ) -> None:
        self._sink = sink
        self._instance = instance
        self._clock = clock
        self._monotonic = monotonic
        self._count = count
        self._changes: deque[_StatusChange] = deque()
        self._wake = asyncio.Event()
        self._histories: OrderedDict[str, _ObjectHistory] = OrderedDict()
        self._serial = 0

    def record(self, kind: ApiResource, observed: ClusterObject, status: object) -> None:
        """Note that the status of an object was replaced; `observed` is the object before that."""
        if len(self._changes) >= MAX_PENDING:
            self._count(EventOutcome.DROPPED)
            return
        self._changes.append(_StatusChange(kind, observed, status, self._clock()))
        self._wake.set()

    async def run(self) -> None:
        """Write Events until canceled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.write_pending()

    async def write_pending(self) -> None:
        """Write the Events of all changes so far, one after another."""
        while self._changes:
            change = self._changes.popleft()
            try:
                old = getattr(change.observed.plan_input, "status", None)
                for note in event_notes(old, change.status):
                    await self._write(change, note)
            except Exception:
                self._count(EventOutcome.REFUSED)
                log.exception("the Events of %s failed", change.observed.key.describe())

    async def _write(self, change: _StatusChange, note: EventNote) -> None:
        history, now = self._history(change.observed.uid), self._monotonic()
        series = self._series(history, change, note, now)
        if len(history.sent) == MAX_PER_MINUTE and now - history.sent[0] < 60:
            self._count(EventOutcome.DROPPED)
            return
        history.sent.append(now)
        try:
            await self._sink.record_event(event_manifest(series, self._instance))
        except ClusterError as error:
            self._count(EventOutcome.REFUSED)
            log.info("no Event of %s: %s", change.observed.key.describe(), error)
        else:
            self._count(EventOutcome.WRITTEN)

    def _history(self, uid: str) -> _ObjectHistory:
        history = self._histories.setdefault(uid, _ObjectHistory())
        self._histories.move_to_end(uid)
        if len(self._histories) > MAX_OBJECTS:
            self._histories.popitem(last=False)
        return history

    def _series(
        self, history: _ObjectHistory, change: _StatusChange, note: EventNote, now: float
    ) -> EventSeries:
        """Return the Event of a note, counted on if an equal one is recent."""
        previous, observed_at = history.series.pop(note, (None, now))
        if previous is not None and now - observed_at < SERIES_SECONDS:
            series = replace(previous, last=change.at, count=previous.count + 1)
        else:
            self._serial = max(self._serial + 1, int(change.at.timestamp() * 1_000_000))
            series = EventSeries(
                kind=change.kind,
                key=change.observed.key,
                uid=change.observed.uid,
                note=note,
                first=change.at,
                last=change.at,
                serial=self._serial,
            )
        history.series[note] = series, now
        if len(history.series) > MAX_SERIES:
            del history.series[next(iter(history.series))]
        return series
