"""What gateways know of outside providers."""

import hashlib
from collections.abc import Iterator, Mapping
from operator import attrgetter

from tessera.api.model_provider import ModelCost
from tessera.api.ref import Ref
from tessera.domain.charges.prices import RequestPrice
from tessera.domain.gateway.directory import (
    OfferedModel,
    OfferedProvider,
    OutsideModel,
    TenantLimits,
)
from tessera.domain.incremental import reused
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.money import to_nanos
from tessera.domain.observed.providers import ObservedProvider


@reused
def outside_models(
    providers: tuple[ObservedProvider, ...], tenants: Mapping[str, TenantLimits]
) -> Mapping[tuple[str, str], OfferedModel]:
    """Return the models of all providers by the names of provider and model."""
    return {
        (model.outside.provider.name, model.outside.model.name): model
        for provider in sorted(providers, key=attrgetter("name"))
        for model in _models_of(provider, tenants)
        if model.outside is not None
    }


def _models_of(
    provider: ObservedProvider, tenants: Mapping[str, TenantLimits]
) -> Iterator[OfferedModel]:
    """Yield the models of a provider; none while its spec is invalid."""
    spec = provider.spec
    if spec is None:
        return
    offered = OfferedProvider(
        name=provider.name,
        uid=provider.uid,
        base_url=spec.base_url,
        protocols=frozenset(spec.protocols),
        key_header=spec.key_header,
        secret=spec.secret,
        proxy_url=spec.proxy_url,
        region=spec.region,
        max_concurrent_requests=spec.max_concurrent_requests,
        timeouts=spec.timeouts,
        weights={name: tenants[name].weight for name in sorted(spec.tenants) if name in tenants},
    )
    for model in spec.models:
        yield OfferedModel(
            # All models of the provider share its limits.
            service=Ref("ModelProvider", provider.name),
            uid=f"{provider.uid}/{model.name}",
            created=int(provider.created.timestamp()),
            names=(f"{provider.name}/{model.name}".lower(),),
            tenant=None,
            tenants=frozenset(offered.weights),
            max_model_len=model.max_context_tokens,
            paths=tuple(path for path, each in PROTOCOLS.items() if each in offered.protocols),
            limits=spec.rate_limits,
            outside=OutsideModel(
                provider=offered,
                model=model,
                cost=_outside_cost(provider.name, spec.currency, model.cost),
            ),
        )


def _outside_cost(provider: str, currency: str, cost: ModelCost) -> RequestPrice:
    digest = hashlib.sha256(f"{currency}{cost.model_dump_json(by_alias=True)}".encode()).hexdigest()
    cached, reasoning = cost.cached_input, cost.reasoning
    return RequestPrice(
        price_list=f"{provider}@{digest[:12]}",
        currency=currency,
        input=to_nanos(cost.input),
        cached_input=to_nanos(cost.input if cached is None else cached),
        output=to_nanos(cost.output),
        reasoning=to_nanos(cost.output if reasoning is None else reasoning),
        per_request=to_nanos(cost.per_request),
    )
