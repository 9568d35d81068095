"""A whole input, line by line: its faults, its shards, and what it will take."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tessera.batch import rows
from tessera.batch.ids import Ids, Mark, Repeats, mark_of
from tessera.batch.lines import LARGEST_ROW, Line
from tessera.batch.manifest import SHARD_ROWS
from tessera.batch.rows import Fault, Row

SHOWN = 20
"""So many faults are told one by one; all are counted."""
_ENVELOPE = 75
"""Bytes of a line that belong to neither its body nor its custom_id."""
_EMPTY_LINE = Fault(code="invalid_json", message="the line is empty; remove it")
_TOO_LARGE = Fault(
    code="row_too_large",
    message=f"the row is larger than {LARGEST_ROW // 2**20} MiB; shorten or split it",
)


class Found(NamedTuple):
    """A fault and its line."""

    line: int
    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a scan saw."""

    rows: int
    offsets: tuple[int, ...]
    """Where each shard begins."""
    url: str
    input_tokens: int
    max_tokens: int
    faults: tuple[Found, ...]
    """The first ones, by line."""
    fault_count: int


class Scan:
    """Takes every line of the input once."""

    def __init__(self, mark: Mark = mark_of) -> None:
        self._ids = Ids(mark)
        self._rows = 0
        self._offsets: list[int] = []
        self._url: str | None = None
        self._input_tokens = 0
        self._max_tokens = 0
        self._faults: list[Found] = []
        self._fault_count = 0
        self._blank: int | None = None

    def take(self, line: Line) -> None:
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
        found = _TOO_LARGE if line.content is None else rows.read_row(line.content)
        if isinstance(found, Row) and line.content is not None:
            self._count(line.number, found, len(line.content))
        elif isinstance(found, Fault):
            self._refuse(line.number, found)

    def repeats(self) -> Repeats | None:
        """What to look for a second time, in `repeated`."""
        return self._ids.repeats()

    def findings(self) -> Findings:
        """All that was seen."""
        found = Findings(
            rows=self._rows,
            offsets=tuple(self._offsets),
            url=self._url or "",
            input_tokens=self._input_tokens,
            max_tokens=self._max_tokens,
            faults=tuple(self._faults),
            fault_count=self._fault_count + self._ids.surplus,
        )
        if self._rows:
            return found
        told = "the file has no rows; write one JSON object per line"
        return with_faults(found, [Found(1, Fault(code="empty_file", message=told))])

    def _count(self, line: int, row: Row, size: int) -> None:
        self._ids.take(row.custom_id)
        self._url = self._url or row.url
        if row.url != self._url:
            told = f"url is {row.url}, but rows above have {self._url}; make a file for each"
            self._refuse(line, Fault(code="mixed_url", message=told, param="url"))
            return
        self._input_tokens += rows.tokens_of(max(0, size - _ENVELOPE - len(row.custom_id)))
        self._max_tokens += row.max_tokens or 0

    def _refuse(self, line: int, fault: Fault) -> None:
        self._fault_count += 1
        if len(self._faults) < SHOWN:
            self._faults.append(Found(line, fault))


def repeated(repeats: Repeats, line: Line) -> Found | None:
    """Does this line repeat the custom_id of an earlier one?"""
    row = rows.read_row(line.content) if line.content else None
    if not isinstance(row, Row) or (first := repeats.first(row.custom_id, line.number)) == (
        line.number
    ):
        return None
    told = f"custom_id {row.custom_id[:60]!r} is used in line {first} already; make it unique"
    return Found(line.number, Fault(code="duplicate_custom_id", message=told, param="custom_id"))


def with_faults(findings: Findings, more: Iterable[Found]) -> Findings:
    """The findings with the faults of a second look in their place."""
    shown, count = list(findings.faults), findings.fault_count
    for found in more:
        count += 1
        if len(shown) < 2 * SHOWN:
            shown.append(found)
    shown.sort(key=lambda found: found.line)
    return replace(findings, faults=tuple(shown[:SHOWN]), fault_count=count)
