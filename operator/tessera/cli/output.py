"""The output of a command."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Output:
    """The text for the terminal, and the exit code."""

    text: str
    exit_code: int = 0

    @classmethod
    def of_json(cls, body: object, exit_code: int = 0) -> Self:
        return cls(json.dumps(body, indent=2) + "\n", exit_code)

    @classmethod
    def of_lines(cls, lines: Iterable[str], exit_code: int = 0) -> Self:
        return cls("\n".join(lines) + "\n", exit_code)

    @classmethod
    def of_csv(cls, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Self:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return cls(text.getvalue())
