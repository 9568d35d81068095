"""`tessera cost`: its options, its tables, and its errors."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from enum_texts import member_texts
from tessera.adapters.prometheus.billing import (
    COST,
    COST_AS_OF,
    COST_SINCE,
    amounts_of,
    process_labels,
    scrapes_of,
)
from tessera.adapters.prometheus.energy import energy_scrape_of
from tessera.adapters.prometheus.rows import well_formed_rows
from tessera.adapters.prometheus.statements import read_statements
from tessera.cli.cost.report import CostReport, output
from tessera.cli.errors import CommandError
from tessera.cli.main import main
from tessera.cli.text import parse_since
from tessera.domain.cost.bill import Bill
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.energy_statement import EnergyScrape
from tessera.domain.cost.statement import (
    Amounts,
    BillScrape,
    ProcessLabels,
    ScrapeRef,
    Statement,
)
from tessera.ports import MetricsError
from tessera.telemetry.telemetry import Telemetry
from tests.builders import NOW, at, dollars

PAGE = Path(__file__).parents[2] / "docs" / "tasks" / "read-the-bill.md"
PROMETHEUS = "TESSERA_PROMETHEUS_URL"


def a_line(state: CostState = CostState.SERVING, service: str = "chat", **fields: str) -> CostLine:
    owned = {"namespace": "team-a", "service": service} if state.allocated else {}
    plain = {"currency": "USD", "pool": "a100", "profile": "1g.10gb"}
    return CostLine(**{**plain, **owned, **fields}, state=state)


AMOUNTS: Amounts = {
    ("acme", a_line()): dollars("2.25"),
    ("acme", a_line(CostState.WARM_IDLE)): dollars("0.75"),
    ("", a_line(CostState.LOADING, "draft", namespace="team-b")): dollars("0.000000001"),
    ("", a_line(CostState.COLD_IDLE)): dollars("0.5"),
    ("", a_line(CostState.STRANDED, profile="")): dollars("0.5"),
    ("acme", a_line(pool="h100", profile="whole", currency="EUR")): dollars("7"),
}


def a_report(by: str = "service", **fields: Any) -> CostReport:
    """Build a report of one day without gaps."""
    defaults = {"begin": NOW - timedelta(days=1), "end": NOW, "amounts": AMOUNTS}
    return CostReport(
        requested_from=NOW - timedelta(days=1),
        now=NOW,
        group_by=by,
        statement=Statement(**{**defaults, **fields}),
    )


def names(text: str, by: str) -> list[str]:
    return [row[by] for row in csv.DictReader(io.StringIO(text))]


def test_the_table_has_a_column_for_every_state_with_money_and_a_sum_for_every_currency() -> None:
    known = {key: nanos for key, nanos in AMOUNTS.items() if nanos > 1}
    assert output(a_report(amounts=known), "table").text.splitlines() == [
        "SERVICE           SERVING  WARM IDLE  COLD IDLE  STRANDED   TOTAL  CURRENCY   SHARE",
        "team-a/chat        7.0000     0.0000     0.0000    0.0000  7.0000       EUR  100.0%",
        "team-a/chat        2.2500     0.7500     0.0000    0.0000  3.0000       USD   75.0%",
        "(unused in a100)   0.0000     0.0000     0.5000    0.5000  1.0000       USD   25.0%",
        "total              7.0000     0.0000     0.0000    0.0000  7.0000       EUR  100.0%",
        "total              2.2500     0.7500     0.5000    0.5000  4.0000       USD  100.0%",
        "",
        "Cost from 2026-11-19 12:00:00 to 2026-11-20 12:00:00 UTC.",
    ]


def test_a_table_says_how_idle_replicas_would_cost_less() -> None:
    idle = {
        ("acme", a_line()): dollars("3"),
        ("acme", a_line(CostState.WARM_IDLE)): dollars("7"),
        ("", a_line(CostState.COLD_IDLE)): dollars("90"),
    }
    note = output(a_report(amounts=idle), "table").text.splitlines()[-1]
    assert note.startswith("70% of the cost of services in USD is WARM IDLE: replicas without")
    assert "scale.md#scale-to-zero" in note
    assert "of the cost of services" not in output(a_report(), "table").text


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("service", ["team-a/chat", "team-a/chat", "(unused in a100)", "team-b/draft"]),
        ("tenant", ["acme", "acme", "(unused)", "(no budget)"]),
        ("pool", ["h100", "a100"]),
    ],
)
def test_rows_are_what_was_asked_for_and_what_cost_most_comes_first(
    by: str, expected: list[str]
) -> None:
    assert names(output(a_report(by), "csv").text, by) == expected


def test_json_and_csv_have_all_digits() -> None:
    report = json.loads(output(a_report(), "json").text)
    (draft,) = (row for row in report["rows"] if row["name"] == "team-b/draft")
    assert (draft["loading"], draft["total"]) == ("0.000000001", "0.000000001")
    assert (report["from"], report["to"]) == (
        "2026-11-19T12:00:00+00:00",
        "2026-11-20T12:00:00+00:00",
    )
    assert [(row["currency"], row["total"]) for row in report["totals"]] == [
        ("EUR", "7.000000000"),
        ("USD", "4.000000001"),
    ]
    rows = list(csv.DictReader(io.StringIO(output(a_report(), "csv").text)))
    assert [row["total"] for row in rows] == [row["total"] for row in report["rows"]]


def test_a_table_says_what_it_does_not_know() -> None:
    report = a_report(begin=at(-7200), end=at(-3600), gaps=((at(-7000), at(-6990)),))
    text = output(report, "table").text
    assert text.splitlines()[-4:] == [
        "Cost from 2026-11-20 10:00:00 to 2026-11-20 11:00:00 UTC.",
        "No earlier cost data; requested from 2026-11-19 12:00:00 UTC.",
        "No later cost data: check that the operator runs and is scraped.",
        "No cost data from 2026-11-20 10:03:20 to 2026-11-20 10:03:30 UTC.",
    ]


def test_a_time_in_which_nothing_was_spent_is_an_empty_bill() -> None:
    assert output(a_report(amounts={}), "table").text.startswith(
        "SERVICE  TOTAL  CURRENCY  SHARE\n\nCost"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", NOW - timedelta(minutes=30)),
        ("24h", NOW - timedelta(days=1)),
        ("7d", NOW - timedelta(days=7)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-20T10:00:00+02:00", datetime(2026, 11, 20, 8, tzinfo=UTC)),
    ],
)
def test_a_span_a_day_or_a_moment_is_understood(text: str, expected: datetime) -> None:
    assert parse_since(text, NOW) == expected


@pytest.mark.parametrize("text", ["yesterday", "", "5", "1.5h", "-3h", "2026-13-01", "99999999d"])
def test_an_invalid_span_is_reported_with_examples(text: str) -> None:
    with pytest.raises(CommandError, match="write a span"):
        parse_since(text, NOW)


def test_the_future_is_refused() -> None:
    with pytest.raises(CommandError, match="not in the past"):
        parse_since("2026-11-21", NOW)


def failure_message(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Return the message with which the command fails."""
    monkeypatch.delenv(PROMETHEUS, raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["cost", *arguments])
    return str(ended.value.code)


def test_without_a_url_it_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    message = failure_message(monkeypatch)
    assert "--prometheus URL" in message
    assert PROMETHEUS in message
    assert "port-forward" in message


def test_a_prometheus_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    message = failure_message(monkeypatch, "--prometheus", "http://127.0.0.1:9")
    assert message.startswith("tessera cost: Prometheus at http://127.0.0.1:9: ConnectionError")
    assert "port-forward" in message


def test_the_url_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROMETHEUS, "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match="ConnectionError"):
        main(["cost"])
    assert capsys.readouterr().out == ""


@dataclass
class ScrapedMetrics:
    """The operator's exposition as Prometheus stores it, with the labels of its target."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    queried: list[ScrapeRef] = field(default_factory=list)

    def add(self, telemetry: Telemetry, moment: datetime, target: Mapping[str, str]) -> None:
        text = telemetry.exposition().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sample_labels = {name: value for name, value in sample.labels.items() if value}
                labels = {("exported_" if name in target else "") + name: value
                          for name, value in sample_labels.items()}  # fmt: skip
                self.rows.setdefault(sample.name, []).append(
                    {
                        "metric": {"__name__": sample.name, **labels, **target},
                        "value": [moment.timestamp(), str(sample.value)],
                        "values": [[moment.timestamp(), str(sample.value)]],
                    }
                )

    async def bill_scrapes(
        self, begin: datetime, end: datetime
    ) -> Mapping[ProcessLabels, Sequence[BillScrape]]:
        assert begin < end
        return scrapes_of(self.rows.get(COST_SINCE, []), self.rows.get(COST_AS_OF, []))

    async def amounts_at(self, scrape: ScrapeRef) -> Amounts:
        self.queried.append(scrape)
        moment = scrape.scraped_at.timestamp()
        return amounts_of(row for row in self.rows.get(COST, []) if row["value"][0] == moment)

    async def energy_at(self, scrape: ScrapeRef) -> EnergyScrape:
        moment = scrape.scraped_at.timestamp()
        return energy_scrape_of(
            parsed
            for name, rows in self.rows.items()
            if name.startswith("tessera_energy_")
            for row in rows
            if row["value"][0] == moment
            for parsed in well_formed_rows([row], Counter())
            if process_labels(parsed) == scrape.process
        )


TARGET = {"namespace": "tessera-system", "pod": "tessera-operator-0", "service": "tessera"}


async def test_what_the_operator_exports_comes_back_under_the_labels_of_its_target() -> None:
    telemetry, scraped = Telemetry(), ScrapedMetrics()
    lines: dict[CostLine, int] = {}
    for (_, line), nanos in AMOUNTS.items():
        lines[line] = lines.get(line, 0) + nanos
    for part in (1, 3):
        bill = Bill(
            since=at(-9000),
            as_of=at(part),
            lines={line: nanos * part for line, nanos in lines.items()},
        )
        telemetry.record_bill(bill, {"team-a": "acme"})
        scraped.add(telemetry, at(part + 1), TARGET)
    statement, _ = await read_statements(scraped, at(2), at(60))
    assert statement is not None
    assert (statement.begin, statement.end, statement.gaps) == (at(1), at(3), ())
    assert statement.amounts == {key: 2 * nanos for key, nanos in AMOUNTS.items()}
    assert len(scraped.queried) == 2


async def test_without_any_scrape_there_is_no_statement() -> None:
    assert await read_statements(ScrapedMetrics(), at(0), at(60)) == (None, None)


def test_a_state_of_a_newer_operator_is_refused() -> None:
    row = {"metric": {"currency": "USD", "state": "frozen"}, "value": [0, "1"]}
    with pytest.raises(MetricsError, match="frozen"):
        amounts_of([row])


def test_the_page_on_the_bill_explains_every_state() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for state in CostState:
        assert f"| `{state}` | {member_texts(CostState)[state.name]} |" in text
