"""A whole input, line by line: its faults, its shards, and what it will take."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tessera.batch_runner import rows
from tessera.batch_runner.lines import MAX_ROW_BYTES, InputLine
from tessera.batch_runner.manifest import SHARD_ROWS
from tessera.batch_runner.rows import BatchRow, RowFault
from tessera.batch_runner.unique_ids import DuplicateFinder, IdHasher, IdSet, id_hash

# So many faults are told one by one; all are counted.
MAX_SHOWN_FAULTS = 20
# Bytes of a line that belong to neither its body nor its custom_id.
_ENVELOPE_BYTES = 75
_EMPTY_LINE = RowFault(code="invalid_json", message="the line is empty; remove it")
_TOO_LARGE = RowFault(
    code="row_too_large",
    message=f"the row is larger than {MAX_ROW_BYTES // 2**20} MiB; shorten or split it",
)


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
