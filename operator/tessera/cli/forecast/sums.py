"""What a service used, by sums of usage records or by counters of its engines."""

from collections.abc import Sequence
from datetime import datetime
from types import SimpleNamespace

from tessera.cli.breakeven.inputs import MeasuredMonth
from tessera.cli.breakeven.measured import measured_months
from tessera.cli.errors import CommandError
from tessera.domain.economics.accuracy import MeasuredUsage
from tessera.domain.economics.break_even import MONTH_DAYS


def usage_of_sums(arguments: SimpleNamespace, service: str | None, at: datetime) -> MeasuredUsage:
    """Return the means of a service's requests; CommandError where nothing is known of it."""
    if service is None:
        raise CommandError("no service: write --service NAMESPACE/NAME")
    options = {**vars(arguments), "service": service, "tenant": None}
    return usage_of_months(measured_months(SimpleNamespace(**options), at), service)


def usage_of_months(months: Sequence[MeasuredMonth], service: str) -> MeasuredUsage:
    """Return the means of the requests of some months, or of parts of them."""
    requests = sum(month.requests for month in months)
    if requests <= 0:
        raise CommandError(f"no request of {service} was counted: write an earlier --since")
    return MeasuredUsage(
        requests=requests / sum(month.days for month in months) * MONTH_DAYS,
        input_tokens=sum(month.use.input_tokens for month in months) / requests,
        output_tokens=sum(month.use.output_tokens for month in months) / requests,
    )
