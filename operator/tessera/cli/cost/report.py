"""A statement of cost as table, JSON or CSV."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from tessera.cli.cost.charges import (
    ChargeTable,
    MarginRow,
    charge_notes,
    margin_fields,
    margin_table,
    margins,
    provider_costs,
)
from tessera.cli.cost.energy import (
    ENERGY_FIELDS,
    energy_body,
    energy_fields,
    energy_notes,
    energy_rows,
    energy_table,
)
from tessera.cli.output import Output
from tessera.cli.text import column_head, format_time, table
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.energy_statement import EnergyStatement
from tessera.domain.cost.statement import CostStatement
from tessera.domain.money import Money

_FULL_DIGITS = 9
_TABLE_DIGITS = 4
# The data may begin so much later, or end so much earlier, than requested without a note.
_COVERAGE_TOLERANCE = timedelta(minutes=5)
# From this share of the cost of services on, replicas without a request have a note.
_MIN_WARM_IDLE = 0.3
_CHARGE_FIELDS = ("charge", "margin", "paid", "providerCost")
_SERVICE_STATES = (CostState.SERVING, CostState.WARM_IDLE, CostState.LOADING)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """A statement with the request that it answers."""

    requested_from: datetime
    now: datetime
    group_by: str
    statement: CostStatement
    energy: EnergyStatement | None = None
    """That of the same time, if it is asked for."""
    charges: ChargeTable | None = None
    """For requests to services or tenants; None without a gateway."""
    paid: ChargeTable | None = None
    """For requests of tenants, where these are the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """The cost of one service, tenant, pool or provider in one currency, in nano-units."""

    name: str
    currency: str
    states: Mapping[CostState, int]
    billed: int = 0
    """By a provider."""
    share: float
    """Share of the total cost in this currency."""

    @property
    def total(self) -> int:
        """Return the nano-units of nodes and of providers."""
        return sum(self.states.values()) + self.billed

    def of_states(self, states: Iterable[CostState]) -> int:
        """Return the nano-units of some states."""
        return sum(self.states.get(state, 0) for state in states)


def _by_service(_: str, line: CostLine) -> str:
    if line.state is CostState.UNMANAGED:
        return f"(unmanaged in {line.namespace})"
    return (
        f"{line.namespace}/{line.service}" if line.state.allocated else f"(unused in {line.pool})"
    )


def _by_tenant(tenant: str, line: CostLine) -> str:
    return (tenant or "(no budget)") if line.state.allocated else "(unused)"


# Functions from tenant and line to the name of the row.
GROUPINGS: Mapping[str, Callable[[str, CostLine], str]] = {
    "service": _by_service,
    "tenant": _by_tenant,
    "tenant,service": lambda tenant, line: f"{_by_tenant(tenant, line)} {_by_service('', line)}",
    "pool": lambda _, line: line.pool,
}


def rows(report: CostReport) -> tuple[list[CostRow], list[CostRow]]:
    """Return the rows by descending cost, and the total of each currency: what nodes and providers
    cost together, exactly.
    """
    states_by_row: dict[tuple[str, str], Counter[CostState]] = defaultdict(Counter)
    sums: dict[str, Counter[CostState]] = defaultdict(Counter)
    for (tenant, line), nanos in report.statement.amounts.items():
        name = GROUPINGS[report.group_by](tenant, line)
        states_by_row[line.currency, name][line.state] += nanos
        sums[line.currency][line.state] += nanos
    billed, billed_sums = provider_costs(report.charges), Counter[str]()
    for (name, currency), nanos in billed.items():
        states_by_row[currency, name] += Counter()
        billed_sums[currency] += nanos
    totals = [
        CostRow(
            name="total",
            currency=currency,
            states=sums[currency],
            billed=billed_sums[currency],
            share=1.0,
        )
        for currency in sorted({*sums, *billed_sums})
    ]
    total = {row.currency: row.total for row in totals}
    cost_rows = [
        CostRow(
            name=name,
            currency=currency,
            states=states,
            billed=(nanos := billed.get((name, currency), 0)),
            share=(states.total() + nanos) / total[currency] if total[currency] else 0.0,
        )
        for (currency, name), states in states_by_row.items()
    ]
    cost_rows.sort(key=lambda row: (row.currency, -row.total, row.name))
    return cost_rows, totals


def output(report: CostReport, form: str) -> Output:
    """Return the statement as table, JSON or CSV."""
    return Output.of(form, _lines(report), partial(_body, report), partial(_csv, report))


def _lines(report: CostReport) -> Iterator[str]:
    """Yield a table with amounts in units, and notes on the covered time."""
    cost_rows, totals = rows(report)
    states = [state for state in CostState if any(row.states.get(state) for row in totals)]
    head = [report.group_by, *states, "total", "currency", "share"]
    body = [
        [
            row.name,
            *(_amount(row.states.get(state, 0), _TABLE_DIGITS) for state in states),
            _amount(row.total, _TABLE_DIGITS),
            row.currency,
            f"{row.share:.1%}",
        ]
        for row in (*cost_rows, *totals)
    ]
    yield from table([column_head(key) for key in head], body, str.rjust)
    if report.charges is not None:
        yield from ("", *margin_table(report.group_by, _margins(report)), "")
        yield from charge_notes(report.charges)
    if report.energy is None:
        yield from ("", *_notes(report), *_warm_idle_notes(totals))
        return
    of_energy, energy_totals = energy_rows(report.energy, GROUPINGS[report.group_by])
    if of_energy:
        yield from ("", *energy_table(report.group_by, of_energy, energy_totals))
    yield from ("", *_notes(report), *_warm_idle_notes(totals))
    yield from ("", *energy_notes(report.energy, energy_totals))


def _notes(report: CostReport) -> Iterator[str]:
    """Yield notes on the time that the amounts cover and do not cover."""
    statement = report.statement
    yield f"Cost from {format_time(statement.begin)} to {format_time(statement.end)} UTC."
    if statement.begin - report.requested_from > _COVERAGE_TOLERANCE:
        yield f"No earlier cost data; requested from {format_time(report.requested_from)} UTC."
    if report.now - statement.end > _COVERAGE_TOLERANCE:
        yield "No later cost data: check that the operator runs and is scraped."
    for gap_start, gap_end in statement.gaps:
        yield f"No cost data from {format_time(gap_start)} to {format_time(gap_end)} UTC."


def _warm_idle_notes(totals: Sequence[CostRow]) -> Iterator[str]:
    """Yield how services could cost less, where much of their cost is for idle replicas."""
    for total in totals:
        services = total.of_states(_SERVICE_STATES)
        idle = total.of_states((CostState.WARM_IDLE,))
        if services and idle >= _MIN_WARM_IDLE * services:
            yield (
                f"{idle / services:.0%} of the cost of services in {total.currency} is "
                f"{column_head(CostState.WARM_IDLE)}: replicas without a request. Fewer "
                "minReplicas, or 0 behind the gateway, where a request wakes the service, cost "
                "less: docs/tasks/scale.md#scale-to-zero"
            )


def _body(report: CostReport) -> dict[str, Any]:
    """Return all nine digits of the amounts, as strings."""
    cost_rows, totals = rows(report)
    statement = report.statement
    energy = {}
    if report.energy is not None:
        of_energy = energy_rows(report.energy, GROUPINGS[report.group_by])
        energy = {"energy": energy_body(report.energy, *of_energy)}
    return {
        "groupBy": report.group_by,
        "requestedFrom": report.requested_from.isoformat(),
        "from": statement.begin.isoformat(),
        "to": statement.end.isoformat(),
        "gaps": [
            {"from": gap_start.isoformat(), "to": gap_end.isoformat()}
            for gap_start, gap_end in statement.gaps
        ],
        "rows": [_fields(row) for row in cost_rows],
        "totals": [_fields(row) for row in totals],
        **energy,
        **_charges_body(report),
    }


def _margins(report: CostReport) -> list[MarginRow]:
    if report.charges is None:
        return []
    cost_rows, _ = rows(report)
    costs = [(row.name, row.currency, row.total) for row in cost_rows]
    return margins(costs, report.charges, report.paid)


def _charges_body(report: CostReport) -> dict[str, Any]:
    charges = report.charges
    if charges is None:
        return {}
    of_names = [
        {"name": row.name, "currency": row.currency, **margin_fields(row)}
        for row in _margins(report)
    ]
    period = {"from": charges.since.isoformat(), "to": charges.until.isoformat()}
    return {"charges": {**period, "digest": charges.digest, "rows": of_names}}


def _fields(row: CostRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "currency": row.currency,
        **{state.value: _amount(row.states.get(state, 0), _FULL_DIGITS) for state in CostState},
        "total": _amount(row.total, _FULL_DIGITS),
        "share": f"{row.share:.6f}",
    }


def _csv(report: CostReport) -> tuple[list[str], list[dict[str, Any]]]:
    """Return rows with the covered time in each."""
    cost_rows, _ = rows(report)
    statement = report.statement
    period = {"from": statement.begin.isoformat(), "to": statement.end.isoformat()}
    lines = [
        {report.group_by: (fields := _fields(row)).pop("name"), **fields, **period}
        for row in cost_rows
    ]
    columns = [report.group_by, "currency", *CostState, "total", "share", "from", "to"]
    columns += _add_charges(report, lines)
    if report.energy is None:
        return columns, lines
    # The energy of a name is in its first rows, or in rows of its own, so that columns sum up.
    free: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        free[line[report.group_by]].append(line)
    for row in energy_rows(report.energy, GROUPINGS[report.group_by])[0]:
        if not free[row.name]:
            lines.append({report.group_by: row.name, **period})
            free[row.name].append(lines[-1])
        free[row.name].pop(0).update(energy_fields(row))
    return [*columns, *ENERGY_FIELDS], lines


def _add_charges(report: CostReport, lines: list[dict[str, Any]]) -> Sequence[str]:
    """Add charge and margin to the lines of their names, and return the columns of both."""
    charges = report.charges
    if charges is None:
        return ()
    known = {(line[report.group_by], line["currency"]): line for line in lines}
    for row in _margins(report):
        name = {report.group_by: row.name, "currency": row.currency}
        if (line := known.get((row.name, row.currency))) is None:
            lines.append(line := name)
        amounts = margin_fields(row)
        line |= {field: amounts[field] for field in _CHARGE_FIELDS}
        line |= {"chargedFrom": charges.since.isoformat(), "chargedTo": charges.until.isoformat()}
        line["chargeDigest"] = charges.digest
    return (*_CHARGE_FIELDS, "chargedFrom", "chargedTo", "chargeDigest")


def _amount(nanos: int, digits: int) -> str:
    return f"{Money(nanos, '').rounded(digits):f}"
