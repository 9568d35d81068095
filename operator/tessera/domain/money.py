"""Money: whole nano-units inside, decimal strings with a currency at the border."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal

from typing_extensions import override

from tessera.api.accelerator_pool import Price
from tessera.domain.catalog import COMPUTE_SLICES, MEMORY_SLICES
from tessera.domain.hardware import Hardware

NANO = 10**9


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in nano-units of a currency."""

    nanos: int
    currency: str

    def times(self, factor: Decimal | int) -> "Money":
        return Money(_whole(Decimal(self.nanos) * factor), self.currency)

    def rounded(self, digits: int) -> Decimal:
        """The amount in units, for people: 4 digits show a tenth of a thousandth."""
        return (Decimal(self.nanos) / NANO).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)

    @override
    def __str__(self) -> str:
        return f"{self.rounded(2)} {self.currency}"


def money(amount: Decimal, currency: str) -> Money:
    """Units as they stand in a manifest -> nano-units."""
    return Money(_whole(amount * NANO), currency)


def _whole(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def price_on(prices: Iterable[Price], day: date) -> Price | None:
    """The last price whose day has come; None before the first."""
    come = [price for price in prices if price.from_ <= day]
    return max(come, key=lambda price: price.from_, default=None)


def billing_weight(hardware: Hardware) -> Decimal:
    """Share of a GPU that a slice is billed: (c/7 + m/8) / 2; whole GPUs count 1 each."""
    compute = Decimal(hardware.compute_slices) / COMPUTE_SLICES
    memory = Decimal(hardware.memory_slices) / MEMORY_SLICES
    return (compute + memory) / 2 * hardware.devices


def choosing_weight(hardware: Hardware, cut_gpus: int, weights: Decimal) -> Decimal:
    """Share of a GPU that a slice is worth when hardware is chosen.

    The GPUs that are cut (`cut_gpus` of them) are spread over their slices (together of billing
    weight `weights`), so that what a layout strands is paid by the slices that it yields.
    """
    if hardware.profile is None:
        return Decimal(hardware.devices)
    return billing_weight(hardware) * cut_gpus / weights


def per_million_tokens(per_hour: Money, tokens_per_second: float) -> Money:
    """Price of a million tokens at a steady rate (F01)."""
    hourly = Decimal(repr(tokens_per_second)) * 3600
    return per_hour.times(Decimal(10**6) / hourly)
