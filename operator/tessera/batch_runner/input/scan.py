"""Scan of the input in bounded memory: its faults, duplicates, shards and token estimates."""

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from tessera.batch_runner.input import rows
from tessera.batch_runner.input.manifest import SHARD_ROWS
from tessera.batch_runner.input.rows import BatchRow, RequestTarget, RowFault

MAX_ROW_BYTES = 8 * 2**20
_CHUNK_BYTES = 2**20
IdHasher = Callable[[str], int]
# A file with more repeated hashes than this certainly has duplicates.
_MAX_SUSPECTS = 10_000
# Only the first different faults are listed, each with its first lines; all are counted.
MAX_SHOWN_FAULTS = 20
_MAX_SHOWN_RANGES = 3
# Bytes of a line that belong to neither its body nor its custom_id.
_ENVELOPE_BYTES = 75
_EMPTY_FILE = RowFault(
    code="empty_file", message="the file has no rows; it needs one JSON object per line"
)
_EMPTY_LINE = RowFault(code="invalid_json", message="the line is empty; remove it")
_TOO_LARGE = RowFault(
    code="row_too_large",
    message=f"the row is larger than {MAX_ROW_BYTES // 2**20} MiB; shorten or split it",
)


class InputLine(NamedTuple):
    """One line of the input, without its line feed."""

    number: int
    """Counted from 1, as in editors."""
    offset: int
    content: bytes | None
    """None when the line exceeds the size limit of a row."""


def read_lines(file: BinaryIO, observe: Callable[[bytes], object]) -> Iterator[InputLine]:
    """Yield every line from the file's position on; `observe` gets every byte, in order.

    A line above the size limit is read in chunks and never held in memory.
    """
    offset = 0
    for number in itertools.count(1):
        piece = file.readline(MAX_ROW_BYTES + 1)
        if not piece:
            return
        observe(piece)
        complete = piece.endswith(b"\n") or len(piece) <= MAX_ROW_BYTES
        yield InputLine(number, offset, piece.rstrip(b"\r\n") if complete else None)
        offset += len(piece)
        while not complete and (piece := file.readline(_CHUNK_BYTES)):
            observe(piece)
            offset += len(piece)
            complete = piece.endswith(b"\n")


def id_hash(custom_id: str) -> int:
    """Return a hash of 64 bits, never 0."""
    # Python salts it per process, so that no input can be crafted to collide.
    return hash(custom_id) & 0xFFFF_FFFF_FFFF_FFFF or 1


class IdSet:
    """Hashes of the custom_ids seen so far; a repeated hash is a suspected duplicate.

    The open-addressing table takes 16 to 24 bytes per row.
    """

    def __init__(self, hash_id: IdHasher = id_hash) -> None:
        self._hash_id = hash_id
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0
        self._suspects: set[int] = set()
        # Repeated hashes beyond the suspects.
        self.surplus = 0

    def add(self, custom_id: str) -> None:
        """Add an id."""
        hash_value = self._hash_id(custom_id)
        if self._insert(hash_value):
            if self._count * 3 > len(self._slots) * 2:
                self._grow()
        elif len(self._suspects) < _MAX_SUSPECTS:
            self._suspects.add(hash_value)
        elif hash_value not in self._suspects:
            self.surplus += 1

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspects)

    def is_suspect(self, custom_id: str) -> bool:
        """Return whether the hash of an id was repeated."""
        return self._hash_id(custom_id) in self._suspects

    def _insert(self, hash_value: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        slot = hash_value & mask
        while existing := slots[slot]:
            if existing == hash_value:
                return False
            slot = (slot + 1) & mask
        slots[slot] = hash_value
        self._count += 1
        return True

    def _grow(self) -> None:
        old_slots, self._count = self._slots, 0
        self._slots = array("Q", bytes(2 * len(old_slots) * 8))
        for hash_value in old_slots:
            if hash_value:
                self._insert(hash_value)


class LineFault(NamedTuple):
    """A fault with its first line."""

    line: int
    fault: RowFault
    lines: str = ""
    """All of its lines, such as `1-48 and 2 more`; empty for one line."""


class FaultGroups:
    """The first different faults with their lines, which are added in order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ranges: dict[RowFault, list[list[int]]] = {}
        self._lines: dict[RowFault, int] = {}
        self.count = 0
        """The number of all faults."""

    def add(self, line: int, fault: RowFault) -> None:
        self.count += 1
        if fault not in self._ranges and len(self._ranges) >= self._limit:
            return
        ranges = self._ranges.setdefault(fault, [])
        self._lines[fault] = self._lines.get(fault, 0) + 1
        if ranges and ranges[-1][1] == line - 1:
            ranges[-1][1] = line
        elif len(ranges) < _MAX_SHOWN_RANGES:
            ranges.append([line, line])

    def listed(self) -> Iterator[LineFault]:
        """Yield each fault, by its first line."""
        for fault, ranges in self._ranges.items():
            more = self._lines[fault] - sum(last - first + 1 for first, last in ranges)
            lines = ", ".join(
                str(first) if first == last else f"{first}-{last}" for first, last in ranges
            )
            lines += f" and {more} more" if more else ""
            yield LineFault(ranges[0][0], fault, lines if self._lines[fault] > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFindings:
    """Result of a scan."""

    rows: int
    offsets: tuple[int, ...]
    """Offset of each shard, in bytes."""
    url: str
    input_tokens: int
    max_tokens_sum: int
    answers: int
    """Those that all rows ask for."""
    faults: tuple[LineFault, ...]
    """The first faults, by line."""
    fault_count: int


class InputScan:
    """Collects the findings of a scan, line by line."""

    def __init__(self, served: RequestTarget, hash_id: IdHasher = id_hash) -> None:
        self._served = served
        self._ids = IdSet(hash_id)
        self._rows = 0
        self._offsets: list[int] = []
        self._url: str | None = None
        self._input_tokens = 0
        self._max_tokens_sum = 0
        self._answers = 0
        self._faults = FaultGroups(MAX_SHOWN_FAULTS)
        self._blank: int | None = None

    def add(self, line: InputLine) -> None:
        """Add the next line; a blank line is a fault only if another line follows."""
        if line.content is not None and not line.content.strip():
            self._blank = self._blank or line.number
            return
        if self._blank is not None:
            self._faults.add(self._blank, _EMPTY_LINE)
            self._blank = None
        if self._rows % SHARD_ROWS == 0:
            self._offsets.append(line.offset)
        self._rows += 1
        parsed = _TOO_LARGE if line.content is None else rows.read_row(line.content)
        if isinstance(parsed, BatchRow) and line.content is not None:
            self._count_row(line.number, parsed, len(line.content))
        elif isinstance(parsed, RowFault):
            self._faults.add(line.number, parsed)

    def findings(self, lines_again: Iterable[InputLine]) -> ScanFindings:
        """Return the findings; the lines are read again only where custom_ids may be repeated."""
        later_faults = FaultGroups(2 * MAX_SHOWN_FAULTS)
        if not self._rows:
            later_faults.add(1, _EMPTY_FILE)
        if self._ids.has_suspects:
            for number, fault in self._duplicates(lines_again):
                later_faults.add(number, fault)
        faults = sorted(
            (*self._faults.listed(), *later_faults.listed()), key=lambda fault: fault.line
        )
        return ScanFindings(
            rows=self._rows,
            offsets=tuple(self._offsets),
            url=self._url or "",
            input_tokens=self._input_tokens,
            max_tokens_sum=self._max_tokens_sum,
            answers=self._answers,
            faults=tuple(faults[:MAX_SHOWN_FAULTS]),
            fault_count=self._faults.count + self._ids.surplus + later_faults.count,
        )

    def _duplicates(self, lines: Iterable[InputLine]) -> Iterator[tuple[int, RowFault]]:
        """Yield the numbers of lines that repeat an earlier custom_id, with the fault."""
        first_lines: dict[str, int] = {}
        for line in lines:
            row = rows.read_row(line.content) if line.content else None
            if not isinstance(row, BatchRow) or not self._ids.is_suspect(row.custom_id):
                continue
            first = first_lines.setdefault(row.custom_id, line.number)
            if first != line.number:
                shown = repr(row.custom_id[:60])
                message = f"custom_id {shown} is already used in line {first}; make it unique"
                fault = RowFault(code="duplicate_custom_id", message=message, param="custom_id")
                yield line.number, fault

    def _count_row(self, line: int, row: BatchRow, line_bytes: int) -> None:
        custom_id = row.custom_id
        self._ids.add(custom_id)
        self._url = self._url or row.url
        if row.url != self._url:
            message = f"url is {row.url}, but rows above have {self._url}; use one file per url"
            self._faults.add(line, RowFault(code="mixed_url", message=message, param="url"))
            return
        if (fault := self._served.fault(row)) is not None:
            self._faults.add(line, fault)
            return
        body_bytes = max(0, line_bytes - _ENVELOPE_BYTES - len(custom_id))
        self._input_tokens += rows.input_tokens(row, body_bytes)
        self._max_tokens_sum += row.max_tokens or 0
        self._answers += row.choices
