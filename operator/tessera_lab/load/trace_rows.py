"""Rows of recorded requests: CSV, or the JSON lines that Mooncake publishes; plain or gzip."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

from tessera.api.text import counted

# Tokens that one id of a trace stands for.
TRACE_BLOCK_TOKENS = 512
TRACE_FORMATS = (
    "a trace is CSV with the columns arrival_s,input_tokens,output_tokens, or JSON lines with "
    "timestamp (ms), input_length, output_length and hash_ids"
)
COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
MAX_ARRIVAL_SECONDS = 10 * 366 * 86400.0
MAX_TOKENS = 10_000_000

# Line, arrival in seconds, prompt tokens, output tokens, client, ids of the prompt's blocks.
TraceRow = tuple[int, float, int, int, str | None, tuple[int, ...] | None]


class TraceError(Exception):
    """A trace that cannot be read; the sentence names the file, and the line if there is one."""


def trace_rows(path: str) -> Iterator[TraceRow]:
    """Yield the rows in the file's order, each with a prompt and at least one output token.

    Lines that begin with # may come before them.
    A recorded output of 0 tokens counts as 1: the engine computes the first token with the prompt.
    Raises TraceError.
    """
    with opened_text(path) as file:
        yield from _rows(path, file)


@contextmanager
def opened_text(path: str) -> Iterator[TextIO]:
    """Open a file that may be compressed; raise TraceError where it cannot be read to its end."""
    try:
        with _opened(path) as file:
            yield file
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{path} is neither text nor complete gzip") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None


def trace_row_error(path: str, line: int, problem: str) -> TraceError:
    """Return the error of one line."""
    return TraceError(f"{path}, line {line}: {problem}")


def _opened(path: str) -> TextIO:
    expanded = Path(path).expanduser()
    with expanded.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    if is_gzip:
        return gzip.open(expanded, "rt", encoding="utf-8-sig")
    return expanded.open(encoding="utf-8-sig")


def _rows(path: str, file: Iterable[str]) -> Iterator[TraceRow]:
    lines, blank = iter(file), list[str]()
    for line in lines:
        if line.strip() and not line.startswith("#"):
            lines = chain(blank, (line,), lines)
            rows = _json_rows if line.lstrip().startswith("{") else _csv_rows
            yield from rows(path, lines)
            return
        blank.append("\n")
    raise trace_row_error(path, 1, f"missing column {', '.join(COLUMNS)}")


def _csv_rows(path: str, lines: Iterable[str]) -> Iterator[TraceRow]:
    reader = csv.reader(lines)
    try:
        heads = next((row for row in reader if row), [])
        missing = [name for name in COLUMNS if name not in heads]
        if missing:
            raise trace_row_error(path, 1, f"missing column {', '.join(missing)}")
        columns = [heads.index(name) for name in COLUMNS]
        client_column = heads.index("client") if "client" in heads else None
        for row in reader:
            if not row:
                continue
            try:
                arrival, prompt, output = (row[column] for column in columns)
                client = None if client_column is None else row[client_column]
                values = float(arrival), int(prompt), int(output)
            except (ValueError, IndexError):
                text = ", ".join(row)
                raise trace_row_error(path, reader.line_num, f"not numbers: {text:.80}") from None
            yield _checked(path, reader.line_num, *values, client, None)
    except csv.Error as error:
        raise trace_row_error(path, reader.line_num, str(error)) from None


def _json_rows(path: str, lines: Iterable[str]) -> Iterator[TraceRow]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            arrival = float(entry["timestamp"]) / 1000
            prompt, output = entry["input_length"], entry["output_length"]
            ids = entry.get("hash_ids")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = f"{type(error).__name__} {error}"
            raise trace_row_error(path, number, problem) from None
        try:
            values = int(prompt), int(output)
            blocks = None if ids is None else tuple(map(int, ids))
        except (TypeError, ValueError, OverflowError):
            problem = f"not numbers: {prompt!s:.20}, {output!s:.20}, {ids!s:.40}"
            raise trace_row_error(path, number, problem) from None
        yield _checked(path, number, arrival, *values, None, blocks)


def _checked(  # noqa: PLR0913, PLR0917 - a row
    path: str,
    line: int,
    arrival: float,
    prompt: int,
    output: int,
    client: str | None,
    blocks: tuple[int, ...] | None,
) -> TraceRow:
    if not (
        0 <= arrival <= MAX_ARRIVAL_SECONDS
        and 1 <= prompt <= MAX_TOKENS
        and 0 <= output <= MAX_TOKENS
    ):
        raise trace_row_error(
            path,
            line,
            f"arrival {arrival:g}, input {_short(prompt)}, output {_short(output)} is invalid: a "
            f"request arrives from 0 s to 10 years, has a prompt, and no length above {MAX_TOKENS}",
        )
    if blocks is not None:
        if len(blocks) * TRACE_BLOCK_TOKENS < prompt:
            problem = (
                f"{counted(len(blocks), 'block')} of {TRACE_BLOCK_TOKENS} cannot hold "
                f"{counted(prompt, 'token')}"
            )
            raise trace_row_error(path, line, problem)
        if min(blocks) < 0:
            raise trace_row_error(path, line, "an id in hash_ids is negative")
    return line, arrival, prompt, output or 1, client, blocks


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**18 else "beyond 10^18"
