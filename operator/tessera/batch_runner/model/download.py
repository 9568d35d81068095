"""Downloads the files of a model to a volume: resumable, verified and bounded."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tessera.api.text import counted
from tessera.batch_runner.errors import BatchError, RefusedError, TransientError, storage_errors
from tessera.batch_runner.model.sources import (
    Chunk,
    FileSource,
    RangeIgnoredError,
    SourceFile,
    needed_files,
    read_index,
)

_MAX_PARALLEL_FILES = 4
# Holds the commit of a folder.
_COMMIT_FILE = ".tessera-commit"
# Holds commit and size of a folder whose files are all there.
_COMPLETE_FILE = ".tessera-complete"
_LOCK_FILE = ".tessera-lock"
# A file whose size no source says may have so many.
_MAX_FILE_BYTES = 2**40
# A source that sends less in this time is asked again by the next attempt.
_SLOW_BYTES = 2**20
_SLOW_SECONDS = 60.0
_READ_BYTES = 2**20
_FLUSH_BYTES = 32 * 2**20
_LOCK_INTERVAL_SECONDS = 0.2


@dataclass(slots=True)
class DownloadProgress:
    """Downloaded bytes of all files, and their total if the source lists all sizes."""

    done: int = 0
    total: int | None = None


async def download(
    source: FileSource,
    into: Path,
    progress: DownloadProgress,
    *,
    allow_pickles: bool = False,
    slow_seconds: float = _SLOW_SECONDS,
) -> str:
    """Download all files that engines read, and return their commit.

    A folder that is complete stays as it is, and the source is not asked: engines may run from it.
    """
    async with _sole_writer(into):
        if (complete := _read_complete(into)) is not None:
            progress.done = progress.total = complete[1]
            return complete[0]
        listing = await source.listing()
        index = await read_index(source, listing)
        files = needed_files(listing.files, allow_pickles=allow_pickles, index=index)
        sizes = [file.size for file in files if file.size is not None]
        progress.total = sum(sizes) if len(sizes) == len(files) else None
        with storage_errors(into, "write"):
            resumed = _resume_commit(into, listing.commit)
        folder = _Folder(source, into, listing.commit, progress, slow_seconds, resumed=resumed)
        await folder.fetch_all(files)
        with storage_errors(into, "write"):
            text = json.dumps({"commit": listing.commit, "bytes": progress.done})
            _write_whole(into / _COMPLETE_FILE, text)
    return listing.commit


@asynccontextmanager
async def _sole_writer(into: Path) -> AsyncIterator[None]:
    """Wait for other fetches to one folder: what the first completes, the others take."""
    lock = _open_lock(into)
    try:
        while not _try_lock(lock):  # noqa: ASYNC110 - another process has it
            await asyncio.sleep(_LOCK_INTERVAL_SECONDS)
        yield
    finally:
        os.close(lock)


def _open_lock(into: Path) -> int:
    with storage_errors(into, "write"):
        into.mkdir(parents=True, exist_ok=True)
        return os.open(into / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks; there the name of the Job keeps two apart.
        return True
    return True


def _read_complete(into: Path) -> tuple[str, int] | None:
    """Return commit and bytes of a complete folder."""
    try:
        value = json.loads((into / _COMPLETE_FILE).read_text(encoding="utf-8"))
        return str(value["commit"]), int(value["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _resume_commit(into: Path, commit: str) -> bool:
    """Return whether an earlier attempt began this commit, so that its files are valid.

    The files of another commit go: an engine would read those that this one does not replace.
    """
    marker = into / _COMMIT_FILE
    if marker.exists() and marker.read_bytes() == commit.encode():
        return True
    for path in into.iterdir():
        if path.name == _LOCK_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    _write_whole(marker, commit)
    return False


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@dataclass(frozen=True, slots=True)
class _Folder:
    """The folder of one commit while its files come."""

    source: FileSource
    into: Path
    commit: str
    progress: DownloadProgress
    slow_seconds: float
    resumed: bool

    async def fetch_all(self, files: tuple[SourceFile, ...]) -> None:
        slots, errors = asyncio.Semaphore(_MAX_PARALLEL_FILES), list[BatchError]()

        async def fetch_limited(file: SourceFile) -> None:
            async with slots:
                if any(isinstance(error, RefusedError) for error in errors):
                    return  # the others would delay what needs an edit, by hours
                try:
                    with storage_errors(self.into / file.name, "write"):
                        await self._fetch_file(file)
                except BatchError as error:
                    errors.append(error)

        async with asyncio.TaskGroup() as group:
            for file in files:
                group.create_task(fetch_limited(file))
        if errors:
            raise max(errors, key=lambda error: error.code)  # what needs an edit comes first

    async def _fetch_file(self, file: SourceFile) -> None:
        """Download one file, resuming where an earlier attempt stopped."""
        target = self.into / file.name
        part = target.with_name(f"{target.name}.{self.commit[:12]}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.resumed and file.size is not None and _file_size(target) == file.size:
            self.progress.done += file.size
            return
        if file.size is None or _file_size(part) > file.size:
            part.unlink(missing_ok=True)
        offset = _file_size(part)
        self.progress.done += offset
        with part.open("r+b" if part.exists() else "w+b") as out:
            content = _PartialFile(out, hashlib.sha256() if file.sha256 else None)
            await asyncio.to_thread(content.read_existing)
            try:
                await self._append(file, content)
            except RangeIgnoredError:
                self.progress.done -= content.size
                offset = 0
                content.restart()
                await self._append(file, content)
            await asyncio.to_thread(content.sync)
        if file.size is not None and content.size != file.size:
            raise TransientError(
                f"{file.name}: got {content.size} of {counted(file.size, 'byte')}; the next "
                "attempt goes on from there"
            )
        self._verify(file, content, part, offset)
        part.replace(target)

    async def _append(self, file: SourceFile, content: "_PartialFile") -> None:
        if content.size == file.size:
            return
        limit = _MAX_FILE_BYTES if file.size is None else file.size
        chunks = self.source.read_chunks(self.commit, file, content.size)
        try:
            async with (
                aclosing(chunks),
                aclosing(_steady(chunks, file.name, self.slow_seconds)) as steady,
            ):
                async for chunk in steady:
                    if content.size + len(chunk) > limit:
                        raise TransientError(
                            f"{file.name}: the answer exceeds {counted(limit, 'byte')}; the next "
                            "attempt asks again"
                        )
                    await content.write(chunk)
                    self.progress.done += len(chunk)
        finally:
            await content.settle()

    def _verify(self, file: SourceFile, content: "_PartialFile", part: Path, offset: int) -> None:
        if content.digest is None or content.digest.hexdigest() == file.sha256:
            return
        part.unlink()
        self.progress.done -= content.size
        message = f"{file.name} has sha256 {content.digest.hexdigest()}, expected {file.sha256}"
        if offset:
            raise TransientError(f"{message}; the next attempt downloads it from its start")
        raise RefusedError(f"{message}; upload the file again, or correct SHA256SUMS")


class _PartialFile:
    """A file that grows, with the digest of what it holds."""

    def __init__(self, out: BinaryIO, digest: Any) -> None:
        self._out = out
        self._writing: asyncio.Task[None] | None = None
        self.digest = digest
        self.size = 0

    def read_existing(self) -> None:
        """Take over what an earlier attempt wrote."""
        if self.digest is None:
            self.size = self._out.seek(0, os.SEEK_END)
            return
        while block := self._out.read(_READ_BYTES):
            self.digest.update(block)
            self.size += len(block)

    def restart(self) -> None:
        """Drop everything."""
        self._out.seek(0)
        self._out.truncate()
        self.size = 0
        if self.digest is not None:
            self.digest = hashlib.sha256()

    async def write(self, chunk: Chunk) -> None:
        """Begin to write a chunk, so that the next one comes meanwhile."""
        await self.settle()
        self._writing = asyncio.create_task(asyncio.to_thread(self._write, chunk, self.size))
        self.size += len(chunk)

    async def settle(self) -> None:
        """Wait until everything is written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    def sync(self) -> None:
        """Bring everything to the disk: a file with its name is whole, also after a crash."""
        self._out.flush()
        os.fsync(self._out.fileno())

    def _write(self, chunk: Chunk, offset: int) -> None:
        self._out.write(chunk)
        if self.digest is not None:
            self.digest.update(chunk)
        if offset // _FLUSH_BYTES != (offset + len(chunk)) // _FLUSH_BYTES:
            # The disk begins now and not at the end alone, and the pages are not the pod's memory.
            self._out.flush()
            os.posix_fadvise(self._out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def _steady(
    chunks: AsyncGenerator[Chunk], name: str, slow_seconds: float
) -> AsyncGenerator[Chunk]:
    """Yield the chunks of a source until it becomes too slow to wait for."""
    clock, received = asyncio.get_running_loop(), 0
    deadline = clock.time() + slow_seconds
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise TransientError(
                f"{name}: {counted(received, 'byte')} in {slow_seconds:.0f} s, of at least "
                f"{_SLOW_BYTES}; the next attempt goes on from there"
            ) from error
        if chunk is None:
            return
        received += len(chunk)
        if received >= _SLOW_BYTES:
            received, deadline = 0, clock.time() + slow_seconds
        yield chunk


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
