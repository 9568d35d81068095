"""What tokens cost at an API: dated prices with their sources, shipped or of a file."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from importlib import resources
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter

from tessera.api.meta import Wire
from tessera.domain.incremental import constant
from tessera.domain.money import Money, money
from tessera.domain.price_files import PriceError, read_entries

MAX_PRICE_AGE = timedelta(days=180)
_MILLION = 10**6
_Price = Annotated[Decimal, Field(ge=0, le=_MILLION)]
_FORMAT_HELP = (
    'the format is {"prices": [{"name": "llama-3.1-8b", "from": "2026-06-08", "inputPerMillion": '
    '"0.05", "outputPerMillion": "0.08", "currency": "USD", "source": "https://..."}]}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUse:
    """The tokens of a request, or of many."""

    input_tokens: float
    output_tokens: float
    cached_tokens: float = 0
    """Input tokens that a prefix cache has; they are part of the input tokens."""

    @property
    def total(self) -> float:
        """Return input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def times(self, factor: float) -> "TokenUse":
        """Return the tokens of so many."""
        return TokenUse(
            input_tokens=self.input_tokens * factor,
            output_tokens=self.output_tokens * factor,
            cached_tokens=self.cached_tokens * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """The prices of a million tokens by their kind, in one currency."""

    input: Money
    cached_input: Money
    output: Money

    def cost(self, use: TokenUse) -> Money:
        """Return what tokens cost."""
        fresh = use.input_tokens - use.cached_tokens
        nanos = (
            Decimal(repr(fresh)) * self.input.nanos
            + Decimal(repr(use.cached_tokens)) * self.cached_input.nanos
            + Decimal(repr(use.output_tokens)) * self.output.nanos
        )
        return Money(1, self.output.currency).times(nanos / _MILLION)

    def blended(self, use: TokenUse) -> Money:
        """Return the price of a million tokens of the same mix of kinds."""
        return self.cost(use.times(_MILLION / use.total))

    def after(self, years: float, yearly_decline: float) -> "TokenPrices":
        """Return the prices once they fell by a share each year."""
        factor = Decimal(repr(1 - yearly_decline)) ** Decimal(repr(years))
        return TokenPrices(
            input=self.input.times(factor),
            cached_input=self.cached_input.times(factor),
            output=self.output.times(factor),
        )


class ApiPrice(Wire):
    """What a million tokens of a model cost at an API, as a page said on a day."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    from_: Annotated[date, Field(alias="from")]
    """The day; the prices apply until a later one."""

    input_per_million: _Price
    output_per_million: Annotated[_Price, Field(gt=0)]
    cached_input_per_million: _Price | None = None
    """Of input tokens that the API's prefix cache has; without it they cost what others do."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    source: str = ""
    """Address of the page."""

    @property
    def token_prices(self) -> TokenPrices:
        """Return the prices by kind of token."""
        cached = self.cached_input_per_million
        return TokenPrices(
            input=money(self.input_per_million, self.currency),
            cached_input=money(self.input_per_million if cached is None else cached, self.currency),
            output=money(self.output_per_million, self.currency),
        )

    def is_old(self, day: date) -> bool:
        """Return whether the price has to be looked up again."""
        return day - self.from_ > MAX_PRICE_AGE


@constant
def list_api_prices() -> tuple[ApiPrice, ...]:
    """Return the shipped prices, which are for comparing and never for billing."""
    path = resources.files("tessera.domain").joinpath("data", "api-prices.json")
    return parse_api_prices(path.read_text(encoding="utf-8"))


def parse_api_prices(text: str) -> tuple[ApiPrice, ...]:
    """Return the entries of a price file; PriceError where one is invalid or two contradict."""
    entries = read_entries(text, TypeAdapter(tuple[ApiPrice, ...]), _FORMAT_HELP)
    first_index: dict[tuple[str, date], int] = {}
    for index, entry in enumerate(entries):
        cached = entry.cached_input_per_million
        if cached is not None and cached > entry.input_per_million:
            raise PriceError(
                f"prices[{index}]: cachedInputPerMillion {cached} is above inputPerMillion "
                f"{entry.input_per_million}; correct one of them"
            )
        other = first_index.setdefault((entry.name, entry.from_), index)
        if entry != entries[other]:
            raise PriceError(
                f"prices[{other}] and prices[{index}] are different prices of {entry.name} from "
                f"{entry.from_} on; remove one of them"
            )
    return entries


def api_price_on(prices: Iterable[ApiPrice], name: str, day: date) -> ApiPrice:
    """Return the latest price of a model on a day; PriceError with what there is otherwise."""
    entries = list(prices)
    of_model = [entry for entry in entries if entry.name == name]
    if not of_model:
        names = ", ".join(sorted({entry.name for entry in entries}))
        raise PriceError(f"there is no price of {name}; choose of {names or 'none'}")
    effective = [entry for entry in of_model if entry.from_ <= day]
    if not effective:
        first = min(entry.from_ for entry in of_model)
        raise PriceError(
            f"there is no price of {name} before {first}; add one with from on {day} or earlier"
        )
    return max(effective, key=lambda entry: entry.from_)
