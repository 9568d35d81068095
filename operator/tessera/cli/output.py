"""The output of a command."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tessera.cli.errors import CommandError


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


def writable_file(option: str, name: str) -> Path:
    """Return the file of an option; CommandError if it cannot be written."""
    path = Path(name).expanduser()
    is_file_in_folder = path.parent.is_dir() and not path.is_dir()
    if not is_file_in_folder or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandError(f"{option} {name} cannot be written; choose a file in a writable folder")
    return path
