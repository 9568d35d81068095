"""Who may use a model of an outside provider as the target of a route."""

from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Identity
from tests.gateway.charging import an_outside_model
from tests.gateway.harness import TENANT, a_directory, a_model
from tests.gateway.test_gateway import Surroundings


@pytest.mark.parametrize(
    ("identity", "model", "may_use"),
    [
        ({}, "Big", True),
        ({}, "big", False),
        ({"tenant": "team-z"}, "Big", False),
        ({"services": frozenset({Ref(TENANT, "chat")})}, "Big", False),
        ({"models": ("assistant",)}, "Big", True),
    ],
)
def test_a_tenant_that_the_provider_lists_may_use_it_but_by_a_key_for_some_services(
    identity: dict[str, Any], model: str, may_use: bool
) -> None:
    gateway, outside = Surroundings().gateway(), an_outside_model()
    gateway.publish(a_directory(a_model(), outside={("acme", "Big"): outside}))
    sender = Identity(**{"tenant": TENANT, **identity})
    target = gateway.admission.models.outside_target(sender, "acme", model)
    assert target is (outside if may_use else None)


def test_a_model_of_a_provider_is_no_name_of_a_request() -> None:
    gateway = Surroundings().gateway()
    gateway.publish(a_directory(a_model(), outside={("acme", "Big"): an_outside_model()}))
    assert "acme/big" not in gateway.admission.models.visible(Identity(tenant=TENANT))
