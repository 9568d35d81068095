"""The output of a command."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

# The names of columns, and a value of each by row.
_Rows: TypeAlias = tuple[Sequence[str], Iterable[Mapping[str, Any]]]
# Spreadsheets compute what begins so, some also in full width. Users and tags are clients' words.
_FORMULA = ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Output:
    """The text for the terminal, and the exit code."""

    text: str
    exit_code: int = 0

    @classmethod
    def of(
        cls,
        form: str,
        lines: Iterable[str],
        body: Callable[[], object],
        rows: Callable[[], _Rows] | None = None,
        exit_code: int = 0,
    ) -> Self:
        """Return a report as JSON, as CSV, or in any other form as lines for people."""
        if form == "json":
            return cls.of_json(body(), exit_code)
        if form == "csv" and rows is not None:
            return cls.of_csv(*rows())
        return cls.of_lines(lines, exit_code)

    @classmethod
    def of_lines(cls, lines: Iterable[str], exit_code: int = 0) -> Self:
        return cls("\n".join(lines) + "\n", exit_code)

    @classmethod
    def of_json(cls, body: object, exit_code: int = 0) -> Self:
        return cls(json.dumps(body, indent=2) + "\n", exit_code)

    @classmethod
    def of_csv(cls, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Self:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({column: _neutral(cell) for column, cell in row.items()})
        return cls(text.getvalue())


def _neutral(cell: Any) -> Any:
    """Return a cell with an apostrophe before what a spreadsheet would compute."""
    if not isinstance(cell, str):
        return cell
    # The library quotes no CR, behind which a spreadsheet would begin a row.
    text = cell.replace("\r", " ")
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
