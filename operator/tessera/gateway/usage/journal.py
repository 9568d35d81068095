"""What a gateway would take with it if it were killed: usage records that are not stored yet.

A request is appended when an engine gets it and when it has ended, and once a second those that run
are written as they are then. A file is locked as long as its process lives; the next process
records what a dead one left. So every request that an engine got is recorded, with its tokens of up
to a second before the end of the process, also when the container is killed, as long as its volume
stays.
"""

import contextlib
import fcntl
import os
import uuid
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.store.schema import StoredRecord, usage_record

# Folder of the journals, on the gateway's volume.
JOURNALS = "journals"
_SEGMENT_BYTES = 2**20
_ENDED, _RUNNING = ".ended", ".running"
_decoder = msgspec.msgpack.Decoder(StoredRecord)
_VALUES = attrgetter(*StoredRecord.__struct_fields__)


class _Segment(NamedTuple):
    path: Path
    file: BinaryIO
    number: int
    """Of the last record that it has."""


class UsageJournal:
    """The files of one process; every method raises OSError."""

    def __init__(
        self, folder: Path, *, name: str | None = None, segment_bytes: int = _SEGMENT_BYTES
    ) -> None:
        """Create the files in a folder, which is made; they have the name of the gateway."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._name = folder, name or uuid.uuid4().hex
        self._segment_bytes = segment_bytes
        self._segments = deque[_Segment]()
        self._number = self._size = 0
        self._path, self._file = self._create()
        self._sums: _Segment | None = None
        self._ended_sums = list[_Segment]()
        self._running_path = folder / f"{self._name}{_RUNNING}"
        self._had_running = False

    def add(self, records: Sequence[UsageRecord], number: int) -> None:
        """Keep records of requests that began, or of those that ended until they are stored.

        `number` is that of the last record on its way to the store.
        """
        self._append(b"".join(map(_frame, records)), number)

    def add_summed(self, record: UsageRecord, total: UsageRecord, number: int) -> None:
        """Keep that a request is part of a sum: one write has it, as nothing, and the sum."""
        self._append(_frame(record, is_in_sum=True) + _frame(total), number)

    def _append(self, frames: bytes, number: int) -> None:
        self._file.write(frames)
        self._size += len(frames)
        if self._size >= self._segment_bytes:
            self._segments.append(_Segment(self._path, self._file, number))
            self._path, self._file = self._create()
            self._size = 0

    def _drop(self, oldest: int | None) -> None:
        """Drop the records before the oldest one that is not stored, or all."""
        while self._segments and (oldest is None or self._segments[0].number < oldest):
            _delete(self._segments.popleft())
        if oldest is None and self._size:
            self._file.truncate(0)
            self._size = 0

    def note_running(self, records: Sequence[UsageRecord], oldest: int | None) -> None:
        """Replace the records of requests that run, then drop what is stored.

        `oldest` is the number of the first record that is not; None: all are.
        """
        if records or self._had_running:
            self._had_running = bool(records)
            temporary = self._running_path.with_suffix(".new")
            temporary.write_bytes(b"".join(map(_frame, records)))
            temporary.replace(self._running_path)
        self._drop(oldest)

    def note_sums(self, sums: Sequence[UsageRecord]) -> None:
        """Keep sums that grew, until `drop_ended_sums` after the end of their period."""
        if sums:
            if self._sums is None:
                self._sums = _Segment(*self._create(), 0)
            self._sums.file.write(b"".join(map(_frame, sums)))

    def end_sums(self) -> None:
        """Begin other sums."""
        if self._sums is not None:
            self._ended_sums.append(self._sums)
            self._sums = None

    def drop_ended_sums(self) -> None:
        """Drop the sums before, which are stored."""
        while self._ended_sums:
            _delete(self._ended_sums.pop())

    def close(self) -> None:
        """Delete the files: everything is stored."""
        self.leave()
        self._path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Delete what is written elsewhere; the next process finds the name of the gateway."""
        self._drop(None)
        self.end_sums()
        self.drop_ended_sums()
        self._running_path.unlink(missing_ok=True)
        self._file.close()

    def _create(self) -> tuple[Path, BinaryIO]:
        # It is locked before others can see it.
        self._number += 1
        path = self._folder / f"{self._name}-{self._number}{_ENDED}"
        file = path.with_suffix(".new").open("ab", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.with_suffix(".new").rename(path)
        return path, file


class AbandonedJournal(NamedTuple):
    """What a dead process left."""

    gateway: str
    paths: tuple[Path, ...]
    records: tuple[UsageRecord, ...]
    """Those of requests that ran are as they were up to a second before its end."""

    @property
    def unfinished(self) -> int:
        """Return how many requests ran."""
        return sum(record.reason == RequestReason.GATEWAY_KILLED for record in self.records)

    def empty(self) -> None:
        """Delete the records, once they are written; the name of the gateway stays."""
        for path in self.paths[1:]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.paths[0], 0)

    def delete(self) -> None:
        """Delete the files, once the accounts know that the gateway ended."""
        for path in self.paths:
            path.unlink(missing_ok=True)


def abandoned_journals(folder: Path) -> list[AbandonedJournal]:
    """Return what processes left that ended without closing their journals."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{_ENDED}")):
        files.setdefault(path.stem.partition("-")[0], []).append(path)
    journals = []
    for name, paths in files.items():
        if not all(map(_is_abandoned, paths)):
            continue
        running_path = folder / f"{name}{_RUNNING}"
        records = [record for path in paths for record in _read(path)]
        ended = [record for record in records if record.reason != RequestReason.GATEWAY_KILLED]
        # Of a sum the one of most requests is the last, and of calls alone that of most time.
        ended.sort(key=attrgetter("requests", "total_ns"))
        # Of a request its end counts, or else the newest of what it was while it ran.
        last = {each.record_id: each for each in (*records, *_read(running_path), *ended)}
        left = tuple(record for record in last.values() if record.requests or record.model_route)
        journals.append(AbandonedJournal(name, (*paths, running_path), left))
    return journals


def _delete(segment: _Segment) -> None:
    segment.path.unlink(missing_ok=True)
    segment.file.close()


def _is_abandoned(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _frame(record: UsageRecord, *, is_in_sum: bool = False) -> bytes:
    stored: Any = StoredRecord(*_VALUES(record))
    if is_in_sum:
        # A call that did not answer counts no request either, and has a route.
        stored.requests, stored.model_route = 0, ""
    body = msgspec.msgpack.encode(stored)
    return len(body).to_bytes(4) + body


def _read(path: Path) -> list[UsageRecord]:
    """Return the whole records of a file; the last one may be cut."""
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        return []
    records, at = list[UsageRecord](), 0
    while at + 4 <= len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4])
        try:
            records.append(usage_record(_decoder.decode(content[at + 4 : end])))
        except msgspec.DecodeError:
            break
        at = end
    return records
