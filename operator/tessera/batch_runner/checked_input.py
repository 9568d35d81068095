"""The input of an attempt, of which only the rows of the check are used."""

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from tessera.api.text import counted
from tessera.batch_runner.answers.ledger import Ledger
from tessera.batch_runner.errors import InputChangedError, storage_error, storage_errors
from tessera.batch_runner.files import open_regular
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input.manifest import InputManifest
from tessera.batch_runner.input.scan import read_lines

_CHUNK_BYTES = 2**20

FileState: TypeAlias = tuple[int, ...]


class PendingRow(NamedTuple):
    """A row without an answer."""

    shard: int
    row: int
    content: bytes


@dataclass(slots=True, kw_only=True)
class CheckedInput:
    """An input that had the checksum of its check when it was verified.

    It is held open: another file under its name changes none of its rows.
    """

    path: Path
    manifest: InputManifest
    file: BinaryIO
    row_hashes: "array[int]"
    """The hash of each row, in eight bytes; Python salts it per process."""
    file_state: FileState
    """Inode, size and times when its content was last the checked one."""

    def close(self) -> None:
        self.file.close()

    def pending_rows(self, ledger: Ledger) -> Iterator[PendingRow]:
        """Yield rows that have no answer when they are reached; completed shards are not read.

        Raises InputChangedError at a row that is not the one of the check.
        """
        for number, shard in enumerate(self.manifest.shards):
            row_numbers = range(shard.first_row, shard.first_row + shard.rows)
            if all(map(ledger.is_answered, row_numbers)):
                continue
            self.file.seek(shard.offset)
            lines = read_lines(self.file, len)
            for row in row_numbers:
                line = next(lines, None)
                if (
                    line is None
                    or line.content is None
                    or hash(line.content) != self.row_hashes[row]
                ):
                    raise changed_error(self.path, self.manifest, _size(self.file))
                if not ledger.is_answered(row):
                    yield PendingRow(number, row, line.content)

    def verify_unchanged(self, heartbeat: WorkHeartbeat) -> None:
        """Raise InputChangedError if the file that is held open was edited since its check."""
        with storage_errors(self.path, "read"):
            state = _file_state(self.file)
            if state == self.file_state:
                return
            size, sha256 = _checksum(self.file, heartbeat)
        if (size, sha256) != (self.manifest.bytes, self.manifest.sha256):
            raise changed_error(self.path, self.manifest, size)
        self.file_state = state

    def is_replaced(self) -> bool:
        """Return whether the name is that of another file by now, or of none."""
        try:
            state = self.path.stat()
        except OSError:
            return True
        return (state.st_dev, state.st_ino) != self.file_state[:2]


def verify(path: Path, manifest: InputManifest, heartbeat: WorkHeartbeat) -> CheckedInput:
    """Return the open input; InputChangedError unless it has the checksum of its check."""
    digest, row_hashes = hashlib.sha256(), array("q")
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise changed_error(path, manifest, None) from error
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if file is None:
        raise changed_error(path, manifest, None)
    try:
        with storage_errors(path, "read"):
            file_state = _file_state(file)
            for line in read_lines(file, digest.update):
                heartbeat.beat("%s of %s rows verified", line.number, manifest.rows)
                if line.number <= manifest.rows:
                    row_hashes.append(hash(line.content))
            if (file.tell(), digest.hexdigest()) != (manifest.bytes, manifest.sha256):
                raise changed_error(path, manifest, file.tell())
    except BaseException:
        file.close()
        raise
    return CheckedInput(
        path=path, manifest=manifest, file=file, row_hashes=row_hashes, file_state=file_state
    )


def is_as_checked(
    path: Path, manifest: InputManifest, heartbeat: WorkHeartbeat, known: FileState | None
) -> bool:
    """Return whether the input is the one of the check; `known` is its state when it was."""
    try:
        if (file := open_regular(path)) is None:
            return False
        with file:
            return _file_state(file) == known or (
                _checksum(file, heartbeat) == (manifest.bytes, manifest.sha256)
            )
    except OSError:
        return False


def _file_state(file: BinaryIO) -> FileState:
    state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _checksum(file: BinaryIO, heartbeat: WorkHeartbeat) -> tuple[int, str]:
    """Return size and SHA-256 of an open file, whose position does not move."""
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(file.fileno(), _CHUNK_BYTES, offset):
        heartbeat.beat("%s bytes of the input compared", offset)
        digest.update(chunk)
        offset += len(chunk)
    return offset, digest.hexdigest()


def changed_error(path: Path, manifest: InputManifest, size: int | None) -> InputChangedError:
    """Return the error of an input with `size` now, None if it is no file; it says what to do."""
    checked = counted(manifest.bytes, "byte")
    if size is None:
        change = f"it had {checked}, and is no file any more"
    elif size != manifest.bytes:
        change = f"it has {counted(size, 'byte')}, and had {manifest.bytes}"
    else:
        change = f"it has other content in {checked}"
    return InputChangedError(
        f"{path} changed after its check: {change}. Put the checked file back (SHA-256 "
        f"{manifest.sha256}) and the batch goes on, or create another BatchInference for the new "
        "file"
    )
