"""What becomes of usage records in the supervisor: series, log, spans, and rows of the store."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias

from tessera.adapters.run_forever import run_forever
from tessera.api.text import counted
from tessera.domain.gateway.requests import Phase, UsageRecord
from tessera.gateway.journal import JOURNALS, AbandonedJournal, abandoned_journals
from tessera.gateway.metrics import GatewayMetrics
from tessera.gateway.store.database import Database, StoreError
from tessera.gateway.store.lender import Lender
from tessera.gateway.store.store import GatewayStore, own_file
from tessera.gateway.store.writer import UsageWriter

log = logging.getLogger("tessera.gateway")

# Hears of the records of requests that ended, without waiting.
RecordObserver: TypeAlias = Callable[[Sequence[UsageRecord]], None]

_RETRY_SECONDS = 5.0
_GAUGE_SECONDS = 1.0
_RECOVERY_SECONDS = 1.0
_PRUNE_SECONDS = 3600.0
_PRUNED_RECORDS = 1000
_PRUNE_PAUSE_SECONDS = 0.1


class Recording:
    """Takes the records of all workers; its store may be away when the gateway starts."""

    def __init__(  # noqa: PLR0913 - what one process writes with
        self,
        store: GatewayStore,
        spool: GatewayStore | None,
        metrics: GatewayMetrics,
        *,
        observers: Sequence[RecordObserver] = (),
        retention: timedelta,
        spooled: int = 0,
        journals: Path | None = None,
    ) -> None:
        self.store = store
        self.lender = Lender(store)
        """Lends limits, also while the store fails."""
        self.writer = UsageWriter(store, spool, spooled=spooled, count=metrics.count_records)
        self._spool, self._metrics = spool, metrics
        self._journals = journals
        self._recovering = set[tuple[Path, ...]]()
        """Files of journals whose records are not written yet."""
        self._observers = (metrics.observe, *observers)
        self._retention_ns = retention // timedelta(microseconds=1) * 1000

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
        store = GatewayStore(Database(url or own_file(folder)))
        try:
            await store.migrate()
        except StoreError as error:
            log.error("the gateway starts without its store: %s", error)
        spool = await GatewayStore.open(f"sqlite:///{folder}/spool.db") if url else None
        return cls(
            store,
            spool,
            metrics,
            observers=observers,
            retention=retention,
            spooled=await spool.count() if spool else 0,
            journals=folder / JOURNALS,
        )

    def take(
        self, records: Sequence[UsageRecord], written: Callable[[], None] | None = None
    ) -> None:
        """Show records of requests that ended to all observers; store them, then call `written`.

        Refused requests used nothing, and a client repeats them as often as it likes: they are not
        stored.
        """
        for observe in self._observers:
            observe(records)
        stored = [record for record in records if record.phase is not Phase.REFUSED]
        self.writer.add(stored, written)

    async def run(self) -> None:
        """Write, and delete what is old, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.writer.run())
            group.create_task(run_forever("journals", self._recover_forever))
            group.create_task(self._maintain())
            group.create_task(self._set_gauges())

    async def recover(self) -> None:
        """Store what killed workers left; a record that is stored already stays as it is."""
        if self._journals is None:
            return
        for journal in await asyncio.to_thread(abandoned_journals, self._journals):
            if journal.paths in self._recovering:
                continue
            self._recovering.add(journal.paths)
            log.error(
                "a worker was killed: %s and %s that it had not handed over are recorded",
                counted(len(journal.ended), "request"),
                counted(len(journal.running), "unfinished request"),
            )
            written = partial(self._recovered, journal)
            self.writer.add((*journal.ended, *journal.running), written)

    def _recovered(self, journal: AbandonedJournal) -> None:
        journal.delete()
        self._recovering.discard(journal.paths)

    async def _recover_forever(self) -> None:
        while True:
            await self.recover()
            await asyncio.sleep(_RECOVERY_SECONDS)

    async def close(self) -> None:
        """Write the rest, and close the store."""
        await self.writer.flush()
        for store in filter(None, (self.store, self._spool)):
            await store.close()

    async def prune(self, now_ns: int) -> None:
        """Delete the records that are older than the retention; raises StoreError."""
        while True:
            if not await self.store.prune(now_ns - self._retention_ns, _PRUNED_RECORDS):
                return
            # Others write in between.
            await asyncio.sleep(_PRUNE_PAUSE_SECONDS)

    async def _maintain(self) -> None:
        """Migrate the store as soon as it answers, and prune it every hour."""
        while True:
            try:
                await self.store.migrate()
                await self.prune(time.time_ns())
            except StoreError as error:
                log.error("store: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                await asyncio.sleep(_PRUNE_SECONDS)

    async def _set_gauges(self) -> None:
        while True:
            now = time.monotonic()
            self._metrics.records_waiting.set(self.writer.waiting)
            for operation, since in (
                ("record", self.writer.failing_since),
                ("borrow", self.lender.failing_since),
            ):
                self._metrics.set_store_failing(operation, 0.0 if since is None else now - since)
            await asyncio.sleep(_GAUGE_SECONDS)
