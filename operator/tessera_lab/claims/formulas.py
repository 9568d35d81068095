"""Short formulas behind claims that are arithmetic."""

from collections.abc import Iterable

from tessera.domain.economics.forecast import PER_MONTH
from tessera_lab.levers.lever import stacked_residual

_SECONDS_PER_DAY = 86_400


def stacked_saving(savings: Iterable[float]) -> float:
    """Return the saving of levers whose residual costs multiply."""
    return 1 - stacked_residual(savings)


def missing_saving(residual: float, savings: Iterable[float]) -> float:
    """Return what a further lever has to save so that the residuals multiply to `residual`."""
    return 1 - residual / (1 - stacked_saving(savings))


def partition_gain(instance_rates: Iterable[float], single_rate: float) -> float:
    """Return the tokens per second of all instances of a GPU over those of the whole GPU."""
    return sum(instance_rates) / single_rate


def monthly_requests(per_minute: float) -> float:
    """Return the requests of a month of 30 days."""
    return per_minute * PER_MONTH["min"]


def usd_per_request(monthly_usd: float, per_minute: float) -> float:
    return monthly_usd / monthly_requests(per_minute)


def requests_per_second(daily: float) -> float:
    return daily / _SECONDS_PER_DAY


def saving_as_ratio(saving: float) -> float:
    """Return how many times less it costs: 4 for a saving of 0.75."""
    return 1 / (1 - saving)


def reduction(before: float, after: float) -> float:
    """Return the share by which something fell."""
    return 1 - after / before
