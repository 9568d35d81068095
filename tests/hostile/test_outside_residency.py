"""Attacks on where prompts may go: edits in between, and every path that could lead outside."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.gateway.directory import Directory, Identity
from tests.builders import a_budget, a_provider
from tests.domain.gateway.test_outside import directory
from tests.gateway.charging import an_outside_model
from tests.gateway.harness import TENANT, EngineCall, a_directory, a_model, an_api_key
from tests.gateway.outside.routing import OUTSIDE, OWN, ROUTE, a_body, routed
from tests.gateway.test_gateway import Surroundings
from world.provider import ProviderCall, answer, refuse

pytestmark = pytest.mark.anyio
EU = {"residency": frozenset({"eu"})}


def a_tenant(known: Directory, **fields: Any) -> Directory:
    tenant = replace(known.tenants[TENANT], **fields)
    return replace(known, tenants={**known.tenants, TENANT: tenant})


def edited_provider(known: Directory, region: str = "eu", **fields: Any) -> Directory:
    """Return the directory with a provider that is edited in place, as gateways build it."""
    [(key, model)] = known.outside.items()
    assert model.outside is not None
    provider = model.outside.provider
    spec = provider.spec.model_copy(update={"region": region})
    provider = replace(provider, spec=spec, **fields)
    outside = replace(model.outside, provider=provider)
    uid = model.uid if region == "eu" else f"{model.uid} moved"
    return replace(known, outside={key: replace(model, outside=outside, uid=uid)})


EDITS: dict[str, Callable[[Directory], Directory]] = {
    "its tenant allows other regions": lambda known: a_tenant(known, residency=frozenset({"us"})),
    "its tenant lets nothing leave": lambda known: a_tenant(
        known, residency=frozenset({"InCluster"})
    ),
    "its tenant is deleted": lambda known: replace(
        edited_provider(known, weights={}), tenants={}, keys={}
    ),
    "its provider moved": lambda known: edited_provider(known, region="us"),
    "its provider lists others": lambda known: edited_provider(known, weights={"team-b": 1.0}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
async def test_no_prompt_is_sent_again_after_an_edit_in_between(
    tmp_path: Path, edit: Callable[[Directory], Directory]
) -> None:
    """The call is repeated after the answer 429, up to 2 seconds later."""
    async with routed(tmp_path, region="eu", tenant=EU) as world:
        admission = world.gateway.admission

        async def edits(call: ProviderCall) -> None:
            admission.update(edit(admission.senders.directory))
            world.provider.script = answer()
            await refuse(429)(call)

        world.provider.script = edits
        got = await world.gateway.post(a_body())
        assert len(world.provider.calls) == 1
    assert got.headers.get("x-tessera-target") != "outside"


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/tokenize"])
async def test_no_prompt_is_counted_outside(tmp_path: Path, path: str) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        got = await world.gateway.post(a_body(prompt="secret"), path=path)
        assert not world.provider.calls
    assert got.status == 404


async def fails(call: EngineCall) -> None:
    await call.whole({"error": {"message": "out of memory"}}, status=500)


async def test_no_prompt_that_must_stay_leaves_as_a_fallback(tmp_path: Path) -> None:
    tenant = {"residency": frozenset({"InCluster"})}
    async with routed(tmp_path, OWN, OUTSIDE, own=fails, region="eu", tenant=tenant) as world:
        got = await world.gateway.post(a_body())
        assert not world.provider.calls
    assert got.status >= 400


async def test_no_gate_asks_a_provider() -> None:
    """A gate names versions of services, and no route and no model of a provider."""
    gateway = Surroundings().gateway()
    gateway.publish(a_directory(a_model(), outside={("acme", "Big"): an_outside_model()}))
    gate = Identity(tenant=TENANT, evaluates=TENANT)
    for name in ("acme/big", "acme/Big", ROUTE):
        with pytest.raises(Exception, match=name):
            gateway.admission.models.find(gate, name)


@pytest.mark.parametrize("name", ["acme/big", "acme/Big", "ModelProvider/acme", "big-1"])
async def test_no_sender_names_a_provider_without_a_route(tmp_path: Path, name: str) -> None:
    async with routed(tmp_path, keys=(an_api_key(),)) as world:
        got = await world.gateway.post(a_body() | {"model": name})
        assert not world.provider.calls
    assert (got.status, b"sk-world" in got.body) == (404, False)


def test_a_budget_without_a_rule_of_its_own_gets_none_of_another() -> None:
    budgets = (a_budget(dataResidency=["InCluster"]), a_budget("team-b"))
    known = directory(a_provider(tenants=["team-a", "team-b"]), budgets=budgets).tenants
    assert (known["team-a"].residency, known["team-b"].residency) == (
        frozenset({"InCluster"}),
        None,
    )
