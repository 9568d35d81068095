"""`PriceList`: what requests through gateways are charged."""

from datetime import date
from typing import Annotated

from pydantic import Field, StringConstraints

from tessera.api.meta import Amount, DnsSubdomain, Wire, matching, rule, rules_config, text_default

# In place of the name of a model.
ANY_MODEL = "*"
_Model = Annotated[
    str,
    matching(
        "^([*]|[a-z0-9][a-z0-9._:/-]*)$",
        "must be a served name or that of an adapter in lower case, such as llama-3, or * for all",
    ),
    StringConstraints(max_length=128),
]


class PriceEntry(Wire):
    """Prices of models from a given day on; those of tokens are per million."""

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

    input: Amount
    """A million tokens of prompts."""

    cached_input: Amount | None = None
    """A million tokens of prompts that a prefix cache had; omitted, as `input`."""

    output: Amount
    """A million tokens of answers; `"0"` for models that generate none."""

    reasoning: Amount | None = None
    """A million tokens of answers that are reasoning; omitted, as `output`."""

    per_request: Amount = text_default("0")
    """A request, in addition to its tokens."""

    per_cached_answer: Amount = text_default("0")
    """A request that is answered by an answer that was kept, in place of its tokens."""

    per_batch_row: Amount = text_default("0")
    """A row of a batch, in addition to its tokens."""


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


class PriceList(Wire):
    """What requests through gateways are charged."""

    spec: PriceListSpec
    """Prices of models."""
