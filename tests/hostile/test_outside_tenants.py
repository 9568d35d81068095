"""Attacks by tenants on each other through providers: oracles, series, names and cheap targets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from tessera.api.model_provider import ModelProviderSpec
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.usage.route_metrics import MAX_ROUTE_SERIES, MAX_ROUTES, RouteMetrics
from tests.builders import A_MODEL_OUTSIDE, a_budget, a_provider, a_provider_spec
from tests.domain.status.test_routes import (
    a_provider_target,
    a_route,
    a_target,
    accepted,
    statuses,
)
from tests.gateway.charging import a_cost_limit
from tests.gateway.outside.routing import OUTSIDE, OWN, a_body, routed
from tests.gateway.store.builders import a_record
from world.provider import filtered, refuse

pytestmark = pytest.mark.anyio


def seen(providers: Sequence[Any], **budget: Any) -> str:
    """Return all that a tenant reads in the status of its route to a provider."""
    budgets = (a_budget(**budget), a_budget("team-b"), a_budget("secret-customer"))
    route = a_route(targets=[a_provider_target(), {"service": "small"}])
    return statuses(route, budgets=budgets, providers=providers)["assistant"].model_dump_json()


def test_a_tenant_reads_the_same_of_a_provider_of_others_and_of_none() -> None:
    for_others = a_provider(tenants=["team-b", "secret-customer"])
    without_model = a_provider(models=[{**A_MODEL_OUTSIDE, "name": "Other"}])
    known = {seen(each) for each in ([], [for_others], [without_model])}
    assert len(known) == 1
    assert "secret-customer" not in known.pop()


def test_a_rule_on_residency_tells_nothing_of_a_provider_of_others() -> None:
    for_others = a_provider(tenants=["team-b"], region="eu")
    known = {seen(each, dataResidency=["us"]) for each in ([], [for_others])}
    assert len(known) == 1
    assert "DataResidency" in seen([a_provider(region="eu")], dataResidency=["us"])


def test_no_status_of_a_route_says_where_or_by_which_key_a_provider_is_asked() -> None:
    hidden = a_provider(
        baseUrl="https://internal-4711.example.com/v1",
        secret={"name": "acme-4711"},
        proxyUrl="http://proxy-4711.example.com:3128",
        tenants=["team-a", "secret-customer"],
    )
    for providers in ([hidden], None):
        text = seen(providers)  # type: ignore[arg-type]
        assert "4711" not in text
        assert "secret-customer" not in text


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "https://user:password@api.example.com/v1",
        "https://api.example.com/v1?key=1",
        "https://api.example.com/v1#a",
        "https://api.example.com/v1/",
        "https://api.example.com/../v1%2f",
        "https://[::1]/v1",
        "https://api.example.com\\@10.0.0.1/v1",
        "https://api.example.com:443:80/v1",
        "https://api.example.com/v1\n",
        "https://api.example.com/v1\r\nx-admin: 1",
        "https://\u0430pi.example.com/v1",
        "https:///v1",
        "file:///etc/passwd",
        " https://api.example.com/v1",
    ],
)
def test_no_url_leads_elsewhere_than_it_says(url: str) -> None:
    for fields in ({"baseUrl": url}, {"proxyUrl": url}):
        with pytest.raises(ValidationError):
            ModelProviderSpec.model_validate(a_provider_spec(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"tenants": []},
        {"tenants": ["*"]},
        {"region": "InCluster"},
        {"region": "EU"},
        {"maxConcurrentRequests": 0},
        {"secret": {"name": "../tessera-keys/team-a"}},
        {"secret": {"name": "acme", "key": "../token"}},
        {"models": [{**A_MODEL_OUTSIDE, "cost": {"input": "NaN", "output": "20"}}]},
        {"models": [{**A_MODEL_OUTSIDE, "name": "big\nx"}]},
        {"models": [{**A_MODEL_OUTSIDE, "maxContextTokens": 10**12}]},
        {"currency": "usd"},
        {"headers": {"x-admin": "1"}},
    ],
)
def test_no_provider_is_read_that_says_what_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelProviderSpec.model_validate(a_provider_spec(**fields))


def a_routed(route: str, target: str, **fields: Any) -> UsageRecord:
    record = a_record(model_route=route, target=target, target_reason="RuleMatched", **fields)
    return replace(record, provider="acme/big", cost_nanos=1, cost_currency="USD")


def test_a_tenant_that_renames_routes_and_targets_without_end_has_few_series() -> None:
    registry = CollectorRegistry()
    metrics = RouteMetrics(registry)
    for number in range(4 * MAX_ROUTE_SERIES):
        metrics.observe(a_routed("team-a/assistant", f"target-{number}"))
        metrics.observe(a_routed(f"team-a/route-{number}", "target", skipped_targets="a=b,c=d"))
    metrics.observe(a_routed("team-b/assistant", "outside", tenant="team-b"))
    samples = [each for family in registry.collect() for each in family.samples]
    of_others = [each for each in samples if each.labels["tenant"] == "team-b"]
    assert len(samples) < 2 * (MAX_ROUTE_SERIES + 4 * MAX_ROUTES) + 10
    assert of_others, "they keep theirs"


CHEAPER: dict[str, Any] = {"tenant": {"cheaper_targets": True}}


async def test_a_filter_that_a_tenant_provokes_gives_no_dearer_target_near_its_limit(
    tmp_path: Path,
) -> None:
    async with routed(tmp_path, OUTSIDE, OWN, **CHEAPER) as world:
        for script in (filtered, refuse(500), refuse(429, retry_after="30")):
            world.provider.script = script
            got = await world.gateway.post(a_body())
            assert got.status >= 400
        assert not world.engine.calls


async def test_what_only_a_dearer_target_takes_gets_it_near_a_limit(tmp_path: Path) -> None:
    async with routed(tmp_path, OUTSIDE, OWN, model={"max_context_tokens": 16}, **CHEAPER) as world:
        got = await world.gateway.post(a_body("word " * 100))
        assert not world.provider.calls
    assert got.headers["x-tessera-target"] == "own"


async def test_a_provider_first_is_skipped_near_a_limit_of_which_nothing_is_lent(
    tmp_path: Path,
) -> None:
    tenant = {"cheaper_targets": True, "outside": (a_cost_limit(0),)}
    async with routed(tmp_path, OUTSIDE, OWN, tenant=tenant) as world:
        got = await world.gateway.post(a_body())
        (record,) = await world.records(1)
        assert not world.provider.calls
    assert got.headers["x-tessera-target"] == "own"
    assert record.skipped_targets == "outside=BudgetExceeded"


def test_routes_stay_as_they_are_where_providers_are_switched_off() -> None:
    budgets = (a_budget(), a_budget("team-b"))
    route = a_route(targets=[a_provider_target(), {"service": "small"}])
    status = statuses(route, a_target("small"), budgets=budgets, providers=None)["assistant"]
    assert status.summary == "1/2: small"
    assert accepted(status)[1] == "ProvidersDisabled"
    assert [each.name for each in status.targets] == ["outside", "small"]
