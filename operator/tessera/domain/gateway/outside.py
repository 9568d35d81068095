"""What gateways know of outside providers."""

from collections.abc import Mapping
from operator import attrgetter
from zoneinfo import ZoneInfo

from tessera.api.model_provider import ModelCost
from tessera.api.ref import Ref
from tessera.api.tenant_budget import Limit, TenantBudgetSpec
from tessera.domain.budget.periods import period_at, zone_of
from tessera.domain.budget.raises import AmountRaise
from tessera.domain.charges.price_book import content_digest, request_price
from tessera.domain.charges.prices import RequestPrice
from tessera.domain.charges.scopes import ChargeLimit
from tessera.domain.gateway.directory import (
    OfferedModel,
    OfferedProvider,
    OutsideModel,
    TenantLimits,
)
from tessera.domain.incremental import reused
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.money import to_nanos
from tessera.domain.observed.charges import OUTSIDE
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.snapshot import Budget

# A cost without these prices has the digest that it had before they were part of the API.
_LATER_PRICES = ("cache_write", "long_cache_write", "search", "max_searches", "steps")


@reused
def outside_models(
    providers: tuple[ObservedProvider, ...], tenants: Mapping[str, TenantLimits]
) -> Mapping[tuple[str, str], OfferedModel]:
    """Return the models of providers with a valid spec, by the names of provider and model."""
    models = {}
    for provider in sorted(providers, key=attrgetter("name")):
        if (spec := provider.spec) is None:
            continue
        weights = {name: tenants[name].weight for name in sorted(spec.tenants) if name in tenants}
        offered = OfferedProvider(name=provider.name, spec=spec, weights=weights)
        for model in spec.models:
            cost = _outside_cost(provider.name, spec.currency, model.cost)
            models[provider.name, model.name] = OfferedModel(
                # All models of the provider share its limits.
                service=Ref("ModelProvider", provider.name),
                uid=f"{provider.uid}/{model.name}",
                created=int(provider.created.timestamp()),
                names=(f"{provider.name}/{model.name}".lower(),),
                tenant=None,
                tenants=frozenset(weights),
                max_model_len=model.max_context_tokens,
                paths=tuple(path for path, each in PROTOCOLS.items() if each in spec.protocols),
                limits=spec.rate_limits,
                outside=OutsideModel(provider=offered, model=model, cost=cost),
            )
    return models


def _outside_cost(provider: str, currency: str, cost: ModelCost) -> RequestPrice:
    unset = {name for name in _LATER_PRICES if not getattr(cost, name)}
    content = cost.model_dump_json(by_alias=True, exclude=unset | {"observed_at"})
    digest = content_digest(f"{currency}{content}")
    return request_price(f"{provider}@{digest}", currency, cost, cost.input, cost.output)


def outside_limits(budget: Budget, spec: TenantBudgetSpec) -> tuple[ChargeLimit, ...]:
    """Return what gateways may spend at providers, by the status of a budget and its spec in force.

    Each limit of basis Cost for all of the tenant has one, of which nothing is lent before the
    status says so, nor out of the window of which it says that.
    """
    return tuple(
        _outside_limit(budget, spec, limit)
        for _, limit in spec.cost_limits
        if limit.tier is None and limit.for_ is None
    )


def _outside_limit(budget: Budget, spec: TenantBudgetSpec, limit: Limit) -> ChargeLimit:
    raises: tuple[AmountRaise, ...] = ()
    generation, is_lowered = 0, False
    zone = zone_of(spec.time_zone) or ZoneInfo("UTC")
    for lent in budget.status.outside:
        period = period_at(limit.window, lent.start, zone)
        if (lent.window, lent.start) == (limit.window, period.start):
            nanos, generation = to_nanos(lent.amount), lent.generation
            is_lowered = lent.previous_amount is not None
            raises = (
                AmountRaise(nanos, period.end.timestamp()),
                AmountRaise(-nanos, period.start.timestamp()),
            )
    return ChargeLimit(
        budget=budget.name,
        generation=generation,
        name=OUTSIDE + limit.window,
        window=limit.window,
        amount=0,
        currency=spec.currency,
        time_zone=spec.time_zone,
        raises=raises,
        is_lowered=is_lowered,
    )
