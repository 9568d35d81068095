"""Recorded arrivals and lengths as the requests of a load test."""

from itertools import islice

from tessera.cli.errors import CommandError
from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.trace_rows import TRACE_FORMATS, TraceError, trace_rows


def read_trace(path: str, max_requests: int | None, speed: float) -> list[BenchRequest]:
    """Return the first rows as requests, in the order of arrival, which starts at 0.

    Raises CommandError with the invalid line.
    """
    try:
        rows = sorted(enumerate(islice(trace_rows(path), max_requests)), key=lambda row: row[1][1])
    except TraceError as error:
        raise CommandError(f"--trace {error}; {TRACE_FORMATS}") from None
    if not rows:
        raise CommandError(f"--trace {path} has no requests; {TRACE_FORMATS}")
    first_arrival = rows[0][1][1]
    return [
        BenchRequest(
            number=number,
            arrival=(arrival - first_arrival) / speed,
            input_tokens=prompt,
            output_tokens=output,
            blocks=blocks,
        )
        for number, (_, arrival, prompt, output, _, blocks) in rows
    ]
