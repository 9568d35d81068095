"""Recorded arrivals and lengths: CSV, or the JSON lines that Mooncake publishes."""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tessera.cli.errors import CommandError
from tessera.domain.bench.jobs import BLOCK, Job

_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_FORMS = (
    "a trace is CSV with the columns arrival_s,input_tokens,output_tokens, or JSON lines with "
    "timestamp (ms), input_length, output_length and hash_ids"
)


def trace(path: str, most: int | None, speed: float) -> list[Job]:
    """The first rows as jobs, in the order of their arrival, which begins with the first one.

    CommandError names the line that is wrong.
    """
    text = _text(path)
    rows = _json_rows(text) if text.lstrip()[:1] == "{" else _csv_rows(text)
    found: list[Job] = []
    try:
        for number, (line, row) in enumerate(islice(rows, most)):
            found.append(_job(number, line, *row))
    except _RowError as error:
        raise CommandError(f"--trace {path}, line {error}; {_FORMS}") from None
    if not found:
        raise CommandError(f"--trace {path} has no requests; {_FORMS}")
    begin = min(job.arrival for job in found)
    found.sort(key=lambda job: job.arrival)
    return [
        Job(
            number=job.number,
            arrival=(job.arrival - begin) / speed,
            input_tokens=job.input_tokens,
            output_tokens=job.output_tokens,
            blocks=job.blocks,
        )
        for job in found
    ]


class _RowError(Exception):
    """The line and what is wrong in it."""


_Row = tuple[Any, Any, Any, Any]


def _text(path: str) -> str:
    try:
        read = Path(path).expanduser().read_bytes()
        if read[:2] == b"\x1f\x8b":
            read = gzip.decompress(read)
        return read.decode("utf-8-sig")
    except OSError as error:
        raise CommandError(f"--trace {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, EOFError, zlib.error):
        raise CommandError(f"--trace {path} is neither text nor whole gzip; {_FORMS}") from None


def _csv_rows(text: str) -> Iterator[tuple[int, _Row]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise _RowError(f"1: there is no column {', '.join(missing)}")
        for row in reader:
            arrival, inputs, outputs = (row[name] for name in _COLUMNS)
            yield reader.line_num, (arrival, inputs, outputs, None)
    except csv.Error as error:
        raise _RowError(f"{reader.line_num}: {error}") from None


def _json_rows(text: str) -> Iterator[tuple[int, _Row]]:
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            told = json.loads(row)
            arrival = float(told["timestamp"]) / 1000
            blocks = told.get("hash_ids")
            yield line, (arrival, told["input_length"], told["output_length"], blocks)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _RowError(f"{line}: {type(error).__name__} {error}") from None


def _job(number: int, line: int, arrival: Any, inputs: Any, outputs: Any, blocks: Any) -> Job:
    try:
        at, prompt, answer = float(arrival), int(inputs), int(outputs)
        ids = None if blocks is None else tuple(int(block) for block in blocks)
    except (TypeError, ValueError):
        raise _RowError(f"{line}: not numbers: {arrival}, {inputs}, {outputs}") from None
    if not math.isfinite(at) or at < 0 or prompt < 1 or answer < 0:
        raise _RowError(
            f"{line}: arrival {at:g}, input {prompt}, output {answer} cannot be: a request arrives "
            "at 0 or later and has a prompt"
        )
    if ids is not None and len(ids) * BLOCK < prompt:
        raise _RowError(f"{line}: {len(ids)} blocks of {BLOCK} tokens are no {prompt} tokens")
    return Job(
        number=number,
        arrival=at,
        input_tokens=prompt,
        output_tokens=max(1, answer),
        blocks=ids,
    )
