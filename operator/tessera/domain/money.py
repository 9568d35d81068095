"""Money: whole nano-units inside, decimal strings with a currency at the border."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise

from typing_extensions import override

from tessera.api.accelerator_pool import Price

NANO = 10**9
_HOUR = timedelta(hours=1) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in nano-units of a currency."""

    nanos: int
    currency: str

    def times(self, factor: Decimal | int) -> "Money":
        return Money(_round_half_even(Decimal(self.nanos) * factor), self.currency)

    def rounded(self, digits: int) -> Decimal:
        """The amount in units, for people: 4 digits show a tenth of a thousandth."""
        return (Decimal(self.nanos) / NANO).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)

    @override
    def __str__(self) -> str:
        return f"{self.rounded(2)} {self.currency}"


def money(amount: Decimal, currency: str) -> Money:
    """Units as they stand in a manifest -> nano-units."""
    return Money(_round_half_even(amount * NANO), currency)


def to_nanos(amount: Decimal) -> int:
    """Units as they stand in a manifest or status -> nano-units, without the currency."""
    return _round_half_even(amount * NANO)


def from_nanos(amount: int) -> Decimal:
    """Nano-units -> units, exactly."""
    return Decimal(amount) / NANO


def _round_half_even(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def price_on(prices: Iterable[Price], day: date) -> Price | None:
    """The last price whose day has come; None before the first."""
    effective = [price for price in prices if price.from_ <= day]
    return max(effective, key=lambda price: price.from_, default=None)


@dataclass(frozen=True, slots=True)
class Tariff:
    """What something of a pool costs: dated prices of a whole GPU, and its share of one."""

    prices: tuple[Price, ...]
    weight: Decimal

    @property
    def currency(self) -> str:
        return self.prices[0].currency

    def per_gpu_hour(self, day: date) -> Decimal:
        """The price of a whole GPU on a day; days before the first price have the first."""
        price = price_on(self.prices, day) or min(
            self.prices, key=lambda dated_price: dated_price.from_
        )
        return price.per_gpu_hour

    def hourly(self, day: date) -> Money:
        """The price of an hour on a day."""
        return money(self.per_gpu_hour(day), self.currency).times(self.weight)

    def cost(self, start: datetime, end: datetime) -> int:
        """Nano-units from one moment to another, each day at its price."""
        if end <= start:
            return 0
        spans = (
            (self.hourly(first.date()).nanos, (last - first) // timedelta(microseconds=1))
            for first, last in self._spans(start, end)
        )
        return sum(_round_half_even(Decimal(nanos * micros) / _HOUR) for nanos, micros in spans)

    def _spans(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        """The parts of a span in which one price holds."""
        changes = (datetime.combine(price.from_, time(), tzinfo=UTC) for price in self.prices)
        boundaries = [start, *sorted(moment for moment in changes if start < moment < end), end]
        yield from pairwise(boundaries)


def per_million_tokens(per_hour: Money, tokens_per_second: float) -> Money:
    """Price of a million tokens at a steady rate (F01)."""
    hourly = Decimal(repr(tokens_per_second)) * 3600
    return per_hour.times(Decimal(10**6) / hourly)
