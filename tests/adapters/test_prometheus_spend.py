"""The spend of budgets, as the operators' own series have it; no server runs."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.domain.budget.meter import OutsideLoan, SpendRecord, WindowSpend
from tests.builders import NOW

MONTH, HOUR = datetime.fromisoformat("2026-11-01T00:00Z"), NOW.replace(minute=0)
OWN = 'job="tessera-system/tessera-operator",namespace="tessera-system"'


def row(value: float, **labels: str) -> dict[str, Any]:
    return {"metric": labels, "value": [NOW.timestamp(), str(value)]}


class SpendSeries:
    """Answers the queries for the spend of budgets."""

    def __init__(self, *starts: dict[str, Any], as_of: datetime = NOW) -> None:
        self.starts, self.as_of = list(starts), as_of
        self.queries: list[str] = []

    def custom_query(self, query: str, *_: Any, **__: Any) -> list[dict[str, Any]]:
        self.queries.append(query)
        if "as_of" in query:
            return [row(self.as_of.timestamp())]
        if "window_start" in query:
            return self.starts
        amounts = {"Month": 70_000_000_000, "Hour": 2_000_000_000}
        if "outside" in query:
            amounts = {"Month": 5_000_000_000}
        if "lent" in query:
            amounts = {"Month": 6_000_000_000}
        return [row(nanos, budget="team-a", window=name) for name, nanos in amounts.items()]


async def records_in(series: SpendSeries) -> dict[str, SpendRecord]:
    metrics = PrometheusMetrics("http://unused", lambda: NOW + timedelta(minutes=10))
    metrics._client = series
    return dict(await metrics.spend_records())


def start(window: str, at: datetime, currency: str = "USD") -> dict[str, Any]:
    return row(at.timestamp(), budget="team-a", window=window, currency=currency)


async def test_the_spend_of_the_latest_windows_is_read_from_the_operators_own_series() -> None:
    past = start("Month", MONTH - timedelta(days=31))
    series = SpendSeries(past, start("Month", MONTH), start("Hour", HOUR))
    record = (await records_in(series))["team-a"]
    assert record.currency == "USD"
    assert record.meter.as_of == NOW
    assert record.meter.spend_by_window == {
        "Month": WindowSpend(MONTH, 65_000_000_000, MONTH),
        "Hour": WindowSpend(HOUR, 2_000_000_000, HOUR),
    }
    # What was used at outside providers is no cost of nodes, and what was lent stays lent.
    assert record.meter.loans["Month"] == OutsideLoan(MONTH, 6_000_000_000, 5_000_000_000)
    assert all(OWN in query for query in series.queries)
    # The spend of the hour before, which a scrape may still show, does not count.
    assert any(f"{OWN}}}[570s]" in query for query in series.queries)


@pytest.mark.parametrize(
    "starts",
    [
        [],
        [start("Week", MONTH)],
        [start("Month", NOW + timedelta(days=1))],
        [row(MONTH.timestamp(), budget="team-a", window="Month")],
        [row(float("nan"), budget="team-a", window="Month", currency="USD")],
    ],
)
async def test_starts_that_no_operator_exports_make_no_record(
    starts: list[dict[str, Any]],
) -> None:
    assert await records_in(SpendSeries(*starts)) == {}


async def test_spend_in_two_currencies_can_not_be_used() -> None:
    series = SpendSeries(start("Month", MONTH, "EUR"), start("Hour", HOUR))
    assert (await records_in(series))["team-a"].currency == ""
