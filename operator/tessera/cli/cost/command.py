"""`tessera cost`: the cost of the fleet by service, tenant or pool."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Protocol

from tessera.adapters.clock import now
from tessera.adapters.prometheus.billing import COST
from tessera.cli.cost.report import CostReport, output
from tessera.cli.errors import CommandError
from tessera.cli.fleet import PORT_FORWARD_HINT, open_prometheus, prometheus_url
from tessera.cli.output import Output
from tessera.cli.text import parse_month, parse_since
from tessera.domain.billing.energy_statement import (
    EnergyScrape,
    EnergyStatement,
    build_energy_statement,
)
from tessera.domain.billing.statement import (
    Amounts,
    BillScrape,
    CostStatement,
    ProcessLabels,
    ScrapeRef,
    build_statement,
    charge_periods,
)
from tessera.ports import MetricsError
from tessera.settings import CommandSettings


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


def run(arguments: SimpleNamespace) -> Output:
    """Return the report in the requested format."""
    url = prometheus_url(arguments)
    if not url:
        raise CommandError(
            "no Prometheus URL: pass --prometheus URL or set TESSERA_PROMETHEUS_URL; from outside "
            f"the cluster: {PORT_FORWARD_HINT}"
        )
    end = now()
    if arguments.month:
        begin, end = parse_month(arguments.month, end)
    else:
        begin = parse_since(arguments.since, end)
    metrics = open_prometheus(url)
    scrapes = metrics.energy if arguments.energy else None
    try:
        cost_statement, energy = asyncio.run(read_statements(metrics, begin, end, scrapes))
    except MetricsError as error:
        raise CommandError(
            f"{error}; check the URL, and from outside the cluster: {PORT_FORWARD_HINT}"
        ) from error
    if cost_statement is None:
        series = f"{COST}{{{CommandSettings().prometheus_access.own_target}}}"
        raise CommandError(
            f"{url} has no {series} since {begin:%Y-%m-%d %H:%M} UTC; set TESSERA_NAMESPACE to the "
            "operator's namespace, and check that it runs and is scraped: "
            "kubectl get podmonitors -A shows tessera-operator"
        )
    report = CostReport(
        requested_from=begin,
        now=end,
        group_by=arguments.by,
        statement=cost_statement,
        energy=energy,
    )
    return output(report, arguments.output)


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
