"""What becomes of usage records: series, log, spans, and rows of the store."""

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias

from tessera.api.text import counted
from tessera.domain.charge.account import LIVE_SECONDS
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.gateway.refusals import RequestError
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.lender import Lender
from tessera.gateway.store.store import ROW_BYTES, GatewayStore, own_file
from tessera.gateway.store.writer import RecordOutcome, UsageWriter
from tessera.gateway.usage.journal import (
    JOURNALS,
    AbandonedJournal,
    UsageJournal,
    abandoned_journals,
)
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.summing import SUM_SECONDS, Summing, record_bytes

log = logging.getLogger("tessera.gateway")

# Hears of the record of a request that ended, without waiting.
RecordObserver: TypeAlias = Callable[[UsageRecord], object]

_RETRY_SECONDS = 5.0
_GAUGE_SECONDS = 1.0
# Memory of records that the store has not taken, seconds of a busy gateway. Above the first bound
# the gateway refuses requests of tenants with more than a few such records, and above the second
# those of all. The records of requests that run then still have room.
MAX_UNWRITTEN_BYTES, _MAX_UNWRITTEN_OF_ALL, _FEW_UNWRITTEN = 5_000_000, 15_000_000, 100_000
# Sums that become rows in one turn, and while so many records wait none does.
_SUMS_AT_ONCE, _MAX_UNWRITTEN_FOR_SUMS = 100, 500
_SUMS_PAUSE_SECONDS = 0.02
# Of a database about 5 GB, of a file 170 MB; with the longest texts five times as much.
MAX_STORE_ROWS, MAX_FILE_ROWS = 10_000_000, 330_000
_PRUNE_SECONDS = 300.0
_PRUNED_RECORDS = 1000
_PRUNE_PAUSE_SECONDS = 0.1


class EndedGateways:
    """Gateways before this one on its volume, of which the store or the spool has all records."""

    def __init__(self, store: GatewayStore, spooled: Callable[[], int]) -> None:
        """Take `spooled`, which returns how many records the store has not."""
        self._store, self._spooled = store, spooled
        self._journals = list[AbandonedJournal]()
        self._heard_at = dict[str, float]()
        """When each had last asked as its journal was first looked at."""

    def add(self, journal: AbandonedJournal) -> None:
        """Take the journal of a gateway, of which the records are written."""
        journal.empty()
        self._journals.append(journal._replace(records=()))

    async def close(self) -> None:
        """Free the charges that were lent to them, once no record is left; raises StoreError.

        One that asks again lives, so that this volume is a copy of its own: it frees nothing.
        """
        for journal in () if self._spooled() else tuple(self._journals):
            heard_at, now = await self._store.heard_at(journal.gateway)
            if heard_at != self._heard_at.setdefault(journal.gateway, heard_at):
                log.error("gateway %s goes on: its journal here is a copy", journal.gateway)
            elif abs(now - heard_at) < LIVE_SECONDS:
                continue
            else:
                await self._store.close_gateway(journal.gateway)
            journal.delete()
            self._journals.remove(journal)

    async def run(self) -> None:
        """Close them until it is cancelled."""
        while True:
            with suppress(StoreError):
                await self.close()
            await asyncio.sleep(_GAUGE_SECONDS)


class Recording:
    """Takes the records of requests; its store may be away when the gateway starts."""

    def __init__(  # noqa: PLR0913 - what one process writes with
        self,
        store: GatewayStore,
        spool: GatewayStore | None,
        metrics: GatewayMetrics,
        *,
        observers: Sequence[RecordObserver] = (),
        retention: timedelta,
        max_rows: int = MAX_STORE_ROWS,
        is_migrated: bool = False,
        spooled: int = 0,
        journals: Path | None = None,
        name: str = "",
    ) -> None:
        """Take the name of this gateway, with which its records begin."""
        self.store, self._name = store, name
        self.lender = Lender(store)
        """Lends limits, also while the store fails."""
        self.writer = UsageWriter(store, spool, spooled=spooled, count=metrics.count_records)
        self._spool, self._metrics, self._is_migrated = spool, metrics, is_migrated
        self._journals = journals
        self._journal = _open_journal(journals, name) if journals is not None else None
        self.ended = EndedGateways(store, lambda: self.writer.spooled)
        self._added = self._written = self._unwritten_bytes = 0
        self._unwritten = Counter[str]()
        """Memory of the records of each tenant that are not written."""
        self._sums = Summing()
        self._last_sum = 0
        """Number of the last sum that became a row."""
        self._observers = (metrics.requests.observe, *observers)
        self._retention_ns = retention // timedelta(microseconds=1) * 1000
        self._max_rows = max_rows

    @classmethod
    async def open(
        cls,
        url: str | None,
        folder: Path,
        metrics: GatewayMetrics,
        *,
        observers: Sequence[RecordObserver] = (),
        retention: timedelta,
        name: str = "",
    ) -> "Recording":
        """Open the store of a URL, or without one a SQLite file in the folder, for a gateway.

        Raises StoreError for a URL or a folder that cannot be used, and not for a database that
        does not answer.
        """
        store, is_migrated = GatewayStore(url or own_file(folder)), True
        try:
            await store.migrate()
        except StoreError as error:
            is_migrated = False
            log.error("the gateway starts without its store: %s", error)
        spool = await GatewayStore.open(f"sqlite:///{folder}/spool.db") if url else None
        return cls(
            store,
            spool,
            metrics,
            observers=observers,
            retention=retention,
            max_rows=MAX_STORE_ROWS if url else file_rows(shutil.disk_usage(folder).total),
            is_migrated=is_migrated,
            spooled=await spool.count() if spool else 0,
            journals=folder / JOURNALS,
            name=name,
        )

    def check_room(self, tenant: str) -> None:
        """Raise RequestError with status 503 where a new request may not begin.

        What is not recorded is not granted, so only a store that is away or too slow refuses; those
        whose records wait are refused first.
        """
        few = self._unwritten[tenant] < _FEW_UNWRITTEN
        most = _MAX_UNWRITTEN_OF_ALL if few else MAX_UNWRITTEN_BYTES
        if self._unwritten_bytes >= most or self._sums.ended_bytes(tenant) >= MAX_UNWRITTEN_BYTES:
            raise RequestError(RequestReason.USAGE_NOT_RECORDED)

    def add(self, record: UsageRecord) -> None:
        """Show the record of a request that ended to all observers, and store it.

        Refused requests used nothing, and a client repeats them as often as it likes: they are not
        stored. Of a tenant with more than MAX_TENANT_ROWS the sums of the others are.
        """
        for observe in self._observers:
            observe(record)
        if record.phase is Phase.REFUSED:
            return
        total = self._sums.add(record)
        if total is None:
            self._note(lambda journal: journal.add((record,), self._added + 1))
            self._write(record)
            return
        self._metrics.count_records(RecordOutcome.SUMMED, 1)
        self._note(lambda journal: journal.add_summed(record, total, self._added))

    def end_period(self) -> None:
        """Begin new sums; `store_sums` stores those before."""
        changed = self._sums.take_changed()
        self._note(lambda journal: journal.note_sums(changed))
        self._note(UsageJournal.end_sums)
        self._sums.end_period()

    def store_sums(self) -> bool:
        """Store some sums that grow no more, if few records wait; False if all of them are."""
        if self._added - self._written < _MAX_UNWRITTEN_FOR_SUMS:
            for total in self._sums.take_ended(_SUMS_AT_ONCE):
                self._write(total)
                self._last_sum = self._added
        return self._sums.has_ended

    def _write(self, record: UsageRecord) -> None:
        size = record_bytes(record)
        self._added += 1
        self._unwritten_bytes += size
        self._unwritten[record.tenant] += size
        self.writer.add((record,), partial(self._count_written, record.tenant, size))

    def note_begun(self, record: UsageRecord) -> None:
        """Keep that an engine got a request, in case this process is killed."""
        self._note(lambda journal: journal.add((record,), self._added))

    def note_running(self, records: Sequence[UsageRecord]) -> None:
        """Keep what the requests that run used so far; what is stored is dropped."""
        changed = self._sums.take_changed()
        oldest = self._written + 1 if self._written < self._added else None
        self._note(lambda journal: journal.note_sums(changed))
        self._note(lambda journal: journal.note_running(records, oldest))

    async def run(self) -> None:
        """Write, and delete what is old, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.writer.run())
            group.create_task(self._maintain())
            group.create_task(self._set_gauges())
            group.create_task(self._end_periods())
            group.create_task(self._store_sums())
            group.create_task(self.ended.run())

    async def recover(self) -> None:
        """Store what a killed process left; a record that is stored already stays as it is."""
        if self._journals is None:
            return
        for journal in await asyncio.to_thread(abandoned_journals, self._journals):
            if journal.records:
                log.error(
                    "the gateway was killed: %s and %s that were not stored are recorded",
                    counted(len(journal.records) - journal.unfinished, "request"),
                    counted(journal.unfinished, "unfinished request"),
                )
            self.writer.add(journal.records, partial(self.ended.add, journal))

    async def close(self) -> None:
        """Write the rest, and close the store."""
        self.end_period()
        written = -1
        # Where the store takes nothing more, the journal has the others.
        while self.store_sums() and self._written > written:
            written = self._written
            await self.writer.flush()
        await self.writer.flush()
        if self._written == self._added and not self._sums.has_ended:
            await self._leave()
        for store in filter(None, (self.store, self._spool)):
            await store.close()

    async def _leave(self) -> None:
        """End as a gateway that needs no other to write what it used."""
        try:
            if not self.writer.waiting:
                await self.ended.close()
                await self.store.close_gateway(self._name)
                self._note(UsageJournal.close)
                return
        except StoreError as error:
            log.error("the store keeps the charges that were lent to this gateway: %s", error)
        # The next process on this volume returns what was lent.
        self._note(UsageJournal.leave)

    def _count_written(self, tenant: str, size: int) -> None:
        self._written += 1
        self._unwritten_bytes -= size
        self._unwritten[tenant] -= size
        if not self._unwritten[tenant]:
            del self._unwritten[tenant]
        if self._written == self._last_sum and not self._sums.has_ended:
            self._note(UsageJournal.drop_ended_sums)

    def _note(self, write: Callable[[UsageJournal], None]) -> None:
        """Write into the journal; without a volume that takes it, requests go on."""
        if self._journal is None:
            return
        try:
            write(self._journal)
        except OSError as error:
            self._journal = None
            log.error("usage is lost if this process is killed: its journal failed: %s", error)

    async def prune(self, now_ns: int) -> None:
        """Delete the records that are older than the retention, then make room; raises StoreError.

        Where there are too many rows, those of the tenant with the most become sums, of those of
        which some can.
        """
        while True:
            if not await self.store.prune(now_ns - self._retention_ns, _PRUNED_RECORDS):
                break
            # Others write in between.
            await asyncio.sleep(_PRUNE_PAUSE_SECONDS)
        rows = Counter(await self.store.rows_by_tenant())
        excess = rows.total() - self._max_rows
        while excess > 0 and rows:
            ((tenant, _),) = rows.most_common(1)
            freed = await self.store.make_room(tenant, _PRUNED_RECORDS)
            excess -= freed.rows
            if not freed.rows:
                del rows[tenant]
                continue
            if freed.are_lost:
                log.error(
                    "the store is full: the oldest %s of tenant %s were deleted",
                    counted(freed.rows, "usage record"),
                    tenant,
                )
            rows[tenant] -= freed.rows
            await asyncio.sleep(_PRUNE_PAUSE_SECONDS)

    async def _maintain(self) -> None:
        """Migrate the store as soon as it answers, and prune it every few minutes."""
        while True:
            try:
                if not self._is_migrated:
                    await self.store.migrate()
                    self._is_migrated = True
                await self.store.close_month()
                await self.prune(time.time_ns())
            except StoreError as error:
                log.error("store: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                await asyncio.sleep(_PRUNE_SECONDS)

    async def _end_periods(self) -> None:
        while True:
            await asyncio.sleep(SUM_SECONDS)
            self.end_period()

    async def _store_sums(self) -> None:
        while True:
            # Others have their turn, and the store takes the sums before.
            pause = _SUMS_PAUSE_SECONDS if self.store_sums() else _GAUGE_SECONDS
            await asyncio.sleep(pause)

    async def _set_gauges(self) -> None:
        while True:
            now = time.monotonic()
            self._metrics.records_waiting.set(self.writer.waiting)
            for operation, since in (
                ("record", self.writer.failing_since),
                ("borrow", self.lender.failing_since),
            ):
                failing = self._metrics.store_failing.labels(operation)
                failing.set(0.0 if since is None else now - since)
            await asyncio.sleep(_GAUGE_SECONDS)


def file_rows(volume_bytes: int) -> int:
    """Return how many rows leave room on the volume of a file, for its log and the journal too."""
    return min(MAX_FILE_ROWS, volume_bytes * 3 // 4 // ROW_BYTES)


def _open_journal(folder: Path, name: str) -> UsageJournal | None:
    try:
        return UsageJournal(folder, name=name)
    except OSError as error:
        log.error("usage is lost if this process is killed: no journal: %s", error)
        return None
