"""Writes usage records in batches, and keeps them while the store does not take them."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Protocol

from tessera.api.text import counted
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import GatewayStore

log = logging.getLogger("tessera.gateway")

# Records of a second share sums and accounts.
BATCH_RECORDS = 1000
BATCH_SECONDS = 1.0
# About 30 MB, and of the spool 200 MB, or with the longest texts 960 MB of the 1 GiB of its volume:
# minutes and hours of a busy gateway.
MAX_BUFFERED = 30_000
MAX_SPOOLED = 400_000
_RETRY_SECONDS = 5.0
_LOG_SECONDS = 60.0


class RecordOutcome(StrEnum):
    """What became of a usage record."""

    STORED = "Stored"
    SPOOLED = "Spooled"
    """In the pod's own file, until the store takes it."""
    SUMMED = "Summed"
    """Added to a sum, since its tenant has very many."""
    LOST = "Lost"
    """The store did not take it, and the pod has no room left for it."""


class RecordStore(Protocol):
    """Where records are written; every method raises StoreError."""

    async def record(self, records: Sequence[UsageRecord]) -> None:
        """Store records; those that are stored already stay as they are."""


class UsageWriter:
    """Takes records without waiting; one task writes them.

    Where the store fails, records go to the spool, and from there into the store when it answers
    again. Without a spool, or when it fails or is full, they stay in memory, and no new
    request is admitted.
    """

    def __init__(
        self,
        store: RecordStore,
        spool: GatewayStore | None = None,
        *,
        spooled: int = 0,
        count: Callable[[RecordOutcome, int], None] = lambda outcome, records: None,  # noqa: ARG005
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a spool in a file of this pod, and how many records it has.

        `count` hears of outcomes and their numbers.
        """
        self._store, self._spool = store, spool
        self._count, self._monotonic = count, monotonic
        self._buffer: deque[UsageRecord] = deque()
        self._added = 0
        self._callbacks: deque[tuple[int, Callable[[], None]]] = deque()
        """Each with the number of records that have to be written before."""
        self._arrived, self._is_batch = asyncio.Event(), asyncio.Event()
        self._spooled = spooled
        self._retry_at = self._logged_at = float("-inf")
        self.failing_since: float | None = None
        """Monotonic seconds of the first failure of the store since it last took records."""

    @property
    def spooled(self) -> int:
        """Return the number of records that the spool has and the store has not."""
        return self._spooled

    @property
    def waiting(self) -> int:
        """Return the number of records that are not in the store."""
        return len(self._buffer) + self._spooled

    def add(
        self, records: Iterable[UsageRecord], written: Callable[[], None] | None = None
    ) -> None:
        """Take records, and call `written` when the store or the spool has them.

        Above MAX_BUFFERED the newest are lost, which is counted and logged.
        """
        for record in records:
            if len(self._buffer) < MAX_BUFFERED:
                self._buffer.append(record)
                self._added += 1
            else:
                self._count(RecordOutcome.LOST, 1)
                self._report("usage records are lost: the store does not take them, no room left")
        if written is not None:
            self._callbacks.append((self._added, written))
            self._call_back()
        self._arrived.set()
        if len(self._buffer) >= BATCH_RECORDS:
            self._is_batch.set()

    async def run(self) -> None:
        """Write batches until it is cancelled; `flush` writes the rest."""
        while True:
            await self._wait()
            while await self.write() and len(self._buffer) >= BATCH_RECORDS:
                pass

    async def flush(self) -> None:
        """Write all records that the store or the spool takes."""
        self._retry_at = float("-inf")
        while self._buffer and await self.write():
            pass

    async def write(self) -> bool:
        """Write one batch to the store, or while that fails to the spool; False if none took it."""
        batch = list(itertools.islice(self._buffer, BATCH_RECORDS))
        if not batch:
            return await self._empty_spool()
        if await self._store_takes(batch):
            await self._empty_spool()
            outcome = RecordOutcome.STORED
        elif await self._spool_takes(batch):
            self._spooled += len(batch)
            outcome = RecordOutcome.SPOOLED
        else:
            return False
        for _ in batch:
            self._buffer.popleft()
        self._count(outcome, len(batch))
        self._call_back()
        return True

    def _call_back(self) -> None:
        while self._callbacks and self._callbacks[0][0] <= self._added - len(self._buffer):
            self._callbacks.popleft()[1]()

    async def _wait(self) -> None:
        """Return with a batch, at the latest BATCH_SECONDS after the first record of one."""
        if not self.waiting:
            await self._arrived.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(BATCH_SECONDS):
                await self._is_batch.wait()
        self._arrived.clear()
        self._is_batch.clear()

    async def _store_takes(self, batch: Sequence[UsageRecord]) -> bool:
        now = self._monotonic()
        if now < self._retry_at:
            return False
        try:
            await self._store.record(batch)
        except StoreError as error:
            self._retry_at = self._monotonic() + _RETRY_SECONDS
            self.failing_since = now if self.failing_since is None else self.failing_since
            self._report(f"{counted(self.waiting, 'usage record')} not in the store: {error}")
            return False
        if self.failing_since is not None:
            log.warning("the store takes usage records again")
            self.failing_since = None
        return True

    async def _spool_takes(self, batch: Sequence[UsageRecord]) -> bool:
        if self._spool is None or self._spooled + len(batch) > MAX_SPOOLED:
            return False
        try:
            await self._spool.keep(batch)
        except StoreError as error:
            self._report(f"the spool of usage records fails: {error}")
            return False
        return True

    async def _empty_spool(self) -> bool:
        """Move one batch from the spool to the store; a repeated move counts no record twice."""
        if self._spool is None or not self._spooled:
            return False
        try:
            records = await self._spool.oldest(BATCH_RECORDS)
            if len(records) < BATCH_RECORDS:
                # Some came a second time.
                self._spooled = len(records)
            if not await self._store_takes(records):
                return False
            await self._spool.forget(records)
        except StoreError as error:
            self._report(f"the spool of usage records fails: {error}")
            return False
        self._spooled -= min(len(records), self._spooled)
        self._count(RecordOutcome.STORED, len(records))
        return True

    def _report(self, message: str) -> None:
        now = self._monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            log.error(message)
