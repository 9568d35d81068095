"""`tessera top requests`: what runs at a gateway now."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from tessera.api.text import counted
from tessera.cli.gateway_port import read_gateway
from tessera.cli.output import Output
from tessera.cli.text import format_age, table

_HEADERS = ("SERVICE", "TENANT", "KEY", "MODEL", "PHASE", "AGE", "TOKENS", "REPLICA", "REQUEST")


def run(arguments: SimpleNamespace) -> Output:
    """Print the requests, the oldest first."""
    answer = read_gateway(arguments, "/requests", {})
    rows = [
        row
        for row in answer["requests"]
        if arguments.namespace in (None, row["service"].partition("/")[0])
    ]
    body = {**answer, "requests": rows}
    return Output.of(arguments.output, report_lines(rows, answer), lambda: body)


def report_lines(rows: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of rows of an answer, and what is missing in it."""
    if rows:
        yield from table(_HEADERS, [_cells(row) for row in rows])
    else:
        yield "no requests"
    listed, total = len(answer["requests"]), answer["total"]
    if listed < total:
        yield f"Note: these are of the oldest {listed} of {counted(total, 'request')}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    texts = [row[name] or "-" for name in ("service", "tenant", "key", "model", "phase")]
    age = format_age(timedelta(seconds=row["ageSeconds"]))
    tokens = str(row["outputTokens"] or "-")
    source = row["replica"] or row.get("provider") or "-"
    return [*texts, age, tokens, source, row["requestId"]]
