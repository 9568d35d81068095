"""The last targets of routes, beside which it is seen what routes save."""

from dataclasses import replace
from typing import Any

from tessera.api.model_route import ModelRouteSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, OfferedModel
from tessera.gateway.usage.route_metrics import LastTargets
from tests.builders import NOW
from tests.gateway.charging import INPUT, paying
from tests.gateway.harness import TENANT, a_model

ROUTE, AT = "team-a/assistant", NOW.timestamp()


def a_route(*targets: dict[str, Any]) -> OfferedModel:
    spec = ModelRouteSpec.model_validate({"targets": targets})
    return replace(a_model(), service=Ref("team-a", "assistant"), uid="route", route=spec)


def test_the_last_target_has_the_price_of_its_service_or_of_a_providers_model() -> None:
    outside = replace(a_model(), names=("openai/gpt-6",), service=Ref("", "openai/gpt-6"))
    provider: dict[str, Any] = {
        "name": "frontier",
        "provider": {"name": "openai", "model": "GPT-6"},
    }
    current: Directory | None = None
    last = LastTargets()
    last.directory = lambda: current
    assert (last.names(), last.price(TENANT, ROUTE, AT)) == ({}, None)
    for target, name in (({"service": "chat"}, "chat"), (provider, "frontier")):
        models = (a_model(), a_route({"service": "small"}, target))
        known: dict[str, Any] = {"outside": {("openai", "GPT-6"): outside}, **paying()}
        current = Directory(models=models, **known)
        price = last.price(TENANT, ROUTE, AT)
        assert last.names() == {ROUTE: name}
        assert price is not None
        assert price.input == INPUT * 10**6
        assert last.price("team-b", ROUTE, AT) is None
        # Its service or provider is gone.
        current = Directory(models=models[1:], **paying())
        assert last.price(TENANT, ROUTE, AT) is None
        assert last.names() == {ROUTE: name}
