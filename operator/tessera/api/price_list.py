"""`PriceList`: what requests through gateways are charged."""

from datetime import date
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import (
    LOWER_MODEL_NAME,
    Amount,
    DnsSubdomain,
    UnitPrice,
    Wire,
    matching,
    rule,
    rules_config,
    text_default,
)

# In place of the name of a model.
ANY_MODEL = "*"
_Model = Annotated[
    str,
    matching(
        f"^([*]|{LOWER_MODEL_NAME})$",
        "must be a served name or that of an adapter in lower case, such as llama-3, or * for all",
    ),
    StringConstraints(max_length=128),
]
# In the status of an entry: a gateway whose clock is behind has the price of its day as well.
MAX_MEASURED_PRICES = 8


class CostPrice(Wire):
    """Price of a million tokens by what the services that offer the models cost in a day, with
    idle replicas, for each million of their input and output tokens that gateways recorded. Those
    services count whose tenant has the model's name in `spec.publishing` of its TenantBudget for
    tenants who pay by the entry; without `tenants`, the one that has it for all."""

    factor: Amount
    """What the cost is multiplied by, for example `"1.2"`."""

    at_least: UnitPrice
    """Lowest price, which also applies until a cost is measured."""

    at_most: UnitPrice | None = None
    """Highest price."""

    model_config = rules_config(
        rule(
            "!has(self.atMost) || double(self.atLeast) <= double(self.atMost)",
            "spec.entries[].fromCost has atLeast above atMost: exchange them",
        )
    )


class PriceEntry(Wire):
    """Prices of models from a given day on; those of tokens are per million. Either `input` and
    `output` are set, or `fromCost` in place of all prices of tokens."""

    from_: Annotated[date, Field(alias="from")]
    """First day, in UTC, on which the prices apply. An entry that is new, changed or removed counts
    as such 60 s after gateways have seen it."""

    models: Annotated[
        tuple[_Model, ...],
        Field(min_length=1, max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ]
    """Served names of models and names of adapters, in lower case, or `"*"` for all. An adapter
    without prices costs what its model costs."""

    tenants: Annotated[
        tuple[DnsSubdomain, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """TenantBudgets whose tenants pay the prices; omitted, all whose budget has the currency."""

    input: UnitPrice | None = None
    """A million tokens of prompts."""

    cached_input: UnitPrice | None = None
    """A million tokens of prompts that a prefix cache had; omitted, as `input`."""

    output: UnitPrice | None = None
    """A million tokens of answers; `"0"` for models that generate none."""

    reasoning: UnitPrice | None = None
    """A million tokens of answers that are reasoning; omitted, as `output`."""

    from_cost: CostPrice | None = None
    """A million tokens of any kind, by their cost on the last day that has ended. The price of a
    day is in `status` before the day begins, and never changes."""

    per_request: UnitPrice = text_default("0")
    """A request, in addition to its tokens."""

    per_cached_answer: UnitPrice = text_default("0")
    """A request that is answered by an answer that was kept, in place of its tokens."""

    per_batch_row: UnitPrice = text_default("0")
    """A row of a batch, in addition to its tokens."""

    model_config = rules_config(
        rule(
            "has(self.fromCost) ? !has(self.input) && !has(self.cachedInput) && "
            "!has(self.output) && !has(self.reasoning) : has(self.input) && has(self.output)",
            "spec.entries[] needs input and output, or fromCost and no other price of tokens",
        )
    )


class PriceListSpec(Wire):
    """Prices of models."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """Currency as an ISO 4217 code. Nothing is converted: the prices hold for tenants whose
    TenantBudget has the same currency."""

    entries: Annotated[tuple[PriceEntry, ...], Field(min_length=1, max_length=64)]
    """Prices by first day. Those of the adapter come before those of the model, and these before
    those of `"*"`; then those of the tenant before those of all. Of these the latest entry that has
    started applies: of one day the first in the list, and of several lists that with the first
    name."""

    model_config = rules_config(
        rule(
            "self.entries.all(e, self.entries.exists_one(f, f.from == e.from && "
            "f.models == e.models && has(f.tenants) == has(e.tenants) && "
            "(!has(f.tenants) || f.tenants == e.tenants)))",
            "spec.entries has two prices for the same day, models and tenants: keep one of them",
            ".entries",
        ),
    )


class _PriceListStatusBase(Wire):
    """Base of the parts of the status. It ignores unknown fields, so that prices stay readable when
    a newer operator added fields."""

    model_config = ConfigDict(extra="ignore")


class MeasuredPrice(_PriceListStatusBase):
    """Price of an entry with `fromCost` from a day on."""

    day: date
    """First day, in UTC, of the price: it applies until that of the next one."""

    per_million_tokens: Amount
    """The cost times the factor, rounded half to even, within the bounds."""

    cost: Amount
    """What a million tokens cost: at least half of that of the price before, and at most twice that
    or twice what `atLeast` stands for."""

    measured_on: date
    """Day of that cost, in UTC: of those that had ended the last with a million tokens."""


class EntryStatus(_PriceListStatusBase):
    """Prices of an entry with `fromCost`, which is the one with the same day, models and
    tenants."""

    from_: Annotated[date, Field(alias="from")]
    """First day of the entry."""

    models: Annotated[tuple[str, ...], Field(max_length=32)]
    """Models of the entry."""

    tenants: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    """Tenants of the entry."""

    prices: Annotated[tuple[MeasuredPrice, ...], Field(max_length=MAX_MEASURED_PRICES)]
    """The latest ones, by day."""

    def is_of(self, entry: PriceEntry) -> bool:
        """Return whether the prices are those of an entry."""
        own = self.from_, self.models, self.tenants
        return own == (entry.from_, entry.models, entry.tenants)


class PriceListStatus(_PriceListStatusBase):
    """Prices by cost; written by the operator only."""

    entries: Annotated[tuple[EntryStatus, ...], Field(max_length=64)] = ()
    """Entries with `fromCost` whose cost was measured."""

    def prices_of(self, entry: PriceEntry) -> tuple[MeasuredPrice, ...]:
        """Return the prices of an entry by day; none before a cost was measured."""
        return next((each.prices for each in self.entries if each.is_of(entry)), ())


class PriceList(Wire):
    """What requests through gateways are charged."""

    spec: PriceListSpec
    """Prices of models."""

    status: PriceListStatus | None = None
    """Prices by cost; written by the operator only."""
