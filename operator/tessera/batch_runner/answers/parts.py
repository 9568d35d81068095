"""Part files: the append-only log of an attempt's requests and answers, a checksum in every line.

A line counts only with a valid checksum, since a kill, a full volume or the loss of a node may
truncate it anywhere in the file.
"""

import asyncio
import json
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias

from tessera.batch_runner.errors import TransientError, storage_errors
from tessera.batch_runner.files import sync_folder, write_all
from tessera.domain.observed.runner_reports import STALL_SECONDS

SYNC_ROWS = 64
SYNC_SECONDS = 5.0


class SentEntry(NamedTuple):
    """A row that is about to be sent and will be paid for."""

    row: int
    prompt_tokens: int
    """An estimate."""
    max_tokens: int | None


class UnsentEntry(NamedTuple):
    """A sent row that the engine did not process, so that nothing was paid."""

    row: int


class AnsweredEntry(NamedTuple):
    """A row with its line for the output or the errors."""

    row: int
    good: bool
    prompt_tokens: int
    output_tokens: int
    begin: int
    """Offset of the row's own line within the part's line."""


Entry: TypeAlias = SentEntry | UnsentEntry | AnsweredEntry

# After the row's own line the part's line has a brace and a line feed.
_TAIL = 2
_HEAD = len(b'{"crc":"00000000",')
_ENTRY_PATTERN = re.compile(
    rb'\{"crc":"([0-9a-f]{8})",'
    rb'(?:"sent":(\d+),"in":(\d+),"max":(\d+|null)\}'
    rb'|"unsent":(\d+)\}'
    rb'|"row":(\d+),"good":(true|false),"in":(\d+),"out":(\d+),"line":'
    rb'(?=\{"id":"([^"]*)"))'
)


def line_id(input_id: str, row: int) -> str:
    """Return the id of a row's line in the results; it names the input and the row."""
    return f"batch_req_{input_id}{row:08x}"


def encode_header(attempt: int, uri: str, revision: str | None) -> bytes:
    """Return the first line of a part: which model answered its rows, for people to read."""
    model = {"attempt": attempt, "model": uri, "revision": revision}
    return _with_checksum(json.dumps(model, separators=(",", ":"))[1:].encode())


def encode_sent(row: int, prompt_tokens: int, max_tokens: int | None) -> bytes:
    limit = "null" if max_tokens is None else max_tokens
    rest = b'"sent":%d,"in":%d,"max":%s}' % (row, prompt_tokens, str(limit).encode())
    return _with_checksum(rest)


def encode_unsent(row: int) -> bytes:
    return _with_checksum(b'"unsent":%d}' % row)


def encode_answered(
    row: int, line: bytes, *, good: bool, prompt: int = 0, output: int = 0
) -> bytes:
    """Return the entry of an answered row; `line` is its line of the results, without the feed."""
    values = (row, b"true" if good else b"false", prompt, output, line)
    return _with_checksum(b'"row":%d,"good":%s,"in":%d,"out":%d,"line":%s}' % values)


def read_entry(line: bytes, input_id: str) -> Entry | None:
    """Return the entry of a line; None when it is truncated or of another input."""
    match = _ENTRY_PATTERN.match(line)
    if match is None or not line.endswith(b"}\n"):
        return None
    if zlib.crc32(memoryview(line)[_HEAD:-1]) != int(match[1], 16):
        return None
    if match[2] is not None:
        max_tokens = None if match[4] == b"null" else int(match[4])
        return SentEntry(int(match[2]), int(match[3]), max_tokens)
    if match[5] is not None:
        return UnsentEntry(int(match[5]))
    row = int(match[6])
    if match[10] != line_id(input_id, row).encode():
        return None
    good = match[7] == b"true"
    return AnsweredEntry(row, good, int(match[8]), int(match[9]), match.end())


def own_line_span(begin: int, length: int) -> slice:
    """Return where the row's own line is in a part's line of this length."""
    return slice(begin, length - _TAIL)


def _with_checksum(rest: bytes) -> bytes:
    return b'{"crc":"%08x",%s\n' % (zlib.crc32(rest), rest)


_FILE_NAME = re.compile(r"shard-(\d{5,})\.attempt-(\d{5,})\.jsonl")


def part_path(work: Path, shard: int, attempt: int) -> Path:
    """Return the path of the part file that only this attempt writes."""
    return parts_folder(work) / f"shard-{shard:05}.attempt-{attempt:05}.jsonl"


def parts_folder(work: Path) -> Path:
    return work / "parts"


def has_parts(work: Path) -> bool:
    """Return whether any attempt has sent a row."""
    folder = parts_folder(work)
    with storage_errors(folder, "read"):
        try:
            return any(folder.iterdir())
        except FileNotFoundError:
            return False


class AttemptParts(Protocol):
    """The part files of all attempts."""

    def attempts(self, shard: int) -> Sequence[int]:
        """Return the attempts with a part file of this shard, the earliest first."""

    def open(self, shard: int, attempt: int) -> BinaryIO:
        """Open a part file at its beginning."""


@dataclass(frozen=True, slots=True)
class PartFiles:
    """The part files of a work folder when it was listed."""

    work: Path
    attempts_by_shard: dict[int, list[int]]

    def attempts(self, shard: int) -> Sequence[int]:
        return self.attempts_by_shard.get(shard, ())

    def open(self, shard: int, attempt: int) -> BinaryIO:
        return part_path(self.work, shard, attempt).open("rb")


def part_files(work: Path) -> PartFiles:
    """List the part files."""
    attempts_by_shard: defaultdict[int, list[int]] = defaultdict(list)
    for path in parts_folder(work).iterdir():
        if match := _FILE_NAME.fullmatch(path.name):
            attempts_by_shard[int(match[1])].append(int(match[2]))
    for attempts in attempts_by_shard.values():
        attempts.sort()
    return PartFiles(work, dict(attempts_by_shard))


@dataclass(slots=True, eq=False)
class Journal:
    """Appends to the part files of one attempt; flushes to disk after 5 seconds or 64 answers."""

    work: Path
    attempt: int
    stall_seconds: float = STALL_SECONDS
    header: bytes = b""
    _open: dict[int, int] = field(default_factory=dict, init=False)
    _unsynced: set[int] = field(default_factory=set, init=False)
    _answers: int = field(default=0, init=False)
    _due: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def append(self, shard: int, line: bytes) -> None:
        """Append a line that may wait for the next flush."""
        with storage_errors(part_path(self.work, shard, self.attempt), "write"):
            write_all(self._descriptor(shard), line)
        self._unsynced.add(shard)

    def append_answer(self, shard: int, line: bytes) -> None:
        """Append an answer; the 64th since the last flush starts one."""
        self.append(shard, line)
        self._answers += 1
        if self._answers >= SYNC_ROWS:
            self._due.set()

    async def run(self) -> None:
        """Flush lines to disk until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SYNC_SECONDS):
                    await self._due.wait()
            try:
                async with asyncio.timeout(self.stall_seconds):
                    await self.sync()
            except TimeoutError as error:
                message = f"the volume of {parts_folder(self.work)} hangs: it took no row for"
                raise TransientError(f"{message} {self.stall_seconds:.0f} s") from error

    async def sync(self) -> None:
        """Flush all lines to disk and close files without new lines; raises a BatchError."""
        self._due.clear()
        self._answers = 0
        syncing, self._unsynced = self._unsynced, set()
        try:
            with storage_errors(parts_folder(self.work), "write to"):
                await asyncio.to_thread(self._sync, [self._open[shard] for shard in syncing])
        except asyncio.CancelledError:
            self._unsynced |= syncing
            raise
        for shard in self._open.keys() - syncing - self._unsynced:
            os.close(self._open.pop(shard))

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _sync(self, descriptors: Sequence[int]) -> None:
        for descriptor in descriptors:
            os.fsync(descriptor)
        if descriptors:
            sync_folder(parts_folder(self.work))

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.get(shard)
        if descriptor is None:
            path = part_path(self.work, shard, self.attempt)
            descriptor = self._open[shard] = os.open(
                path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644
            )
            if os.fstat(descriptor).st_size == 0:
                write_all(descriptor, self.header)
            _terminate_line(descriptor)
        return descriptor


def _terminate_line(descriptor: int) -> None:
    # A restarted container of the same attempt may find a truncated line at the end.
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        write_all(descriptor, b"\n")
