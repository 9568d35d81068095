"""Prices of GPUs without an AcceleratorPool: assumed list prices, and those of a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib import resources

from pydantic import TypeAdapter

from tessera.api.accelerator_pool import Price
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.incremental import constant
from tessera.domain.money import Money, money, price_on
from tessera.domain.price_files import PriceError, read_entries

ASSUMED = "assumed"


class ProductPrice(Price):
    """The price of a product from a day on, in the format of a pool's prices."""

    product: str
    seller: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBook:
    """The price of an hour of each product on one day, all in one currency."""

    name: str
    hourly: Mapping[str, Money]
    sellers: Mapping[str, str] = field(default_factory=dict)
    """Who asks the price of a product, where the prices say it."""

    @property
    def currency(self) -> str:
        """Return the currency of the prices; USD when there are none."""
        return next((amount.currency for amount in self.hourly.values()), "USD")


@constant
def list_prices() -> tuple[ProductPrice, ...]:
    """Return the shipped list prices, which are for comparing and never for billing."""
    path = resources.files("tessera.domain").joinpath("data", "prices.json")
    return parse_prices(path.read_text(encoding="utf-8"))


def price_book(name: str, prices: tuple[ProductPrice, ...], day: date) -> PriceBook:
    """Return the prices of a day; PriceError without any, or with several currencies."""
    on_day = {
        product: price
        for product in sorted({entry.product for entry in prices})
        if (price := price_on((entry for entry in prices if entry.product == product), day))
    }
    hourly = {
        product: money(price.per_gpu_hour, price.currency) for product, price in on_day.items()
    }
    if not hourly:
        first = min((entry.from_ for entry in prices), default=None)
        problem = "no prices" if first is None else f"no price before {first}"
        raise PriceError(f"it has {problem}; add a price with from on {day} or earlier")
    currencies = sorted({amount.currency for amount in hourly.values()})
    if len(currencies) > 1:
        raise PriceError(
            f"its prices are in {len(currencies)} currencies ({', '.join(currencies)}), which "
            "cannot be compared; write all in 1 currency"
        )
    sellers = {product: price.seller for product, price in on_day.items() if price.seller}
    return PriceBook(name=name, hourly=hourly, sellers=sellers)


def parse_prices(text: str) -> tuple[ProductPrice, ...]:
    """Return the entries of a price file; PriceError where the file or an entry is invalid."""
    entries = read_entries(text, TypeAdapter(tuple[ProductPrice, ...]), _FORMAT_HELP)
    for index, entry in enumerate(entries):
        if entry.product not in products():
            raise PriceError(
                f"prices[{index}].product: {entry.product} is unknown; use the value of the label "
                "nvidia.com/gpu.product, such as NVIDIA-L40S"
            )
        if entry.per_gpu_hour <= 0:
            raise PriceError(
                f"prices[{index}].perGPUHour: {entry.per_gpu_hour} is not a price; write an amount "
                "above 0"
            )
    return entries


_FORMAT_HELP = (
    'the format is {"prices": [{"product": "NVIDIA-L40S", "from": "2026-01-01", "perGPUHour": '
    '"1.55", "currency": "USD"}]}'
)
