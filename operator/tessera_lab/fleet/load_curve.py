"""A load from a file as the replicas that it needs over time."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tessera.api.text import counted
from tessera.domain.economics.reservation import LoadCurve
from tessera_lab.fleet.trace_file import read_trace
from tessera_lab.load.trace_rows import TraceError, opened_text, trace_row_error

LOAD_FORMATS = (
    "a load is CSV with the columns t_s,replicas or t_s,rate_rps, or a trace: CSV with "
    "arrival_s,input_tokens,output_tokens, or Mooncake's JSON lines"
)
_TIME, _REPLICAS, _RATE = "t_s", "replicas", "rate_rps"
_MAX_REPLICAS = 100_000
_MAX_SECONDS = 10 * 366 * 86400.0


def read_load_curve(path: str, replica_rate: float | None, window: float) -> LoadCurve:
    """Return the load of a table or a trace; raise TraceError with the file and the line.

    `replica_rate` are the requests per second that one replica carries; a table of replicas needs
    none. A trace is counted in windows of so many seconds.
    """
    with opened_text(path) as file:
        head = next((line.strip().split(",") for line in file if _is_row(line)), [])
    if _TIME not in head:
        trace = read_trace(path)
        rates = _trace_rates(trace.arrivals, trace.seconds, window)
        return LoadCurve(tuple(_with_replicas(path, rates, replica_rate)))
    column = _REPLICAS if _REPLICAS in head else _RATE
    rows = list(_table_rows(path, head, column))
    if len(rows) < 2:
        raise TraceError(
            f"{path} has {counted(len(rows), 'row')}; two at least say how long one lasts"
        )
    # The last row lasts as long as the one before.
    rows.append((2 * rows[-1][0] - rows[-2][0], 0.0))
    spans = ((end - begin, value) for (begin, value), (end, _) in pairwise(rows))
    if column == _REPLICAS:
        return LoadCurve(tuple((seconds, math.ceil(value)) for seconds, value in spans))
    return LoadCurve(tuple(_with_replicas(path, spans, replica_rate)))


def _table_rows(path: str, head: Sequence[str], column: str) -> Iterator[tuple[float, float]]:
    """Yield the rows of the table: time and value."""
    if column not in head:
        raise trace_row_error(path, 1, f"missing column {_REPLICAS} or {_RATE}")
    columns, last = (head.index(_TIME), head.index(column)), -math.inf
    with opened_text(path) as file:
        for line, text in enumerate(file, 1):
            row = text.strip().split(",")
            if not _is_row(text) or row == head:
                continue
            try:
                at, value = (float(row[number]) for number in columns)
            except (ValueError, IndexError):
                raise trace_row_error(path, line, f"not numbers: {text.strip():.80}") from None
            if not 0 <= at <= _MAX_SECONDS:
                raise trace_row_error(path, line, f"{_TIME} {at:g} is not from 0 to 10 years")
            if at <= last:
                raise trace_row_error(
                    path, line, f"{_TIME} {at:g} is not after {last:g} in the row above"
                )
            if not (math.isfinite(value) and value >= 0):
                raise trace_row_error(path, line, f"{column} {value:g} is not a number from 0 on")
            if column == _REPLICAS and value > _MAX_REPLICAS:
                raise trace_row_error(path, line, f"{column} {value:g} is above {_MAX_REPLICAS}")
            last = at
            yield at, value


def _is_row(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _trace_rates(
    arrivals: Sequence[float], seconds: float, window: float
) -> Iterator[tuple[float, float]]:
    counts = [0] * max(1, math.ceil(seconds / window))
    for arrival in arrivals:
        counts[min(int(arrival / window), len(counts) - 1)] += 1
    for number, count in enumerate(counts):
        length = min(window, seconds - number * window)
        yield length, count / length


def _with_replicas(
    path: str, rates: Iterator[tuple[float, float]], replica_rate: float | None
) -> Iterator[tuple[float, int]]:
    if replica_rate is None:
        raise TraceError(
            f"{path} has requests; say with --replica-rate how many per second one replica carries"
        )
    for seconds, rate in rates:
        replicas = math.ceil(rate / replica_rate - 1e-9)
        if replicas > _MAX_REPLICAS:
            raise TraceError(f"{path}: a rate of {rate:g} is too high for this --replica-rate")
        yield seconds, replicas
