"""The demand of `tessera breakeven` as it was measured: usage records, or counters of engines."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from tessera.adapters.prometheus.load import oldest_sample
from tessera.cli.breakeven.inputs import MeasuredMonth
from tessera.cli.errors import CommandError
from tessera.cli.fleet import PORT_FORWARD_HINT, open_prometheus
from tessera.cli.gateway_port import read_gateway
from tessera.cli.text import no_samples, parse_since
from tessera.domain.economics.api_prices import TokenUse
from tessera.domain.usage.report import UsageRow
from tessera.ports import MetricsError

_DAY = timedelta(days=1)


def measured_months(arguments: SimpleNamespace, until: datetime) -> tuple[MeasuredMonth, ...]:
    """Return what was used in each calendar month since then; CommandError for one without data."""
    since = parse_since(arguments.since, until)
    read = _from_gateway if arguments.gateway is not None else _from_prometheus
    return tuple(read(arguments, *month) for month in calendar_months(since, until))


def calendar_months(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yield the parts of a span by calendar month; less than a day of one joins its neighbor."""
    while since < until:
        month = (since + _DAY).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = (month + 32 * _DAY).replace(day=1)
        end = until if until - end < _DAY else end
        yield since, end
        since = end


def _from_gateway(arguments: SimpleNamespace, since: datetime, until: datetime) -> MeasuredMonth:
    query = {"by": "service", "since": since.isoformat(), "until": until.isoformat()}
    if arguments.tenant is not None:
        query["tenant"] = arguments.tenant
    return month_of_usage(read_gateway(arguments, "/usage", query), arguments.service, since, until)


def month_of_usage(
    answer: Any, service: str | None, since: datetime, until: datetime
) -> MeasuredMonth:
    """Return what the records of a gateway sum up to; CommandError where they begin later."""
    oldest = answer["oldest"]
    if oldest is None or datetime.fromisoformat(oldest) - since > _DAY:
        first = "any time" if oldest is None else f"before {oldest[:10]}"
        raise CommandError(
            f"the gateway has no records of {first}: write --since with a later day than "
            f"{since:%Y-%m-%d}"
        )
    rows = [
        UsageRow.model_validate(
            {name: value for name, value in row.items() if name != "service"}
            | {"group": (row["service"],)}
        )
        for row in answer["rows"]
    ]
    return _month(rows, service, since, until)


def _from_prometheus(arguments: SimpleNamespace, since: datetime, until: datetime) -> MeasuredMonth:
    if arguments.tenant is not None:
        raise CommandError("--tenant: counters of engines have no tenants; write --service instead")
    try:
        metrics = open_prometheus(arguments.prometheus)
        rows = asyncio.run(metrics.usage(since, until))
        oldest = asyncio.run(oldest_sample(metrics, since, until)) if rows is None else None
    except MetricsError as error:
        raise CommandError(
            f"{error}; check the URL, and from outside the cluster: {PORT_FORWARD_HINT}"
        ) from error
    if rows is None:
        raise CommandError(f"Prometheus {no_samples(since, oldest)}")
    return _month(rows, arguments.service, since, until)


def _month(
    rows: Iterable[UsageRow], service: str | None, since: datetime, until: datetime
) -> MeasuredMonth:
    chosen = [row for row in rows if service in (None, *row.group)]
    if not any(row.output_tokens for row in chosen):
        raise CommandError(
            f"no output tokens of {service or 'any service'} from {since:%Y-%m-%d} to "
            f"{until:%Y-%m-%d}, which is not taken for a month without use: write a later --since, "
            "or another --service or --tenant"
        )
    return MeasuredMonth(
        start=since.date(),
        days=(until - since) / _DAY,
        requests=sum(row.requests for row in chosen),
        use=TokenUse(
            input_tokens=sum(row.input_tokens for row in chosen),
            output_tokens=sum(row.output_tokens for row in chosen),
            cached_tokens=sum(row.cached_tokens for row in chosen),
        ),
    )
