"""A whole input, line by line: its faults, its shards, and what it will take."""

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

from tessera.batch_runner import rows
from tessera.batch_runner.manifest import SHARD_ROWS
from tessera.batch_runner.rows import BatchRow, RowFault

MAX_ROW_BYTES = 8 * 2**20
_CHUNK_BYTES = 2**20
IdHasher = Callable[[str], int]
# So many suspects are looked at again; a file with more of them has true ones for certain.
_MAX_SUSPECTS = 10_000
# So many faults are told one by one; all are counted.
MAX_SHOWN_FAULTS = 20
# Bytes of a line that belong to neither its body nor its custom_id.
_ENVELOPE_BYTES = 75
_EMPTY_LINE = RowFault(code="invalid_json", message="the line is empty; remove it")
_TOO_LARGE = RowFault(
    code="row_too_large",
    message=f"the row is larger than {MAX_ROW_BYTES // 2**20} MiB; shorten or split it",
)


class InputLine(NamedTuple):
    """One line of the input, without its end."""

    number: int
    """From 1 on, as editors show it."""
    offset: int
    content: bytes | None
    """None when the line is larger than a row may be."""


def read_lines(file: BinaryIO, observe: Callable[[bytes], object]) -> Iterator[InputLine]:
    """Every line from the file's position on; `passed` sees every byte, in order.

    A line that is too large is passed in pieces and never held.
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
    """64 bits that nobody can aim at, since Python salts them anew in every process; never 0."""
    return hash(custom_id) & 0xFFFF_FFFF_FFFF_FFFF or 1


class IdSet:
    """Marks seen so far, in an open table; marks that came twice are suspects."""

    def __init__(self, hash_id: IdHasher = id_hash) -> None:
        self._hash_id = hash_id
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0
        self._suspects: set[int] = set()
        self.surplus = 0
        """Repeated marks past those that are looked at again."""

    def add(self, custom_id: str) -> None:
        """Remember an id."""
        hash_value = self._hash_id(custom_id)
        if self._insert(hash_value):
            if self._count * 3 > len(self._slots) * 2:
                self._grow()
        elif len(self._suspects) < _MAX_SUSPECTS:
            self._suspects.add(hash_value)
        elif hash_value not in self._suspects:
            self.surplus += 1

    def duplicate_finder(self) -> "DuplicateFinder | None":
        """What a second look over the file needs; None when all ids are unique already."""
        return DuplicateFinder(self._hash_id, frozenset(self._suspects)) if self._suspects else None

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


class DuplicateFinder:
    """The second look: exact comparison, but only of ids whose mark came twice."""

    def __init__(self, hash_id: IdHasher, suspects: frozenset[int]) -> None:
        self._hash_id = hash_id
        self._suspects = suspects
        self._first_lines: dict[str, int] = {}

    def first_line(self, custom_id: str, line: int) -> int:
        """The first line with this id, which may be this one."""
        if self._hash_id(custom_id) not in self._suspects:
            return line
        return self._first_lines.setdefault(custom_id, line)


class LineFault(NamedTuple):
    """A fault and its line."""

    line: int
    fault: RowFault


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFindings:
    """What a scan saw."""

    rows: int
    offsets: tuple[int, ...]
    """Where each shard begins."""
    url: str
    input_tokens: int
    max_tokens: int
    faults: tuple[LineFault, ...]
    """The first ones, by line."""
    fault_count: int


class InputScan:
    """Takes every line of the input once."""

    def __init__(self, hash_id: IdHasher = id_hash) -> None:
        self._ids = IdSet(hash_id)
        self._rows = 0
        self._offsets: list[int] = []
        self._url: str | None = None
        self._input_tokens = 0
        self._max_tokens = 0
        self._faults: list[LineFault] = []
        self._fault_count = 0
        self._blank: int | None = None

    def add(self, line: InputLine) -> None:
        """The next line; blank ones are faults only in front of others."""
        if line.content is not None and not line.content.strip():
            self._blank = self._blank or line.number
            return
        if self._blank is not None:
            self._refuse(self._blank, _EMPTY_LINE)
            self._blank = None
        if self._rows % SHARD_ROWS == 0:
            self._offsets.append(line.offset)
        self._rows += 1
        parsed = _TOO_LARGE if line.content is None else rows.read_row(line.content)
        if isinstance(parsed, BatchRow) and line.content is not None:
            self._count_row(line.number, parsed, len(line.content))
        elif isinstance(parsed, RowFault):
            self._refuse(line.number, parsed)

    def duplicate_finder(self) -> DuplicateFinder | None:
        """What to look for a second time, in `repeated`."""
        return self._ids.duplicate_finder()

    def findings(self) -> ScanFindings:
        """All that was seen."""
        findings = ScanFindings(
            rows=self._rows,
            offsets=tuple(self._offsets),
            url=self._url or "",
            input_tokens=self._input_tokens,
            max_tokens=self._max_tokens,
            faults=tuple(self._faults),
            fault_count=self._fault_count + self._ids.surplus,
        )
        if self._rows:
            return findings
        message = "the file has no rows; write one JSON object per line"
        return with_faults(findings, [LineFault(1, RowFault(code="empty_file", message=message))])

    def _count_row(self, line: int, row: BatchRow, size: int) -> None:
        self._ids.add(row.custom_id)
        self._url = self._url or row.url
        if row.url != self._url:
            message = f"url is {row.url}, but rows above have {self._url}; make a file for each"
            self._refuse(line, RowFault(code="mixed_url", message=message, param="url"))
            return
        self._input_tokens += rows.estimate_tokens(
            max(0, size - _ENVELOPE_BYTES - len(row.custom_id))
        )
        self._max_tokens += row.max_tokens or 0

    def _refuse(self, line: int, fault: RowFault) -> None:
        self._fault_count += 1
        if len(self._faults) < MAX_SHOWN_FAULTS:
            self._faults.append(LineFault(line, fault))


def duplicate_fault(finder: DuplicateFinder, line: InputLine) -> LineFault | None:
    """Does this line repeat the custom_id of an earlier one?"""
    row = rows.read_row(line.content) if line.content else None
    if not isinstance(row, BatchRow) or (
        first := finder.first_line(row.custom_id, line.number)
    ) == (line.number):
        return None
    message = f"custom_id {row.custom_id[:60]!r} is used in line {first} already; make it unique"
    return LineFault(
        line.number, RowFault(code="duplicate_custom_id", message=message, param="custom_id")
    )


def with_faults(findings: ScanFindings, later_faults: Iterable[LineFault]) -> ScanFindings:
    """The findings with the faults of a second look in their place."""
    faults, count = list(findings.faults), findings.fault_count
    for line_fault in later_faults:
        count += 1
        if len(faults) < 2 * MAX_SHOWN_FAULTS:
            faults.append(line_fault)
    faults.sort(key=lambda fault: fault.line)
    return replace(findings, faults=tuple(faults[:MAX_SHOWN_FAULTS]), fault_count=count)
