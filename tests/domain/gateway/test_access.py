"""Who may use which model, and by which name."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.access import (
    key_identity,
    resolve_model,
    scoped_names,
    similar_names,
    tenant_models,
    visible_models,
)
from tessera.domain.gateway.directory import ApiKey, Directory, Identity, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tests.builders import NOW
from tests.gateway_builders import grants_for


def a_model(name: str = "chat", namespace: str = "team-a", **fields: Any) -> OfferedModel:
    defaults = {
        "service": Ref(namespace, name),
        "uid": f"uid-{namespace}-{name}",
        "names": (name,),
        "tenant": namespace,
    }
    return OfferedModel(**(defaults | fields))


def a_directory(*models: OfferedModel) -> Directory:
    return Directory(models=models, name_rights=grants_for(*models))


def names_for(identity: Identity, *models: OfferedModel) -> list[str]:
    return list(visible_models(tenant_models(a_directory(*models), identity.tenant), identity))


def resolve(identity: Identity, name: str, *models: OfferedModel) -> OfferedModel | None:
    return resolve_model(tenant_models(a_directory(*models), identity.tenant), identity, name)


A = Identity(tenant="team-a")
B = Identity(tenant="team-b")


@pytest.mark.parametrize(
    ("fields", "visible"),
    [
        ({}, {"team-a"}),
        ({"tenants": frozenset({"team-b"})}, {"team-a", "team-b"}),
        ({"public": True}, {"team-a", "team-b", "team-c"}),
        ({"tenant": None}, set()),
        ({"tenant": None, "tenants": frozenset({"team-b"})}, set()),
    ],
)
def test_a_model_is_visible_to_its_owner_and_to_those_it_is_shared_with(
    fields: dict[str, Any], visible: set[str]
) -> None:
    model = a_model(**fields)
    tenants = ("team-a", "team-b", "team-c")
    assert {tenant for tenant in tenants if names_for(Identity(tenant=tenant), model)} == visible


def test_aliases_and_adapters_are_names_of_models() -> None:
    model = a_model(names=("llama", "default"), adapters=("legal",))
    assert names_for(A, model) == ["default", "legal", "llama"]
    assert resolve(A, "legal", model) is model


def test_of_one_name_the_tenants_own_model_comes_first_then_the_oldest() -> None:
    older, newer = a_model(public=True), a_model(public=True, uid="newer")
    own = a_model(namespace="team-b")
    assert resolve(B, "chat", older, newer, own) is own
    assert resolve(B, "chat", older, newer) is older
    assert resolve(A, "chat", older, newer) is older


def test_a_key_sees_the_models_of_its_scope_only() -> None:
    model = a_model(names=("llama", "default"), adapters=("legal",))
    scoped = Identity(tenant="team-a", models=("default",))
    assert names_for(scoped, model, a_model("other")) == ["default", "llama"]
    assert names_for(Identity(tenant="team-a", models=("legal",)), model) == ["legal"]


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("llama-3-8B", ["llama-3-8b", "llama-3-70b"]),
        ("my-llama-3-70b", ["llama-3-70b", "llama-3-8b"]),
        ("gpt", []),
        ("l" * 10**6, []),
        ("", []),
    ],
)
def test_names_similar_to_an_unknown_one_are_offered(name: str, similar: list[str]) -> None:
    assert list(similar_names(name, ["llama-3-70b", "llama-3-8b", "qwen"])) == similar
    assert not similar_names(name, [])


def test_of_a_key_with_a_scope_only_names_in_it_are_offered() -> None:
    models = tenant_models(Directory(models=(a_model("llama"), a_model("qwen"))), "team-a")
    scoped = Identity(tenant="team-a", models=("qwen", "gone"))
    assert scoped_names(models, scoped) == ["qwen"]
    elsewhere = replace(scoped, services=frozenset({Ref("team-a", "llama")}))
    assert scoped_names(models, elsewhere) == []
    assert resolve_model(models, scoped, "llama") is None


def test_a_key_is_valid_until_it_expires() -> None:
    key = ApiKey(name="ci", digest="", tenant="team-a", team="search", expires=NOW)
    before = key_identity(key, NOW - timedelta(seconds=1))
    assert before == Identity(tenant="team-a", team="search", key="ci")
    assert key_identity(key, NOW) is RequestReason.EXPIRED_KEY
    assert key_identity(None, NOW) is RequestReason.INVALID_KEY
