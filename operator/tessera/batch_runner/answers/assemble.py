"""Assembly of the output and the errors file: each row once, in the order of the input."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tessera.batch_runner.answers import parts
from tessera.batch_runner.answers.ledger import Ledger
from tessera.batch_runner.answers.parts import AnsweredEntry, AttemptParts
from tessera.batch_runner.answers.publish import ResultFile
from tessera.batch_runner.errors import TransientError, storage_errors
from tessera.batch_runner.files import sync_folder
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input.manifest import InputManifest


class LinePosition(NamedTuple):
    """Where in a part file the line of a row is."""

    attempt: int
    offset: int
    length: int
    good: bool


class ResultSink:
    """A file of results that is being written, with its checksum and counts."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._rows = 0

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._digest.update(line)
        self._bytes += len(line)
        self._rows += 1

    def result_file(self, name: str) -> ResultFile:
        sha256 = self._digest.hexdigest()
        return ResultFile(file=name, bytes=self._bytes, rows=self._rows, sha256=sha256)


def assemble(
    manifest: InputManifest,
    ledger: Ledger,
    part_files: AttemptParts,
    sink_of: Callable[[bool], ResultSink],
    heartbeat: WorkHeartbeat,
) -> None:
    """Write the line of every row to the sink of the answers or to that of the errors.

    `sink_of(True)` is the sink of the answers. Raises TransientError when a part file lost a line
    that the ledger counts.
    """
    for number, shard in enumerate(manifest.shards):
        heartbeat.beat("%s of %s rows assembled", shard.first_row, manifest.rows)
        rows = range(shard.first_row, shard.first_row + shard.rows)
        with ExitStack() as stack:
            opened = {
                attempt: stack.enter_context(part_files.open(number, attempt))
                for attempt in sorted({ledger.winner(row) for row in rows} - {0})
            }
            positions: dict[int, LinePosition] = {}
            for attempt, part in opened.items():
                _locate(part, attempt, manifest.input_id, ledger, positions)
            for row in rows:
                if (position := positions.get(row)) is None:
                    raise TransientError(f"the part file no longer has the answer of row {row + 1}")
                part = opened[position.attempt]
                part.seek(position.offset)
                sink_of(position.good).write(part.read(position.length) + b"\n")


def assemble_files(
    work: Path, manifest: InputManifest, ledger: Ledger, name: str, heartbeat: WorkHeartbeat
) -> tuple[ResultFile, ResultFile]:
    """Write new files of the output and the errors, and flush them to disk.

    `name` must be unique to the process. Raises a BatchError when the volume refuses.
    """
    folder = work / "assembled"
    good, bad = (f"{folder.name}/{name}.{kind}.jsonl" for kind in ("output", "errors"))
    with storage_errors(folder, "assemble the results in"):
        folder.mkdir(exist_ok=True)
        with _new_file(work / good) as output, _new_file(work / bad) as errors:
            sinks = {True: ResultSink(output), False: ResultSink(errors)}
            assemble(manifest, ledger, parts.part_files(work), sinks.__getitem__, heartbeat)
        sync_folder(folder)
    return sinks[True].result_file(good), sinks[False].result_file(bad)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Create a file that is flushed to disk when the block succeeds and deleted otherwise."""
    complete = False
    try:
        with path.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        complete = True
    finally:
        # Half a file would only fill the volume further.
        if not complete:
            path.unlink(missing_ok=True)


def _locate(
    part: BinaryIO, attempt: int, input_id: str, ledger: Ledger, positions: dict[int, LinePosition]
) -> None:
    """Add the position of the first intact line of every row whose answer is this attempt's."""
    offset = 0
    for line in part:
        entry = parts.read_entry(line, input_id)
        if (
            isinstance(entry, AnsweredEntry)
            and entry.row not in positions
            and entry.row < ledger.rows
            and ledger.winner(entry.row) == attempt
        ):
            span = parts.own_line_span(entry.begin, len(line))
            length = span.stop - span.start
            positions[entry.row] = LinePosition(attempt, offset + span.start, length, entry.good)
        offset += len(line)
