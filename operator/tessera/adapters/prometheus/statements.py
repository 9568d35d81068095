"""Statements of cost and energy between two moments, from what Prometheus scraped."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from tessera.domain.cost.energy_statement import (
    EnergyScrape,
    EnergyStatement,
    build_energy_statement,
)
from tessera.domain.cost.statement import (
    Amounts,
    BillScrape,
    CostStatement,
    ProcessLabels,
    ScrapeRef,
    build_statement,
    charge_periods,
)


class BillReader(Protocol):
    """A source of scraped bills."""

    async def bill_scrapes(
        self, begin: datetime, end: datetime
    ) -> Mapping[ProcessLabels, Sequence[BillScrape]]:
        """Return every scrape of every bill from shortly before `begin` to `end`."""

    async def amounts_at(self, scrape: ScrapeRef) -> Amounts:
        """Return the bill of a process at a scrape."""


class EnergyScrapes(Protocol):
    """A source of scraped energy."""

    async def energy_at(self, scrape: ScrapeRef) -> EnergyScrape:
        """Return the energy that a process had counted at a scrape."""


async def read_statements(
    bills: BillReader, begin: datetime, end: datetime, energy: EnergyScrapes | None = None
) -> tuple[CostStatement | None, EnergyStatement | None]:
    """Return the cost between two moments, None without a scrape in that time, and the energy."""
    periods = charge_periods(await bills.bill_scrapes(begin, end), begin)
    scrapes = {
        scrape
        for period in periods
        for scrape in (period.baseline, period.latest)
        if scrape is not None
    }
    cost = build_statement(periods, {scrape: await bills.amounts_at(scrape) for scrape in scrapes})
    if energy is None:
        return cost, None
    counted = {scrape: await energy.energy_at(scrape) for scrape in scrapes}
    return cost, build_energy_statement(periods, counted)
