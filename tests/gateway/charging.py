"""Limits of charges and prices, as directories of tests have them."""

import time
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

from tessera.adapters.kube.object_parsing import parse_own
from tessera.api.model_provider import ModelCost, ProviderModel
from tessera.api.price_list import PriceEntry, PriceListSpec
from tessera.api.ref import Ref
from tessera.api.tenant_budget import WindowName
from tessera.domain.budget.raises import AmountRaise
from tessera.domain.charge.account import window_at
from tessera.domain.charge.price_book import PriceListBook, revised_book
from tessera.domain.charge.scopes import ChargeLimit
from tessera.domain.gateway.directory import (
    OfferedModel,
    OutsideModel,
    TenantLimits,
)
from tessera.domain.gateway.outside import outside_cost
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.domain.observed.batches import Batch
from tessera.domain.observed.charges import OUTSIDE
from tessera.domain.observed.price_lists import ObservedPriceList
from tests.gateway.harness import TENANT
from tests.gateway_builders import an_offered_provider

# Nano-units of a token of a prompt, of one that was cached, and of an answer.
INPUT, CACHED, OUTPUT = 1_000, 100, 10_000


def _amount(nanos_per_token: int) -> str:
    return str(Decimal(nanos_per_token) / 1000)


def prices(**changes: Any) -> PriceListBook:
    """Return a book with one list, which has a price of all models for all tenants."""
    fields = {
        "from_": date(2026, 1, 1),
        "models": ("*",),
        "input": _amount(INPUT),
        "cached_input": _amount(CACHED),
        "output": _amount(OUTPUT),
        **changes,
    }
    spec = PriceListSpec(entries=(PriceEntry(**fields),))
    return revised_book(
        PriceListBook(), [ObservedPriceList(ref=Ref("", "standard"), spec=spec)], 0.0
    )


def a_charge_limit(nanos: int, **changes: Any) -> ChargeLimit:
    fields = {
        "budget": TENANT,
        "generation": 1,
        "name": "charge-month",
        "window": "Month",
        "amount": nanos,
        "currency": "USD",
        "time_zone": "UTC",
        **changes,
    }
    return ChargeLimit(**fields)


def paying(*limits: ChargeLimit | int, name: str = TENANT) -> dict[str, Any]:
    """Return what a directory has of a tenant with these limits, and of prices."""
    charge_limits = tuple(
        a_charge_limit(limit, budget=name) if isinstance(limit, int) else limit for limit in limits
    )
    tenant = TenantLimits(name=name, namespaces=(name,), charge_limits=charge_limits)
    return {"tenants": {name: tenant}, "prices": prices()}


def an_outside_model(currency: str = "USD", **changes: Any) -> OfferedModel:
    """Return a model of a provider that bills twice the prices of the list."""
    provider = an_offered_provider(protocols=("OpenAIChat",), weights={TENANT: 1.0})
    model = ProviderModel(
        name="Big",
        max_context_tokens=4096,
        max_output_tokens=1000,
        cost=ModelCost(input=Decimal(2), cached_input=Decimal("0.2"), output=Decimal(20)),
    )
    cost = outside_cost("acme", currency, model.cost)
    fields = {
        "service": Ref("", "acme"),
        "uid": "uid-acme/Big",
        "names": ("acme/big",),
        "tenant": None,
        "max_model_len": 4096,
        "outside": OutsideModel(provider=provider, model=model, cost=cost),
        **changes,
    }
    return OfferedModel(**fields)


def a_cost_limit(nanos: int, generation: int = 1, window: WindowName = "Month") -> ChargeLimit:
    """Return what the operator lends for calls of providers in the window of now."""
    limit = a_charge_limit(0, name=f"{OUTSIDE}{window}", window=window, generation=generation)
    start, end = window_at(limit, time.time())
    return replace(limit, raises=(AmountRaise(nanos, end), AmountRaise(-nanos, start)))


def a_charged_batch(uid: str = "uid-1", attempt: int = 1, **check: Any) -> Batch:
    """Return team-a/night of the model `tiny`, as the operator wrote it during an attempt."""
    checked = {"rows": 5000, "url": "/v1/chat/completions", "inputTokens": 1, "answers": 5000}
    current = {"number": attempt, "tier": "OnDemand", "pool": "a", "variant": "a", "job": "a"}
    began = "2026-11-01T00:00:00Z"
    named = {"namespace": "team-a", "name": "night", "uid": uid, "creationTimestamp": began}
    spec = {
        "claimName": "files",
        "input": "in.jsonl",
        "output": "out.jsonl",
        "model": {"uri": "hf://tiny/tiny", "servedName": "tiny"},
    }
    status = {"check": checked | check, "attempt": current | {"startedAt": began}}
    return parse_own(BATCH_INFERENCES, {"metadata": named, "spec": spec, "status": status})
