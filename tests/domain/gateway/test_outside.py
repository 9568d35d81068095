"""The models of outside providers that a gateway knows."""

from dataclasses import replace
from typing import Any

from tessera.api.rate_limits import RateLimitsSpec
from tessera.domain.charge.prices import charge_of
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.limits.scopes import applicable_limits
from tessera.domain.money import NANO
from tests.builders import A_MODEL_OUTSIDE, a_budget, a_provider


def directory(*providers: Any, **fields: Any) -> Directory:
    observed = {"providers": providers, "budgets": (a_budget(weight="2"),), **fields}
    return build_directory(GatewayObservations(**observed), RateLimitsSpec())


def test_a_model_is_known_by_its_provider_and_named_by_both_in_lower_case() -> None:
    known = directory(a_provider(tenants=["team-a", "team-z"]))
    model = known.outside["acme", "Big"]
    assert model.names == ("acme/big",)
    assert known.models == (), "no name of a request resolves to it"
    assert model.outside is not None
    assert model.outside.provider.weights == {"team-a": 2.0}, "team-z has no budget"
    assert model.paths == ("/v1/chat/completions",)
    assert (model.max_model_len, model.replicas) == (4096, ())


def test_a_provider_with_an_invalid_spec_offers_nothing() -> None:
    assert not directory(replace(a_provider(), spec=None)).outside


def test_the_cost_of_a_call_is_what_the_bill_of_the_provider_says() -> None:
    costs = {"input": "2", "cachedInput": "0.5", "output": "20", "perRequest": "0.01"}
    outside = directory(a_provider(models=[{**A_MODEL_OUTSIDE, "cost": costs}])).outside
    model = outside["acme", "Big"].outside
    assert model is not None
    nanos = charge_of(model.cost, input_tokens=10**6, cached=10**5, output=10**5, reasoning=10**4)
    assert nanos == (1.8 + 0.05 + 2 + 0.01) * NANO
    assert (model.cost.currency, model.cost.price_list.partition("@")[0]) == ("USD", "acme")


def test_another_cost_or_currency_is_another_version_of_the_price() -> None:
    dearer = {**A_MODEL_OUTSIDE, "cost": {"input": "3", "output": "20"}}
    edits: list[dict[str, Any]] = [{}, {"currency": "EUR"}, {"models": [dearer]}]
    versions = set()
    for fields in edits:
        model = directory(a_provider(**fields)).outside["acme", "Big"].outside
        assert model is not None
        versions.add(model.cost.price_list)
    assert len(versions) == 3


def test_a_later_day_of_observation_and_prices_that_are_not_set_keep_the_version() -> None:
    cost = A_MODEL_OUTSIDE["cost"] | {"observedAt": "2026-11-30"}
    model = directory(a_provider(models=[A_MODEL_OUTSIDE | {"cost": cost}])).outside["acme", "Big"]
    assert model.outside is not None
    assert model.outside.cost.price_list == "acme@88ab60d88d61"


def test_all_models_of_a_provider_share_its_limits() -> None:
    models = [A_MODEL_OUTSIDE, {**A_MODEL_OUTSIDE, "name": "Small"}]
    known = directory(a_provider(models=models, rateLimits={"requests": {"perMinute": 60}}))
    keys = {
        limit.key
        for model in known.outside.values()
        for limit in applicable_limits(known, Identity(tenant="team-a"), model).limits
    }
    assert keys == {"Service/ModelProvider/acme/Requests/60"}


def test_tenants_share_the_limits_of_a_provider_by_their_weights_and_those_of_no_service() -> None:
    budgets = (a_budget(weight=3), a_budget("team-b"))
    listed = a_provider(tenants=["team-a", "team-b"], rateLimits={"requests": {"perMinute": 60}})
    known = directory(listed, budgets=budgets)
    sender = Identity(tenant="team-b")
    limits = applicable_limits(known, sender, known.outside["acme", "Big"])
    assert (limits.tenant, limits.weights) == ("team-b", {"team-a": 3, "team-b": 1})
    assert applicable_limits(known, sender, None).weights == {}


def test_a_tenant_says_where_its_requests_may_go() -> None:
    tenants = directory(budgets=(a_budget(dataResidency=["eu"]), a_budget("team-b"))).tenants
    assert tenants["team-a"].residency == frozenset({"eu"})
    assert tenants["team-b"].residency is None
