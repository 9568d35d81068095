"""Money: integers of nano-units inside, decimal strings with a currency in the API."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from typing import TypeVar

from typing_extensions import override

from tessera.api.accelerator_pool import Price, Tier
from tessera.api.meta import MAX_AMOUNT
from tessera.api.ref import Ref

PriceT = TypeVar("PriceT", bound=Price)
NANO = 10**9
_HOUR = timedelta(hours=1) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in nano-units of a currency."""

    nanos: int
    currency: str

    def times(self, factor: Decimal | int) -> "Money":
        """Return the amount times a factor, rounded half to even to a nano-unit."""
        return Money(_round_half_even(Decimal(self.nanos) * factor), self.currency)

    def rounded(self, digits: int) -> Decimal:
        """Return the amount in units, rounded to so many digits after the point."""
        return (Decimal(self.nanos) / NANO).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)

    def formatted(self, digits: int) -> str:
        """Return the amount with its currency, such as `2.9900 USD` with 4 digits."""
        return f"{self.rounded(digits)} {self.currency}"

    @override
    def __str__(self) -> str:
        return self.formatted(2)


def money(amount: Decimal, currency: str) -> Money:
    """Return an amount in units of a currency as Money."""
    return Money(_round_half_even(amount * NANO), currency)


def to_nanos(amount: Decimal) -> int:
    """Return an amount in units as nano-units."""
    return _round_half_even(amount * NANO)


def from_nanos(amount: int) -> Decimal:
    """Return nano-units as an exact amount in units, or the largest one that a status can have."""
    return min(Decimal(amount) / NANO, MAX_AMOUNT)


def _round_half_even(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def price_on(prices: Iterable[PriceT], day: date) -> PriceT | None:
    """Return the latest price that is effective on a day; None before the first."""
    effective = [price for price in prices if price.from_ <= day]
    return max(effective, key=lambda price: price.from_, default=None)


@dataclass(frozen=True, slots=True)
class Tariff:
    """The price of hardware of a pool: dated prices of a whole GPU, and the share of one."""

    prices: tuple[Price, ...]
    weight: Decimal
    """Share of a GPU; above 1 for several."""
    tier: Tier | None = None
    """Tier of the pool; None where it is not known any more."""
    service: Ref | None = None
    """The service whose replica it is for; None for anything else, and where it is not known."""

    def paid_for(self, service: Ref) -> "Tariff":
        """Return the tariff of a replica of a service, of whatever version of it."""
        return replace(self, service=service.base)

    @property
    def currency(self) -> str:
        """Return the currency, which is the same in all prices of a pool."""
        return self.prices[0].currency

    def per_gpu_hour(self, day: date) -> Decimal:
        """Return the price of a whole GPU for an hour of a day."""
        # Replicas may be older than the first price: those days cost as the first.
        price = price_on(self.prices, day) or min(
            self.prices, key=lambda dated_price: dated_price.from_
        )
        return price.per_gpu_hour

    def hourly(self, day: date) -> Money:
        """Return the price of an hour on a day."""
        return money(self.per_gpu_hour(day), self.currency).times(self.weight)

    def cost(self, start: datetime, end: datetime) -> int:
        """Return the nano-units from one moment to another, each day at its price."""
        if end <= start:
            return 0
        spans = (
            (self.hourly(first.date()).nanos, (last - first) // timedelta(microseconds=1))
            for first, last in self._spans(start, end)
        )
        return sum(_round_half_even(Decimal(nanos * micros) / _HOUR) for nanos, micros in spans)

    def _spans(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield the parts of a span in which one price is effective."""
        changes = (datetime.combine(price.from_, time(), tzinfo=UTC) for price in self.prices)
        boundaries = [start, *sorted(moment for moment in changes if start < moment < end), end]
        yield from pairwise(boundaries)


def per_million_tokens(per_hour: Money, tokens_per_second: float) -> Money:
    """Return the price of a million tokens at a steady rate."""
    # `repr` gives the shortest decimal of the float, so the price does not show binary digits.
    hourly = Decimal(repr(tokens_per_second)) * 3600
    return per_hour.times(Decimal(10**6) / hourly)
