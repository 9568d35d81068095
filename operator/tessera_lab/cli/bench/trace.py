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

from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera_lab.load.requests import TRACE_BLOCK_TOKENS, BenchRequest

_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_FORMS = (
    "a trace is CSV with the columns arrival_s,input_tokens,output_tokens, or JSON lines with "
    "timestamp (ms), input_length, output_length and hash_ids"
)


def read_trace(path: str, max_requests: int | None, speed: float) -> list[BenchRequest]:
    """Return the first rows as requests, in the order of arrival, which starts at 0.

    Raises CommandError with the invalid line.
    """
    text = _text(path)
    rows = _json_rows(text) if text.lstrip()[:1] == "{" else _csv_rows(text)
    requests: list[BenchRequest] = []
    try:
        for number, (line, row) in enumerate(islice(rows, max_requests)):
            requests.append(_request(number, line, *row))
    except _TraceRowError as error:
        raise CommandError(f"--trace {path}, line {error}; {_FORMS}") from None
    if not requests:
        raise CommandError(f"--trace {path} has no requests; {_FORMS}")
    first_arrival = min(request.arrival for request in requests)
    requests.sort(key=lambda request: request.arrival)
    return [
        BenchRequest(
            number=request.number,
            arrival=(request.arrival - first_arrival) / speed,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            blocks=request.blocks,
        )
        for request in requests
    ]


class _TraceRowError(Exception):
    """An invalid line: its number and what is wrong."""


_TraceRow = tuple[Any, Any, Any, Any]


def _text(path: str) -> str:
    try:
        raw = Path(path).expanduser().read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise CommandError(f"--trace {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, EOFError, zlib.error):
        raise CommandError(f"--trace {path} is neither text nor complete gzip; {_FORMS}") from None


def _csv_rows(text: str) -> Iterator[tuple[int, _TraceRow]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise _TraceRowError(f"1: missing column {', '.join(missing)}")
        for row in reader:
            arrival, inputs, outputs = (row[name] for name in _COLUMNS)
            yield reader.line_num, (arrival, inputs, outputs, None)
    except csv.Error as error:
        raise _TraceRowError(f"{reader.line_num}: {error}") from None


def _json_rows(text: str) -> Iterator[tuple[int, _TraceRow]]:
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            entry = json.loads(row)
            arrival = float(entry["timestamp"]) / 1000
            blocks = entry.get("hash_ids")
            yield line, (arrival, entry["input_length"], entry["output_length"], blocks)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _TraceRowError(f"{line}: {type(error).__name__} {error}") from None


def _request(
    number: int, line: int, arrival: Any, inputs: Any, outputs: Any, blocks: Any
) -> BenchRequest:
    try:
        arrived_at, prompt, answer = float(arrival), int(inputs), int(outputs)
        block_ids = None if blocks is None else tuple(int(block) for block in blocks)
    except (TypeError, ValueError):
        raise _TraceRowError(f"{line}: not numbers: {arrival}, {inputs}, {outputs}") from None
    if not math.isfinite(arrived_at) or arrived_at < 0 or prompt < 1 or answer < 0:
        raise _TraceRowError(
            f"{line}: arrival {arrived_at:g}, input {prompt}, output {answer} is invalid: a "
            "request arrives at 0 or later and has a prompt"
        )
    if block_ids is not None and len(block_ids) * TRACE_BLOCK_TOKENS < prompt:
        raise _TraceRowError(
            f"{line}: {counted(len(block_ids), 'block')} of {TRACE_BLOCK_TOKENS} cannot hold "
            f"{counted(prompt, 'token')}"
        )
    return BenchRequest(
        number=number,
        arrival=arrived_at,
        input_tokens=prompt,
        output_tokens=max(1, answer),
        blocks=block_ids,
    )
