"""The output of a command."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

# The names of columns, and a value of each by row.
_Rows: TypeAlias = tuple[Sequence[str], Iterable[Mapping[str, Any]]]


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
        writer.writerows(rows)
        return cls(text.getvalue())
