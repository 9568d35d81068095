"""What becomes of usage records: series, log, spans, and rows of the store."""

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from tessera.api.text import counted
from tessera.domain.gateway.requests import Phase, UsageRecord
from tessera.domain.usage.sums import UsageSums
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.lender import Lender
from tessera.gateway.store.store import ROW_BYTES, GatewayStore, own_file
from tessera.gateway.store.writer import RecordOutcome, UsageWriter
from tessera.gateway.usage.journal import JOURNALS, UsageJournal, abandoned_journals
from tessera.gateway.usage.metrics import GatewayMetrics

log = logging.getLogger("tessera.gateway")

# Hears of the record of a request that ended, without waiting.
RecordObserver: TypeAlias = Callable[[UsageRecord], object]

_RETRY_SECONDS = 5.0
_GAUGE_SECONDS = 1.0
# Seconds of a busy gateway; the records of requests that run then still have room.
_MAX_UNWRITTEN_RECORDS = 5_000
# Of one tenant in each period: 20 requests a second, so that none fills the store by many small
# ones. Those that follow are added up, and become rows at the end of the period.
MAX_TENANT_ROWS = 1200
SUM_SECONDS = 60
# Of a database about 4 GB, of a file 170 MB; with the longest texts five times as much.
MAX_STORE_ROWS, MAX_FILE_ROWS = 10_000_000, 500_000
_PRUNE_SECONDS = 300.0
_PRUNED_RECORDS = 1000
_PRUNE_PAUSE_SECONDS = 0.1


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
    ) -> None:
        self.store = store
        self.lender = Lender(store)
        """Lends limits, also while the store fails."""
        self.writer = UsageWriter(store, spool, spooled=spooled, count=metrics.count_records)
        self._spool, self._metrics, self._is_migrated = spool, metrics, is_migrated
        self._journals = journals
        self._journal = _open_journal(journals) if journals is not None else None
        self._added = self._written = 0
        self._rows = Counter[str]()
        """By tenant, in this period."""
        self._sums = _empty_sums()
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
    ) -> "Recording":
        """Open the store of a URL, or without one a SQLite file in the folder.

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
        )

    @property
    def has_room(self) -> bool:
        """Return whether new requests may begin: what is not recorded is not granted."""
        return self._added - self._written < _MAX_UNWRITTEN_RECORDS

    def add(self, record: UsageRecord) -> None:
        """Show the record of a request that ended to all observers, and store it.

        Refused requests used nothing, and a client repeats them as often as it likes: they are not
        stored. Of a tenant with more than MAX_TENANT_ROWS the sums of the others are.
        """
        for observe in self._observers:
            observe(record)
        if record.phase is Phase.REFUSED:
            return
        self._rows[record.tenant] += 1
        if self._rows[record.tenant] <= MAX_TENANT_ROWS:
            self._write(record)
            return
        self._metrics.count_records(RecordOutcome.SUMMED, 1)
        total = self._sums.add(record)
        self._note(lambda journal: journal.add((replace(record, requests=0), total), self._added))

    def end_period(self) -> None:
        """Store the sums, and begin new ones."""
        sums, self._sums = self._sums, _empty_sums()
        self._rows.clear()
        for total in sums:
            self._write(total)

    def _write(self, record: UsageRecord) -> None:
        self._added += 1
        self._note(lambda journal: journal.add((record,), self._added))
        self.writer.add((record,), self._count_written)

    def note_begun(self, record: UsageRecord) -> None:
        """Keep that an engine got a request, in case this process is killed."""
        self._note(lambda journal: journal.add((record,), self._added))

    def note_running(self, records: Sequence[UsageRecord]) -> None:
        """Keep what the requests that run used so far; what is stored is dropped."""
        oldest = self._written + 1 if self._written < self._added else None
        self._note(lambda journal: journal.note_running((*records, *self._sums), oldest))

    async def run(self) -> None:
        """Write, and delete what is old, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.writer.run())
            group.create_task(self._maintain())
            group.create_task(self._set_gauges())
            group.create_task(self._end_periods())

    async def recover(self) -> None:
        """Store what a killed process left; a record that is stored already stays as it is."""
        if self._journals is None:
            return
        for journal in await asyncio.to_thread(abandoned_journals, self._journals):
            log.error(
                "the gateway was killed: %s and %s that were not stored are recorded",
                counted(len(journal.records) - journal.unfinished, "request"),
                counted(journal.unfinished, "unfinished request"),
            )
            self.writer.add(journal.records, journal.delete)

    async def close(self) -> None:
        """Write the rest, and close the store."""
        self.end_period()
        await self.writer.flush()
        if self._written == self._added:
            self._note(UsageJournal.close)
        for store in filter(None, (self.store, self._spool)):
            await store.close()

    def _count_written(self) -> None:
        self._written += 1

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

        Where there are too many rows, those of the tenant with the most become sums.
        """
        while True:
            if not await self.store.prune(now_ns - self._retention_ns, _PRUNED_RECORDS):
                break
            # Others write in between.
            await asyncio.sleep(_PRUNE_PAUSE_SECONDS)
        rows = Counter(await self.store.rows_by_tenant())
        while rows.total() > self._max_rows:
            ((tenant, _),) = rows.most_common(1)
            freed = await self.store.make_room(tenant, _PRUNED_RECORDS)
            if not freed.rows:
                return
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


def _empty_sums() -> UsageSums:
    return UsageSums(SUM_SECONDS * 10**9)


def _open_journal(folder: Path) -> UsageJournal | None:
    try:
        return UsageJournal(folder)
    except OSError as error:
        log.error("usage is lost if this process is killed: no journal: %s", error)
        return None
