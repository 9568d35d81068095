"""`tessera cost --energy`: what scrapes say, exactly, and how it is shown."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tessera.adapters.prometheus.energy import energy_scrape_of
from tessera.adapters.prometheus.statements import read_statements
from tessera.cli.cost.report import CostReport, output
from tessera.cli.errors import CommandError
from tessera.cli.text import parse_month
from tessera.domain.cost.bill import Bill
from tessera.domain.cost.device_use import CostState
from tessera.domain.cost.energy import Energy, EnergyLine, EnergyMeter, IdleGPU
from tessera.domain.cost.energy_statement import EnergyStatement
from tessera.domain.cost.energy_windows import EnergyGap, EnergySplit
from tessera.domain.observed.energy import EnergySource
from tessera.ports import MetricsError
from tessera.telemetry.telemetry import Telemetry
from tests.builders import NOW, at
from tests.cli.test_cost import TARGET, ScrapedMetrics, a_line, a_report

KWH = 3_600_000_000


def a_key(
    state: CostState = CostState.SERVING,
    source: EnergySource = EnergySource.MEASURED,
    split: EnergySplit = EnergySplit.ACTIVITY,
    **fields: str,
) -> EnergyLine:
    return EnergyLine(a_line(state, **fields), source, split)


def energy(kwh: float) -> Energy:
    """Return energy at 0.20 a kilowatt-hour and 400 g of CO2e."""
    return Energy(round(kwh * KWH), round(kwh * 0.2 * 10**9), round(kwh * 400 * 10**6))


IDLE, UNKNOWN = a_key(CostState.COLD_IDLE), a_key(CostState.STRANDED, split=EnergySplit.NONE)
ENERGY: Mapping[tuple[str, EnergyLine], Energy] = {
    ("acme", a_key()): energy(2),
    ("acme", a_key(CostState.WARM_IDLE, EnergySource.POWER)): energy(1),
    ("", IDLE): energy(0.5),
    ("", a_key(CostState.STRANDED, split=EnergySplit.WEIGHT)): energy(0.25),
    ("", UNKNOWN): energy(0.25),
}


def an_energy_report(
    by: str = "service", amounts: Mapping[tuple[str, EnergyLine], Energy] = ENERGY, **fields: Any
) -> CostReport:
    return replace(a_report(by), energy=EnergyStatement(energy=amounts, **fields))


def table_of(report: CostReport) -> list[str]:
    """Return the lines after the table of the cost."""
    lines = output(report, "table").text.splitlines()
    return lines[lines.index("") + 1 :]


def test_the_energy_is_a_table_of_its_own_by_the_same_states() -> None:
    assert [" ".join(line.split()) for line in table_of(an_energy_report())[:6]] == [
        "SERVICE SERVING WARM IDLE COLD IDLE STRANDED UNSPLIT KWH ELECTRICITY CURRENCY KG CO2E "
        "SOURCE",
        "team-a/chat 2.0000 1.0000 0.0000 0.0000 0.0000 3.0000 0.6000 USD 1.2000 Power",
        "(unused in a100) 0.0000 0.0000 0.5000 0.2500 0.0000 0.7500 0.1500 USD 0.3000 Measured",
        "(unsplit in a100) 0.0000 0.0000 0.0000 0.0000 0.2500 0.2500 0.0500 USD 0.1000 Measured",
        "total 2.0000 1.0000 0.5000 0.2500 0.2500 4.0000 0.8000 USD 1.6000 Power",
        "",
    ]


def test_the_notes_sum_up_and_say_what_is_not_known() -> None:
    report = an_energy_report(
        gaps={("a100", "NoReading"): 5_400_000, ("a100", "CounterReset"): 36_000},
        idle_watts={IdleGPU("a100", f"node-{n}", "0"): 10.0 + n for n in range(12)},
    )
    notes = table_of(report)[8:]
    assert notes[:4] == [
        "Energy: 4.0000 kWh of GPUs (Power), electricity for 0.8000 USD, 1.6000 kg CO2e.",
        "Electricity and CO2e are by spec.energy of each AcceleratorPool, with its pue, source "
        "and date: kubectl get acceleratorpools -o yaml",
        "6% of the energy was split by billing weight, since no activity of engines was read.",
        "AcceleratorPool/a100: 0.01 GPU hours were not measured: CounterReset.",
    ]
    assert notes[4] == "AcceleratorPool/a100: 1.50 GPU hours were not measured: NoReading."
    assert notes[5].startswith(
        "Idle watts of the free part of GPUs: node-11 GPU 0 21 W, node-10 GPU 0 20 W"
    )
    assert notes[5].endswith("node-2 GPU 0 12 W and 2 more.")


def test_what_no_factor_is_known_of_is_no_zero() -> None:
    amounts = {("acme", a_key(currency="")): Energy(KWH), ("", a_key(pool="h100")): energy(1)}
    lines = table_of(an_energy_report(amounts=amounts))
    assert lines[1].split() == ["team-a/chat", "1.0000", "1.0000", "-", "-", "-", "Measured"]
    assert "Energy: 1.0000 kWh of GPUs (Measured)." in lines
    for field in ("electricityPerKWh", "gramsCO2PerKWh"):
        assert f"Without spec.energy.{field}: AcceleratorPool a100." in lines
    [row, *_] = json.loads(output(an_energy_report(amounts=amounts), "json").text)["energy"]["rows"]
    assert (row["electricity"], row["electricityCurrency"], row["kgCO2e"]) == (None, None, None)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("service", ["team-a/chat", "(unused in a100)", "(unsplit in a100)"]),
        ("tenant", ["acme", "(unused)", "(unsplit)"]),
        ("pool", ["a100"]),
    ],
)
def test_rows_are_grouped_as_the_cost_is(by: str, expected: list[str]) -> None:
    body = json.loads(output(an_energy_report(by), "json").text)["energy"]
    assert [row["name"] for row in body["rows"]] == expected
    [total] = body["totals"]
    assert (total["joules"], total["kWh"]) == ("14400000.000", "4.000000000")


def test_the_columns_of_a_csv_sum_up_to_the_totals() -> None:
    report = an_energy_report()
    rows = list(csv.DictReader(io.StringIO(output(report, "csv").text)))
    body = json.loads(output(report, "json").text)
    for column, totals in (("total", body["totals"]), ("joules", body["energy"]["totals"])):
        total = sum(Decimal(row[column] or 0) for row in rows)
        assert total == sum(Decimal(row[column]) for row in totals)
    # The name that has cost in two currencies has its energy once.
    assert [row["joules"] for row in rows if row["service"] == "team-a/chat"] == [
        "10800000.000",
        "",
    ]
    [unsplit] = [row for row in rows if row["service"] == "(unsplit in a100)"]
    assert (unsplit["total"], unsplit["unsplitJoules"]) == ("", "900000.000")


def test_without_energy_nothing_is_added() -> None:
    for form in ("table", "json", "csv"):
        plain = output(a_report(), form).text
        assert "nergy" not in plain
        assert "oules" not in plain


def test_a_time_without_energy_says_where_to_look() -> None:
    assert table_of(an_energy_report(amounts={}))[-1].startswith("No energy data: docs/tasks/")


async def statement_of(
    first: EnergyMeter, second: EnergyMeter, target: Mapping[str, str]
) -> EnergyStatement:
    """Return what was counted between two scrapes of one process, with another process beside."""
    telemetry, scraped, other = Telemetry(), ScrapedMetrics(), Telemetry()
    for part, meter in ((1, first), (3, second)):
        telemetry.record_bill(Bill(since=at(-9000), as_of=at(part)), {})
        telemetry.record_energy(meter, {"team-a": "acme"})
        other.record_energy(EnergyMeter(lines={IDLE: energy(9.0 * part)}), {})
        scraped.add(telemetry, at(part + 1), target)
        scraped.add(other, at(part + 1), {**target, "pod": "tessera-operator-1"})
    _, statement = await read_statements(scraped, at(2), at(60), scraped)
    assert statement is not None
    return statement


@pytest.mark.parametrize("target", [TARGET, {**TARGET, "node": "cpu-0", "source": "here"}])
async def test_what_the_operator_counted_comes_back_under_the_labels_of_its_target(
    target: Mapping[str, str],
) -> None:
    lines = {key: parts for (_, key), parts in ENERGY.items()}
    gpu = IdleGPU("a100", "node-1", "3")
    gap = ("a100", EnergyGap.COUNTER_RESET)
    first = EnergyMeter(lines=lines, gaps={gap: 30.5}, idle_watts={IdleGPU("a100", "b", "0"): 9.0})
    doubled = {key: parts.plus(parts) for key, parts in lines.items()}
    second = EnergyMeter(lines=doubled, gaps={gap: 90.5}, idle_watts={gpu: 41.5})
    statement = await statement_of(first, second, target)
    assert statement.energy == dict(ENERGY)
    assert statement.gaps == {("a100", "CounterReset"): 60_000}
    assert statement.idle_watts == {gpu: 41.5}


@pytest.mark.parametrize(("before", "more"), [(0, 1), (999_999, 1), (2**50 - 3, 1), (7, 2**50)])
async def test_a_millijoule_between_two_scrapes_is_not_lost(before: int, more: int) -> None:
    statement = await statement_of(
        EnergyMeter(lines={IDLE: Energy(before, before, before)}),
        EnergyMeter(lines={IDLE: Energy(before + more, before + more, before + more)}),
        TARGET,
    )
    assert statement.energy == {("", IDLE): Energy(more, more, more)}


@pytest.mark.parametrize("label", ["state", "source", "split"])
def test_a_word_of_a_newer_operator_is_refused(label: str) -> None:
    words = {"state": "serving", "source": "Measured", "split": "Weight", label: "frozen"}
    row = {"metric": {"__name__": "tessera_energy_joules_total", **words}, "value": [0, 1.0]}
    with pytest.raises(MetricsError, match="frozen"):
        energy_scrape_of([row])


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("2026-11", datetime(2026, 11, 1, tzinfo=UTC), NOW),
        ("2026-10", datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)),
        ("2024-02", datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)),
        ("2025-12", datetime(2025, 12, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_month_ends_with_its_last_day_or_now(text: str, begin: datetime, end: datetime) -> None:
    assert parse_month(text, NOW) == (begin, end)


@pytest.mark.parametrize("text", ["2026-12", "2026", "2026-13", "November"])
def test_what_is_no_past_month_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--month"):
        parse_month(text, NOW)
