"""The input of an attempt, of which only the rows of the check are used."""

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tessera.batch_runner.errors import RefusedError, storage_error
from tessera.batch_runner.files import open_regular
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.ledger import Ledger
from tessera.batch_runner.manifest import InputManifest
from tessera.batch_runner.scan import read_lines


class PendingRow(NamedTuple):
    """A row without an answer."""

    shard: int
    row: int
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedInput:
    """An input that had the checksum of its check when it was verified."""

    path: Path
    manifest: InputManifest
    row_hashes: "array[int]"
    """The hash of each row, in eight bytes; Python salts it per process."""
    file_state: tuple[int, ...]

    def open(self) -> BinaryIO:
        """Open the input for `pending_rows`."""
        return _open(self.path)

    def pending_rows(self, file: BinaryIO, ledger: Ledger) -> Iterator[PendingRow]:
        """Yield rows that have no answer when they are reached; completed shards are not read.

        Raises RefusedError at a row that is not the one of the check.
        """
        for number, shard in enumerate(self.manifest.shards):
            row_numbers = range(shard.first_row, shard.first_row + shard.rows)
            if all(map(ledger.is_answered, row_numbers)):
                continue
            file.seek(shard.offset)
            lines = read_lines(file, len)
            for row in row_numbers:
                line = next(lines, None)
                if (
                    line is None
                    or line.content is None
                    or hash(line.content) != self.row_hashes[row]
                ):
                    raise _changed_error(self.path)
                if not ledger.is_answered(row):
                    yield PendingRow(number, row, line.content)

    def verify_unchanged(self, heartbeat: WorkHeartbeat) -> None:
        """Raise RefusedError if the input was edited, extended or replaced since `verify`."""
        try:
            with self.open() as file:
                unchanged = _file_state(file) == self.file_state
        except OSError as error:
            raise storage_error(error, self.path, "read") from error
        if not unchanged:
            verify(self.path, self.manifest, heartbeat)


def verify(path: Path, manifest: InputManifest, heartbeat: WorkHeartbeat) -> CheckedInput:
    """Return the input; RefusedError unless it has the size and the checksum of its check."""
    digest, row_hashes = hashlib.sha256(), array("q")
    try:
        with _open(path) as file:
            file_state = _file_state(file)
            for line in read_lines(file, digest.update):
                heartbeat.beat("%s of %s rows verified", line.number, manifest.rows)
                if line.number <= manifest.rows:
                    row_hashes.append(hash(line.content))
            unchanged = (file.tell(), digest.hexdigest()) == (manifest.bytes, manifest.sha256)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if not unchanged:
        raise _changed_error(path)
    return CheckedInput(path=path, manifest=manifest, row_hashes=row_hashes, file_state=file_state)


def _open(path: Path) -> BinaryIO:
    if (file := open_regular(path)) is None:
        raise _changed_error(path)
    return file


def _file_state(file: BinaryIO) -> tuple[int, ...]:
    state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _changed_error(path: Path) -> RefusedError:
    return RefusedError(
        f"{path} changed after its check, so answers could belong to other rows and nothing is "
        "published. Create another BatchInference for the new file"
    )
