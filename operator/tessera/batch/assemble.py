"""Output and errors from the parts: in the order of the rows, each exactly once."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tessera.batch import parts
from tessera.batch.errors import TroubleError, storage
from tessera.batch.files import sync_folder
from tessera.batch.ledger import Ledger
from tessera.batch.manifest import Manifest
from tessera.batch.parts import Answered, Parts
from tessera.batch.pulse import Pulse
from tessera.batch.records import Sealed


class Place(NamedTuple):
    """Where the line of a row is."""

    attempt: int
    offset: int
    length: int
    good: bool


class Sink:
    """A file of results, and what is needed to know it again."""

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

    def sealed(self, name: str) -> Sealed:
        return Sealed(
            file=name, bytes=self._bytes, rows=self._rows, sha256=self._digest.hexdigest()
        )


def assemble(
    manifest: Manifest, ledger: Ledger, found: Parts, sink_of: Callable[[bool], Sink], pulse: Pulse
) -> None:
    """Give every row's line to the sink of the good ones or to that of the others."""
    for number, shard in enumerate(manifest.shards):
        pulse.beat("%s of %s rows assembled", shard.first_row, manifest.rows)
        rows = range(shard.first_row, shard.first_row + shard.rows)
        with ExitStack() as stack:
            opened = {
                attempt: stack.enter_context(found.open(number, attempt))
                for attempt in sorted({ledger.winner(row) for row in rows} - {0})
            }
            places: dict[int, Place] = {}
            for attempt, part in opened.items():
                _locate(part, attempt, manifest.stamp, ledger, places)
            for row in rows:
                if (place := places.get(row)) is None:
                    raise TroubleError(f"the answer of row {row + 1} is gone from its part file")
                part = opened[place.attempt]
                part.seek(place.offset)
                sink_of(place.good).write(part.read(place.length) + b"\n")


def assembled(
    work: Path, manifest: Manifest, ledger: Ledger, name: str, pulse: Pulse
) -> tuple[Sealed, Sealed]:
    """New files of output and errors, on the disk; `name` is this process's own."""
    folder = work / "assembled"
    good, bad = (f"{folder.name}/{name}.{kind}.jsonl" for kind in ("output", "errors"))
    try:
        folder.mkdir(exist_ok=True)
        with _new(work / good) as output, _new(work / bad) as errors:
            sinks = {True: Sink(output), False: Sink(errors)}
            assemble(manifest, ledger, parts.part_files(work), sinks.__getitem__, pulse)
        sync_folder(folder)
    except OSError as error:
        raise storage(error, folder, "assemble the results in") from error
    return sinks[True].sealed(good), sinks[False].sealed(bad)


@contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """A file that is on the disk afterwards, or gone: nobody needs half of one on a full volume."""
    whole = False
    try:
        with path.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        whole = True
    finally:
        if not whole:
            path.unlink(missing_ok=True)


def _locate(
    part: BinaryIO, attempt: int, stamp: str, ledger: Ledger, places: dict[int, Place]
) -> None:
    """Find the first whole line of every row that this attempt won."""
    offset = 0
    for line in part:
        entry = parts.read(line, stamp)
        if (
            isinstance(entry, Answered)
            and entry.row not in places
            and entry.row < ledger.rows
            and ledger.winner(entry.row) == attempt
        ):
            own = parts.own_line(entry.begin, len(line))
            places[entry.row] = Place(attempt, offset + own.start, own.stop - own.start, entry.good)
        offset += len(line)
