"""Tenants of tokens."""

from typing import Any

import pytest
from pydantic import ValidationError

from tessera.domain.gateway.directory import Directory, Identity, TenantLimits
from tessera.domain.gateway.oidc import OidcIssuer, claims_identity, service_account_identity
from tessera.domain.gateway.reasons import RequestReason

DIRECTORY = Directory(
    tenants={
        "team-a": TenantLimits(name="team-a", namespaces=("a-dev", "a-prod")),
        "team-b": TenantLimits(name="team-b", namespaces=("team-b",)),
    }
)


def an_issuer(**fields: Any) -> OidcIssuer:
    issuer = {"issuer": "https://id.example.org", "audience": "tessera", **fields}
    return OidcIssuer.model_validate(issuer)


@pytest.mark.parametrize(
    ("user", "tenant"),
    [
        ("system:serviceaccount:a-prod:ci", "team-a"),
        ("system:serviceaccount:team-b:default", "team-b"),
        ("system:serviceaccount:team-c:default", None),
        ("system:serviceaccount:team-b", None),
        ("system:admin", None),
        ("", None),
    ],
)
def test_a_service_account_belongs_to_the_tenant_of_its_namespace(
    user: str, tenant: str | None
) -> None:
    identity = service_account_identity(user, DIRECTORY)
    expected = Identity(tenant=tenant, user=user) if tenant else RequestReason.UNKNOWN_TENANT
    assert identity == expected


def test_claims_name_tenant_team_and_user() -> None:
    issuer = an_issuer(tenantClaim="groups", tenants={"g-1": "team-a"}, teamClaim="team")
    claims = {"groups": ["g-0", "g-1"], "team": "search", "sub": "u-1"}
    assert claims_identity(issuer, claims, DIRECTORY) == Identity(
        tenant="team-a", team="search", user="u-1"
    )


@pytest.mark.parametrize(
    "tenant", [None, "team-z", ["team-a", "team-b"], [], 7, {"team-a": 1}, "a" * 10**6]
)
def test_claims_without_exactly_one_tenant_identify_nobody(tenant: object) -> None:
    identity = claims_identity(an_issuer(), {"tenant": tenant}, DIRECTORY)
    assert identity is RequestReason.UNKNOWN_TENANT


def test_claims_that_are_no_single_text_are_left_out() -> None:
    issuer = an_issuer(teamClaim="team")
    claims = {"tenant": "team-a", "team": ["x", "y"], "sub": {"a": 1}}
    assert claims_identity(issuer, claims, DIRECTORY) == Identity(tenant="team-a")


@pytest.mark.parametrize(
    "fields",
    [
        {"issuer": "http://id.example.org"},
        {"jwksUrl": "http://id.example.org/keys"},
        {"algorithms": ["none"]},
        {"algorithms": ["HS256"]},
        {"algorithms": []},
        {"audience": ""},
    ],
)
def test_an_issuer_has_to_be_safe(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        an_issuer(**fields)
