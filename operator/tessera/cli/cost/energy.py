"""The energy beside the cost: rows and notes of its table, and the fields of JSON and CSV."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tessera.api.text import first_names
from tessera.cli.text import cell, column_head, table
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.energy import MILLIJOULES_PER_KWH, UNSPLIT, Energy, EnergyLine
from tessera.domain.cost.energy_statement import EnergyStatement
from tessera.domain.cost.energy_windows import EnergySplit
from tessera.domain.observed.energy import EnergySource, worst_source

_STATES = (*CostState, UNSPLIT)
ENERGY_FIELDS = (
    *(f"{state}Joules" for state in _STATES),
    *("joules", "kWh", "electricity", "electricityCurrency", "kgCO2e", "source"),
)
_NANOS, _MICROGRAMS_PER_KG = 10**9, 10**9
_TABLE_DIGITS, _FULL_DIGITS = 4, 9
_MAX_GPUS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRow:
    """The energy of one service, tenant or pool in one currency of electricity."""

    name: str
    currency: str
    """Empty where a pool has no factors."""
    states: Mapping[str, int]
    """Millijoules."""
    energy: Energy
    source: EnergySource
    """That of the part that is known worst."""


def energy_rows(
    statement: EnergyStatement, name_of: Callable[[str, CostLine], str]
) -> tuple[list[EnergyRow], list[EnergyRow]]:
    """Return the rows by descending energy, and the total of each currency."""
    parts: dict[tuple[str, str], list[tuple[EnergyLine, Energy]]] = defaultdict(list)
    sums: dict[str, list[tuple[EnergyLine, Energy]]] = defaultdict(list)
    for (tenant, key), energy in statement.energy.items():
        name = name_of(tenant, key.line)
        if key.state == UNSPLIT:
            # Its line is that of the stranded cost, but it may have been used.
            name = name.replace("(unused", "(unsplit")
        parts[key.line.currency, name].append((key, energy))
        sums[key.line.currency].append((key, energy))
    rows = [_row(name, currency, lines) for (currency, name), lines in parts.items()]
    rows.sort(key=lambda row: (row.currency, -row.energy.millijoules, row.name))
    return rows, [_row("total", currency, lines) for currency, lines in sorted(sums.items())]


def _row(name: str, currency: str, lines: Sequence[tuple[EnergyLine, Energy]]) -> EnergyRow:
    states: Counter[str] = Counter()
    total = Energy()
    for key, energy in lines:
        states[key.state] += energy.millijoules
        total = total.plus(energy)
    source = worst_source(key.source for key, _ in lines)
    return EnergyRow(name=name, currency=currency, states=states, energy=total, source=source)


def energy_table(group_by: str, rows: list[EnergyRow], totals: list[EnergyRow]) -> Iterator[str]:
    """Yield a table in kWh."""
    states = [state for state in _STATES if any(row.states.get(state) for row in totals)]
    head = [column_head(key) for key in (group_by, *states)]
    body = [
        [
            row.name,
            *(_kwh(row.states.get(state, 0), _TABLE_DIGITS) for state in states),
            _kwh(row.energy.millijoules, _TABLE_DIGITS),
            cell(_electricity(row, _TABLE_DIGITS)),
            row.currency or "-",
            cell(_kg_co2e(row, _TABLE_DIGITS)),
            row.source,
        ]
        for row in (*rows, *totals)
    ]
    columns = ("KWH", "ELECTRICITY", "CURRENCY", "KG CO2E", "SOURCE")
    yield from table([*head, *columns], body, str.rjust)


def energy_notes(statement: EnergyStatement, totals: Iterable[EnergyRow]) -> Iterator[str]:
    """Yield the totals in a sentence, what is not known, and GPUs that are used in part."""
    if not statement.energy:
        yield "No energy data: docs/tasks/energy.md#no-energy-data names the causes."
        return
    for row in totals:
        amounts = [f"{_kwh(row.energy.millijoules, _TABLE_DIGITS)} kWh of GPUs ({row.source})"]
        if electricity := _electricity(row, _TABLE_DIGITS):
            amounts.append(f"electricity for {electricity} {row.currency}")
        if kg := _kg_co2e(row, _TABLE_DIGITS):
            amounts.append(f"{kg} kg CO2e")
        yield f"Energy: {', '.join(amounts)}."
    yield from _factor_notes(statement)
    total = sum(energy.millijoules for energy in statement.energy.values())
    weighed = sum(
        energy.millijoules
        for (_, key), energy in statement.energy.items()
        if key.split is EnergySplit.WEIGHT
    )
    if weighed:
        yield (
            f"{weighed / total:.0%} of the energy was split by billing weight, since no activity "
            "of engines was read."
        )
    for (pool, reason), milliseconds in sorted(statement.gaps.items()):
        gpu_hours = milliseconds / 3_600_000
        yield f"AcceleratorPool/{pool}: {gpu_hours:.2f} GPU hours were not measured: {reason}."
    gpus = sorted(statement.idle_watts.items(), key=lambda item: (-item[1], item[0]))
    if gpus:
        names = [f"{gpu.node} GPU {gpu.gpu} {watts:.0f} W" for gpu, watts in gpus]
        yield f"Idle watts of the free part of GPUs: {first_names(names, _MAX_GPUS)}."


def _factor_notes(statement: EnergyStatement) -> Iterator[str]:
    """Yield where the factors of pools come from, and which pools lack one."""
    by_pool: dict[str, Energy] = defaultdict(Energy)
    for (_, key), energy in statement.energy.items():
        by_pool[key.line.pool] = by_pool[key.line.pool].plus(energy)
    if any(energy.nanos or energy.micrograms for energy in by_pool.values()):
        yield (
            "Electricity and CO2e are by spec.energy of each AcceleratorPool, with its pue, source "
            "and date: kubectl get acceleratorpools -o yaml"
        )
    for amount, word in (("nanos", "electricityPerKWh"), ("micrograms", "gramsCO2PerKWh")):
        pools = [pool for pool, energy in sorted(by_pool.items()) if not getattr(energy, amount)]
        if pools:
            yield f"Without spec.energy.{word}: AcceleratorPool {first_names(pools, _MAX_GPUS)}."


def energy_body(
    statement: EnergyStatement, rows: Iterable[EnergyRow], totals: Iterable[EnergyRow]
) -> dict[str, Any]:
    """Return all digits of the amounts, as strings."""
    return {
        "rows": [{"name": row.name, **energy_fields(row)} for row in rows],
        "totals": [{"name": row.name, **energy_fields(row)} for row in totals],
        "gaps": [
            {"pool": pool, "reason": reason, "seconds": milliseconds / 1000}
            for (pool, reason), milliseconds in sorted(statement.gaps.items())
        ],
        "idleGPUs": [
            {**gpu._asdict(), "watts": round(watts, 1)}
            for gpu, watts in sorted(statement.idle_watts.items())
        ],
    }


def energy_fields(row: EnergyRow) -> dict[str, str | None]:
    """Return the amounts of a row but its name; None is not known."""
    return {
        **{f"{state}Joules": _joules(row.states.get(state, 0)) for state in _STATES},
        "joules": _joules(row.energy.millijoules),
        "kWh": _kwh(row.energy.millijoules, _FULL_DIGITS),
        "electricity": _electricity(row, _FULL_DIGITS),
        "electricityCurrency": row.currency or None,
        "kgCO2e": _kg_co2e(row, _FULL_DIGITS),
        "source": row.source,
    }


def _joules(millijoules: int) -> str:
    return f"{Decimal(millijoules) / 1000:.3f}"


def _kwh(millijoules: int, digits: int) -> str:
    return f"{Decimal(millijoules) / MILLIJOULES_PER_KWH:.{digits}f}"


def _electricity(row: EnergyRow, digits: int) -> str | None:
    """Return the price in units; None where no pool has a factor."""
    return f"{Decimal(row.energy.nanos) / _NANOS:.{digits}f}" if row.energy.nanos else None


def _kg_co2e(row: EnergyRow, digits: int) -> str | None:
    """Return the kilograms; None where no pool has a factor."""
    grams = row.energy.micrograms
    return f"{Decimal(grams) / _MICROGRAMS_PER_KG:.{digits}f}" if grams else None
