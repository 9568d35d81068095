"""Appends to this attempt's part files, so that a kill loses nothing and a lost node little."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tessera.batch_runner import parts
from tessera.batch_runner.errors import storage_error
from tessera.batch_runner.files import sync_folder, write_all

SYNC_ROWS = 64
SYNC_SECONDS = 5.0


class Journal:
    """Every line is written at once and on the disk after 5 seconds or 64 answers."""

    def __init__(self, work: Path, attempt: int) -> None:
        self._work = work
        self._attempt = attempt
        self._open: dict[int, int] = {}
        self._unsynced: set[int] = set()
        self._answers = 0
        self._due = asyncio.Event()

    def append(self, shard: int, line: bytes) -> None:
        """Append what need not hurry to the disk."""
        try:
            write_all(self._descriptor(shard), line)
        except OSError as error:
            raise storage_error(
                error, parts.part_path(self._work, shard, self._attempt), "write"
            ) from error
        self._unsynced.add(shard)

    def append_answer(self, shard: int, line: bytes) -> None:
        """Append an answer."""
        self.append(shard, line)
        self._answers += 1
        if self._answers >= SYNC_ROWS:
            self._due.set()

    async def run(self) -> None:
        """Bring lines to the disk until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SYNC_SECONDS):
                    await self._due.wait()
            await self.sync()

    async def sync(self) -> None:
        """All lines so far are on the disk; files that rest are closed."""
        self._due.clear()
        self._answers = 0
        syncing, self._unsynced = self._unsynced, set()
        try:
            await asyncio.to_thread(self._sync, [self._open[shard] for shard in syncing])
        except asyncio.CancelledError:
            self._unsynced |= syncing
            raise
        except OSError as error:
            raise storage_error(error, parts.parts_folder(self._work), "write to") from error
        for shard in self._open.keys() - syncing - self._unsynced:
            os.close(self._open.pop(shard))

    def close(self) -> None:
        """Give all files back."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _sync(self, descriptors: Sequence[int]) -> None:
        for descriptor in descriptors:
            os.fsync(descriptor)
        if descriptors:
            sync_folder(parts.parts_folder(self._work))

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.get(shard)
        if descriptor is None:
            path = parts.part_path(self._work, shard, self._attempt)
            descriptor = self._open[shard] = os.open(
                path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644
            )
            _terminate_line(descriptor)
        return descriptor


def _terminate_line(descriptor: int) -> None:
    """A container that is started again in the same attempt may find a torn line of its own."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        write_all(descriptor, b"\n")
