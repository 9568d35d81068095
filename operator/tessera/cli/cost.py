"""`tessera cost`: what the fleet cost, by service, tenant or pool."""

import argparse
import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from tessera.adapters.clock import now
from tessera.adapters.prometheus import COST, PrometheusMetrics
from tessera.cli.cost_report import FORMS, Report
from tessera.cli.errors import CommandError
from tessera.cli.told import Told
from tessera.domain.statement import Amounts, Look, Mark, Process, Statement, runs, statement
from tessera.ports import MetricsError
from tessera.settings import CommandSettings

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_FORWARD = (
    "kubectl -n monitoring port-forward svc/prometheus-operated 9090, "
    "then --prometheus http://127.0.0.1:9090"
)


class Bills(Protocol):
    """Where scraped bills are."""

    async def marks(self, begin: datetime, end: datetime) -> Mapping[Process, Sequence[Mark]]:
        """Every scrape of every bill from shortly before `begin` to `end`."""

    async def billed(self, look: Look) -> Amounts:
        """The bill of a process as it stood at a scrape."""


def run(arguments: argparse.Namespace) -> Told:
    """The report as text."""
    url = arguments.prometheus or CommandSettings().prometheus_url
    if not url:
        raise CommandError(
            "which Prometheus? Pass --prometheus URL or set TESSERA_PROMETHEUS_URL; from outside "
            f"the cluster: {_FORWARD}"
        )
    end = now()
    begin = since(arguments.since, end)
    try:
        found = asyncio.run(ask(PrometheusMetrics(url, now), begin, end))
    except MetricsError as error:
        raise CommandError(
            f"{error}. Is the URL right? From outside the cluster: {_FORWARD}"
        ) from error
    if found is None:
        raise CommandError(
            f"{url} has no {COST} since {begin:%Y-%m-%d %H:%M} UTC: is the operator running and "
            "scraped? kubectl get podmonitors -A shows tessera-operator; bills begin with its "
            "first scrape"
        )
    report = Report(asked=begin, now=end, by=arguments.by, statement=found)
    return Told(FORMS[arguments.output](report))


async def ask(bills: Bills, begin: datetime, end: datetime) -> Statement | None:
    """What was billed between two moments; None when nothing of it was scraped."""
    found = runs(await bills.marks(begin, end), begin)
    looks = {look for run in found for look in (run.base, run.top) if look is not None}
    return statement(found, {look: await bills.billed(look) for look in looks})


def since(text: str, end: datetime) -> datetime:
    """`24h`, or a day or moment in UTC -> the moment."""
    if told := re.fullmatch(r"(\d{1,4})([mhdw])", text):
        return end - timedelta(**{_UNITS[told[2]]: int(told[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"--since {text}: write a span (30m, 24h, 7d, 4w) or a day (2026-11-01)"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment >= end:
        raise CommandError(f"--since {text} is not in the past: it is {end:%Y-%m-%d %H:%M} UTC")
    return moment
