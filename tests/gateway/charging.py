"""Limits of charges and prices, as directories of tests have them."""

from datetime import date
from decimal import Decimal
from typing import Any

from tessera.api.price_list import PriceEntry, PriceListSpec
from tessera.domain.charges.price_book import PriceListBook, revised_book
from tessera.domain.charges.scopes import ChargeLimit
from tessera.domain.gateway.directory import TenantLimits
from tessera.domain.observed.price_lists import ObservedPriceList
from tests.gateway.harness import TENANT

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
    return revised_book(PriceListBook(), [ObservedPriceList(name="standard", spec=spec)], 0.0)


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
