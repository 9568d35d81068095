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
from tessera.cli.text import parse_since
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


def run(arguments: SimpleNamespace) -> Output:
    """Return the report in the requested format."""
    url = prometheus_url(arguments)
    if not url:
        raise CommandError(
            "no Prometheus URL: pass --prometheus URL or set TESSERA_PROMETHEUS_URL; from outside "
            f"the cluster: {PORT_FORWARD_HINT}"
        )
    end = now()
    begin = parse_since(arguments.since, end)
    try:
        cost_statement = asyncio.run(read_statement(open_prometheus(url), begin, end))
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
        requested_from=begin, now=end, group_by=arguments.by, statement=cost_statement
    )
    return output(report, arguments.output)


async def read_statement(bills: BillReader, begin: datetime, end: datetime) -> CostStatement | None:
    """Return the cost between two moments; None without a scrape in that time."""
    periods = charge_periods(await bills.bill_scrapes(begin, end), begin)
    scrapes = {
        scrape
        for period in periods
        for scrape in (period.baseline, period.latest)
        if scrape is not None
    }
    return build_statement(periods, {scrape: await bills.amounts_at(scrape) for scrape in scrapes})
