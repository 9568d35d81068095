"""A statement as rows, and the rows as table, JSON or CSV."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tessera.domain.bill import CostState, Line
from tessera.domain.money import Money
from tessera.domain.statement import Statement

_FULL_DIGITS = 9
_TABLE_DIGITS = 4
_LATE = timedelta(minutes=5)
"""What is known may begin so much later, or end so much earlier, without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was asked for, and what came."""

    asked: datetime
    """From when on."""
    now: datetime
    by: str
    statement: Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one service, tenant or pool cost in one currency, in nano-units."""

    name: str
    currency: str
    states: Mapping[CostState, int]
    share: float
    """Of everything in this currency."""

    @property
    def total(self) -> int:
        return sum(self.states.values())


def _by_service(_: str, line: Line) -> str:
    return f"{line.namespace}/{line.service}" if line.state.owned else f"(unused in {line.pool})"


def _by_tenant(tenant: str, line: Line) -> str:
    return (tenant or "(no budget)") if line.state.owned else "(unused)"


def _by_pool(_: str, line: Line) -> str:
    return line.pool


BY: Mapping[str, Callable[[str, Line], str]] = {
    "service": _by_service,
    "tenant": _by_tenant,
    "pool": _by_pool,
}
"""Tenant and line -> the name of the row."""


def rows(report: Report) -> tuple[list[Row], list[Row]]:
    """The rows, what cost most first, and the sum of each currency."""
    found: dict[tuple[str, str], Counter[CostState]] = {}
    sums: dict[str, Counter[CostState]] = {}
    for (tenant, line), nanos in report.statement.amounts.items():
        name = BY[report.by](tenant, line)
        found.setdefault((line.currency, name), Counter())[line.state] += nanos
        sums.setdefault(line.currency, Counter())[line.state] += nanos
    made = [
        Row(
            name=name,
            currency=currency,
            states=states,
            share=states.total() / sums[currency].total(),
        )
        for (currency, name), states in found.items()
    ]
    made.sort(key=lambda row: (row.currency, -row.total, row.name))
    totals = [
        Row(name="total", currency=currency, states=states, share=1.0)
        for currency, states in sorted(sums.items())
    ]
    return made, totals


def table(report: Report) -> str:
    """For people: amounts in units of the currency, and what they cover."""
    made, totals = rows(report)
    states = [state for state in CostState if any(row.states.get(state) for row in totals)]
    head = [report.by, *(_spaced(state) for state in states), "total", "currency", "share"]
    body = [
        [
            row.name,
            *(_amount(row.states.get(state, 0), _TABLE_DIGITS) for state in states),
            _amount(row.total, _TABLE_DIGITS),
            row.currency,
            f"{row.share:.1%}",
        ]
        for row in (*made, *totals)
    ]
    return "\n".join([*_aligned([[one.upper() for one in head], *body]), "", *_notes(report), ""])


def _spaced(state: CostState) -> str:
    """`warmIdle` -> `warm idle`."""
    return "".join(f" {one.lower()}" if one.isupper() else one for one in state)


def _aligned(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])


def _notes(report: Report) -> Iterator[str]:
    """What the figures cover, and what they do not."""
    told = report.statement
    yield f"Billed from {_clock(told.begin)} to {_clock(told.end)} UTC."
    if told.begin - report.asked > _LATE:
        yield f"There is no data before that, though {_clock(report.asked)} was asked for."
    if report.now - told.end > _LATE:
        yield "There is no newer data: is the operator running and scraped?"
    for first, last in told.gaps:
        yield f"Not billed, since nobody counted: {_clock(first)} to {_clock(last)}."


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def as_json(report: Report) -> str:
    """For programs: all nine digits, as strings."""
    made, totals = rows(report)
    told = report.statement
    body = {
        "by": report.by,
        "asked": report.asked.isoformat(),
        "from": told.begin.isoformat(),
        "to": told.end.isoformat(),
        "gaps": [{"from": one.isoformat(), "to": other.isoformat()} for one, other in told.gaps],
        "rows": [_fields(row) for row in made],
        "totals": [_fields(row) for row in totals],
    }
    return json.dumps(body, indent=2) + "\n"


def _fields(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "currency": row.currency,
        **{state.value: _amount(row.states.get(state, 0), _FULL_DIGITS) for state in CostState},
        "total": _amount(row.total, _FULL_DIGITS),
        "share": f"{row.share:.6f}",
    }


def as_csv(report: Report) -> str:
    """For spreadsheets: a line for every row, with the time that it covers."""
    made, _ = rows(report)
    told = report.statement
    period = {"from": told.begin.isoformat(), "to": told.end.isoformat()}
    named = [{report.by: (fields := _fields(row)).pop("name"), **fields, **period} for row in made]
    text = io.StringIO()
    columns = [report.by, "currency", *CostState, "total", "share", "from", "to"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(named)
    return text.getvalue()


def _amount(nanos: int, digits: int) -> str:
    return f"{Money(nanos, '').rounded(digits):f}"


FORMS: Mapping[str, Callable[[Report], str]] = {"table": table, "json": as_json, "csv": as_csv}
"""How a report can be written."""
