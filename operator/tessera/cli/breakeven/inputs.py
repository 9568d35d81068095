"""What a break-even is computed from besides prices: a replica, and what was used."""

from dataclasses import dataclass
from datetime import date

from tessera.domain.economics.api_prices import TokenUse
from tessera.domain.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMonth:
    """What was used in a calendar month, or in the part of it that was asked for."""

    start: date
    days: float
    requests: float
    use: TokenUse


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnReplica:
    """One replica on own GPUs."""

    name: str
    hourly: Money
    output_rate: float | None
    """Output tokens per second at full load; None where it is not known."""
    is_predicted: bool = False
    is_assumed: bool = False
    """Whether the price is of the shipped list."""
    seller: str | None = None
    """Who asks the price, where that is known."""
