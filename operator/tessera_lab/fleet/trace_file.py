"""Traces from files."""

import math
from array import array
from pathlib import Path

from tessera_lab.fleet.trace import Trace
from tessera_lab.load.trace_rows import (
    TRACE_BLOCK_TOKENS,
    TRACE_FORMATS,
    TraceError,
    trace_row_error,
    trace_rows,
)


def read_trace(path: str) -> Trace:
    """Return the requests of a file, whose window ends with the second of the last arrival.

    Prefixes are the ids of a prompt's full blocks. Raises TraceError with the invalid line.
    """
    arrivals, input_tokens, output_tokens = array("d"), array("i"), array("i")
    clients: array[int] = array("i")
    prefixes: list[tuple[int, ...]] = []
    last = 0.0
    for line, arrival, prompt, output, client, blocks in trace_rows(path):
        if arrival < last:
            problem = f"arrival {arrival:g} is before {last:g} in the row above: sort by arrival"
            raise trace_row_error(path, line, problem)
        last = arrival
        arrivals.append(arrival)
        input_tokens.append(prompt)
        output_tokens.append(output)
        if client is not None:
            try:
                clients.append(int(client))
            except (ValueError, OverflowError):
                problem = f"client {client:.40} is not a number below 2^31"
                raise trace_row_error(path, line, problem) from None
        if blocks is not None:
            prefixes.append(blocks[: prompt // TRACE_BLOCK_TOKENS])
        elif prefixes:
            raise trace_row_error(path, line, "no hash_ids, which rows above have")
        if blocks is not None and len(prefixes) < len(arrivals):
            raise trace_row_error(path, line, "hash_ids, which rows above do not have")
    if not arrivals:
        raise TraceError(f"{path} has no requests; {TRACE_FORMATS}")
    return Trace(
        name=Path(path).name.removesuffix(".gz").rpartition(".")[0] or Path(path).name,
        seconds=float(math.floor(last) + 1),
        arrivals=arrivals,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        clients=clients if clients else None,
        prefixes=tuple(prefixes) if prefixes else None,
    )


def trace_csv(trace: Trace) -> str:
    """Return a trace as CSV, to the millisecond and without prefixes."""
    columns = [trace.arrivals, trace.input_tokens, trace.output_tokens]
    head = "arrival_s,input_tokens,output_tokens"
    if trace.clients is not None:
        columns.append(trace.clients)
        head += ",client"
    rows = (
        ",".join((f"{arrival:.3f}", *map(str, numbers)))
        for arrival, *numbers in zip(*columns, strict=True)
    )
    return "\n".join((head, *rows)) + "\n"
