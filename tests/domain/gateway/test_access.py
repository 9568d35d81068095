"""Who may use which model, and by which name."""

import time
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.access import (
    key_identity,
    resolve_model,
    tenant_models,
    visible_models,
)
from tessera.domain.gateway.directory import ApiKey, Directory, Identity, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tests.builders import NOW


def a_model(name: str = "chat", namespace: str = "team-a", **fields: Any) -> OfferedModel:
    defaults = {
        "service": Ref(namespace, name),
        "uid": f"uid-{namespace}-{name}",
        "names": (name,),
        "tenant": namespace,
    }
    return OfferedModel(**(defaults | fields))


def names_for(identity: Identity, *models: OfferedModel) -> list[str]:
    return list(visible_models(tenant_models(Directory(models=models), identity.tenant), identity))


def resolve(identity: Identity, name: str, *models: OfferedModel) -> OfferedModel | tuple[str, ...]:
    return resolve_model(tenant_models(Directory(models=models), identity.tenant), identity, name)


A = Identity(tenant="team-a")
B = Identity(tenant="team-b")


@pytest.mark.parametrize(
    ("fields", "visible"),
    [
        ({}, {"team-a"}),
        ({"tenants": frozenset({"team-b"})}, {"team-a", "team-b"}),
        ({"public": True}, {"team-a", "team-b", "team-c"}),
        ({"tenant": None}, set()),
        ({"tenant": None, "tenants": frozenset({"team-b"})}, {"team-b"}),
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
    older, newer = a_model(namespace="team-c", public=True), a_model(public=True)
    own = a_model(namespace="team-b")
    assert resolve(B, "chat", older, newer, own) is own
    assert resolve(B, "chat", older, newer) is older
    assert resolve(A, "chat", older, newer) is newer


def test_a_key_sees_the_models_of_its_scope_only() -> None:
    model = a_model(names=("llama", "default"), adapters=("legal",))
    scoped = Identity(tenant="team-a", models=("default",))
    assert names_for(scoped, model, a_model("other")) == ["default", "llama"]
    assert names_for(Identity(tenant="team-a", models=("legal",)), model) == ["legal"]


def test_an_unknown_name_is_answered_with_similar_names_that_the_key_may_see() -> None:
    models = (a_model("llama-3-8b"), a_model("llama-3-70b"), a_model("qwen"))
    assert resolve(A, "llama-3-8B", *models) == ("llama-3-8b", "llama-3-70b")
    assert resolve(B, "llama-3-8b", *models) == ()
    scoped = Identity(tenant="team-a", models=("qwen",))
    assert resolve(scoped, "llama-3-8b", *models) == ()
    assert resolve(A, "l" * 10**6, *models) == ()
    assert resolve(A, "my-llama-3-70b", *models) == ("llama-3-70b", "llama-3-8b")


def test_an_unknown_name_costs_little_however_many_and_long_the_names_are() -> None:
    names = [f"model-{number:03}-{'llama-instruct-' * 3}" for number in range(300)]
    models = tenant_models(Directory(models=tuple(map(a_model, names))), "team-a")
    began = time.process_time()
    for number in range(100):
        unknown = f"model-{number:03}-{'tune-instruct-l' * 3}"
        assert isinstance(resolve_model(models, A, unknown), tuple)
    # It takes 5 ms in all; comparing letter by letter took 1 s.
    assert time.process_time() - began < 0.3


def test_a_key_is_valid_until_it_expires() -> None:
    key = ApiKey(name="ci", digest="", tenant="team-a", team="search", expires=NOW)
    before = key_identity(key, NOW - timedelta(seconds=1))
    assert before == Identity(tenant="team-a", team="search", key="ci")
    assert key_identity(key, NOW) is RequestReason.EXPIRED_KEY
    assert key_identity(None, NOW) is RequestReason.INVALID_KEY
