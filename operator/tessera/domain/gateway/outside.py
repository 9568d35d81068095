"""What gateways know of outside providers."""

from collections.abc import Mapping
from decimal import Decimal
from operator import attrgetter
from zoneinfo import ZoneInfo

from tessera.api.model_provider import BilledTokens, CostStep, ModelCost
from tessera.api.ref import Ref
from tessera.api.tenant_budget import Limit, TenantBudgetSpec
from tessera.domain.budget.periods import period_at, zone_of
from tessera.domain.budget.raises import AmountRaise
from tessera.domain.charge.price_book import content_digest
from tessera.domain.charge.prices import OutsidePrice
from tessera.domain.charge.scopes import ChargeLimit
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
            cost = outside_cost(provider.name, spec.currency, model.cost)
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


def outside_cost(provider: str, currency: str, cost: ModelCost) -> OutsidePrice:
    """Return what calls of a model cost by the bill of its provider."""
    unset = {name for name in _LATER_PRICES if not getattr(cost, name)}
    content = cost.model_dump_json(by_alias=True, exclude=unset | {"observed_at"})
    version = f"{provider}@{content_digest(f'{currency}{content}')}"
    steps = sorted(cost.steps, key=attrgetter("above_input_tokens"))
    prices = (_outside_price(version, currency, cost, step) for step in steps)
    return _outside_price(version, currency, cost, cost, tuple(prices))


def _outside_price(
    version: str,
    currency: str,
    cost: ModelCost,
    tokens: BilledTokens,
    steps: tuple[OutsidePrice, ...] = (),
) -> OutsidePrice:
    return OutsidePrice(
        price_list=version,
        currency=currency,
        input=to_nanos(tokens.input),
        cached_input=_first_nanos(tokens.cached_input, tokens.input),
        cache_write=_first_nanos(tokens.cache_write, tokens.input),
        long_cache_write=_first_nanos(tokens.long_cache_write, tokens.cache_write, tokens.input),
        output=to_nanos(tokens.output),
        reasoning=_first_nanos(tokens.reasoning, tokens.output),
        per_request=to_nanos(cost.per_request),
        search=_first_nanos(cost.search, Decimal()),
        max_searches=cost.max_searches or 0,
        above_input_tokens=tokens.above_input_tokens if isinstance(tokens, CostStep) else 0,
        steps=steps,
    )


def _first_nanos(*prices: Decimal | None) -> int:
    """Return the first price that is set."""
    return next(to_nanos(price) for price in prices if price is not None)


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
