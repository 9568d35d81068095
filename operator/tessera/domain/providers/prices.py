"""What models of outside providers cost by a table: shipped, or of a file. No price here charges.

`tessera provider` writes ModelProviders from it and compares; `tools/provider_facts.py` makes the
shipped one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib import resources
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from tessera.api.meta import UnitPrice, Wire
from tessera.api.model_provider import (
    BilledTokens,
    CostStep,
    ModelProviderSpec,
    ProviderModel,
)
from tessera.domain.incremental import constant
from tessera.domain.price_files import PriceError
from tessera.domain.providers.dialects import dialect_of, dialects

# The currency of all prices of a table.
CURRENCY = "USD"
_FORMAT_HELP = (
    'the format is {"date": "2026-11-10", "rows": [{"provider": "x-ai", "model": "grok-4.5", '
    '"match": "^grok-4\\\\.5$", "context": 500000, "prices": [{"input": "2", "output": "6"}]}]}'
)
# Prices of tokens, each with the price that holds where it is omitted.
_TOKEN_PRICES: Mapping[str, str] = {
    "input": "",
    "cachedInput": "input",
    "cacheWrite": "input",
    "longCacheWrite": "cacheWrite",
    "output": "",
    "reasoning": "output",
}


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


class ListedPrice(BilledTokens):
    """What a model costs from a day on; tokens are a million."""

    from_: Annotated[date | None, Field(alias="from")] = None
    """First day of these prices; omitted, they hold before all others."""

    hours: tuple[str, ...] = ()
    """Hours in UTC with other prices than the rest of the day; these are the dearest of both."""

    steps: tuple[CostStep, ...] = ()
    """Other prices of all tokens of requests with long prompts."""

    per_request: UnitPrice = Decimal(0)
    """A request, in addition to its tokens."""

    search: UnitPrice | None = None
    """A search of the web."""

    others: tuple[str, ...] = ()
    """What the bill also has, without a field in a ModelProvider."""


class ListedModel(Wire):
    """A model at a provider."""

    provider: str
    model: str
    match: Annotated[str, AfterValidator(_compiled)]
    """Regular expression that is found in each of its names, in lower case."""

    context: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a prompt and its answer together; None where it is not known."""

    prices: Annotated[tuple[ListedPrice, ...], Field(min_length=1)]
    """Its prices, the oldest first."""

    def price_on(self, day: date) -> ListedPrice:
        """Return the prices on a day, the oldest for a day before all of them."""
        effective = [each for each in self.prices if each.from_ is None or each.from_ <= day]
        return (effective or self.prices[:1])[-1]

    def prices_from(self, day: date) -> tuple[ListedPrice, ...]:
        """Return the prices on a day, and those that the table announces for later ones."""
        current = self.price_on(day)
        return self.prices[self.prices.index(current) :]


class ListedProvider(Wire):
    """A provider of the table."""

    page: str = ""
    """Address of its page with prices."""

    sells: tuple[str, ...] = ()
    """Providers whose models it sells at their prices."""


class PriceTable(Wire):
    """Prices of models, as somebody observed them on a day."""

    package: str = ""
    version: Annotated[str, StringConstraints(max_length=100)] = ""
    date: date
    """Day on which the prices were compared with those of the providers."""

    license: str = ""
    providers: Mapping[str, ListedProvider] = {}
    rows: tuple[ListedModel, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all providers with models."""
        return tuple(sorted({row.provider for row in self.rows}))

    def models_of(self, provider: str) -> list[ListedModel]:
        """Return the models of a provider, without those of others that it sells."""
        return [row for row in self.rows if row.provider == provider]

    def model(self, provider: str, name: str) -> ListedModel | None:
        """Return the model that a provider calls so, or one that it sells of another."""
        lower = name.lower()
        sells = self.providers.get(provider, ListedProvider()).sells
        for seller in (provider, *sells):
            rows = self.models_of(seller)
            for row in rows:
                if row.model.lower() == lower:
                    return row
            for row in rows:
                if re.search(row.match, lower):
                    return row
        return None


@constant
def shipped_prices() -> PriceTable:
    """Return the shipped table."""
    path = resources.files("tessera.domain").joinpath("data", "provider-prices.json")
    return parse_price_table(path.read_text(encoding="utf-8"))


def parse_price_table(text: str) -> PriceTable:
    """Return the table of a file; PriceError with the place and the format for an invalid one."""
    try:
        return PriceTable.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
        place = f"{path.removeprefix('.')}: " if path else ""
        raise PriceError(f"{place}{first['msg']}; {_FORMAT_HELP}") from None


def token_prices(prices: BilledTokens) -> dict[str, Decimal]:
    """Return the prices of tokens that are set, by their names in a ModelProvider."""
    return {
        str(info.alias): amount
        for name, info in BilledTokens.model_fields.items()
        if (amount := getattr(prices, name)) is not None
    }


@dataclass(frozen=True, slots=True)
class PriceDifference:
    """A price of a model that is not the table's; None where there is none."""

    field: str
    """Path below `cost`, such as `steps[200000].input`."""

    observed: Decimal | None
    listed: Decimal | None


def price_differences(model: ProviderModel, listed: ListedPrice) -> list[PriceDifference]:
    """Return the prices of a model that are not the table's.

    What is omitted counts as what it stands for. Steps above the longest prompt do not count, nor
    do searches of a model without a price of them.
    """
    cost = model.cost
    differences = list(_token_differences("", cost, listed))
    if cost.per_request != listed.per_request:
        differences.append(PriceDifference("perRequest", cost.per_request, listed.per_request))
    if cost.search is not None and cost.search != listed.search:
        differences.append(PriceDifference("search", cost.search, listed.search))
    steps = {step.above_input_tokens: step for step in cost.steps}
    listed_steps = {step.above_input_tokens: step for step in listed.steps}
    for above in sorted(steps.keys() | listed_steps.keys()):
        if above < model.max_context_tokens:
            differences += _token_differences(
                f"steps[{above}].",
                _step_above(steps, above) or cost,
                _step_above(listed_steps, above) or listed,
            )
    return differences


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedModel:
    """A model of a ModelProvider, compared with the table."""

    provider: str
    name: str
    currency: str
    is_listed: bool
    """Whether the table has prices of it in that currency."""

    observed_at: date | None
    differences: tuple[PriceDifference, ...] = ()


def compared_models(
    table: PriceTable, name: str, spec: ModelProviderSpec, day: date
) -> Iterator[ComparedModel]:
    """Yield the models of a ModelProvider; its row is its dialect's, or one of its own name."""
    dialect = dialect_of(spec)
    row_name = next((key for key, each in dialects().items() if each is dialect), name)
    for model in spec.models:
        listed = table.model(row_name, model.name) if spec.currency == CURRENCY else None
        yield ComparedModel(
            provider=name,
            name=model.name,
            currency=spec.currency,
            is_listed=listed is not None,
            observed_at=model.cost.observed_at,
            differences=()
            if listed is None
            else tuple(price_differences(model, listed.price_on(day))),
        )


def _step_above(steps: Mapping[int, CostStep], tokens: int) -> CostStep | None:
    begins = [begin for begin in steps if begin <= tokens]
    return steps[max(begins)] if begins else None


def _token_differences(
    prefix: str, observed: BilledTokens, listed: BilledTokens
) -> Iterator[PriceDifference]:
    both = [token_prices(prices) for prices in (observed, listed)]
    for name, stand_in in _TOKEN_PRICES.items():
        first, second = (_effective(prices, name, stand_in) for prices in both)
        if first != second:
            yield PriceDifference(f"{prefix}{name}", first, second)


def _effective(prices: Mapping[str, Decimal], name: str, stand_in: str) -> Decimal:
    while name not in prices:
        name, stand_in = stand_in, _TOKEN_PRICES[stand_in]
    return prices[name]
