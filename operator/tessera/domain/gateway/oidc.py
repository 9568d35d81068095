"""Tenants of tokens: by the namespace of a ServiceAccount, or by the claims of an OIDC token."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator

from tessera.api.meta import Wire
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.reasons import RequestReason

SignatureAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
_ClaimName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_SERVICE_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):[^:]+")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAX_VALUES = 1000
_MAX_LENGTH = 253


class OidcIssuer(Wire):
    """An issuer of tokens, and what its claims mean."""

    issuer: str
    """Its URL, as the claim `iss` has it."""

    audience: Annotated[str, StringConstraints(min_length=1)]
    """Value that the claim `aud` must have."""

    jwks_url: str | None = None
    """Where its keys are; omitted, it is read from `/.well-known/openid-configuration`."""

    algorithms: Annotated[tuple[SignatureAlgorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    """Algorithms of signatures that are accepted."""

    tenant_claim: _ClaimName = "tenant"
    """Claim with the tenant, or with a list of groups."""

    tenants: Mapping[str, str] = Field(default_factory=dict)
    """Tenants by the values of that claim; empty, the value is the tenant itself."""

    team_claim: _ClaimName | None = None
    """Claim with the team, if there is one."""

    user_claim: _ClaimName = "sub"
    """Claim with the user, for usage records."""

    @field_validator("issuer", "jwks_url")
    @classmethod
    def _is_protected(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://-")
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"{url} is not an https:// URL")
        return url


def service_account_identity(user: str, directory: Directory) -> Identity | RequestReason:
    """Return the identity of a ServiceAccount: that of the tenant who has its namespace."""
    account = _SERVICE_ACCOUNT.fullmatch(user)
    for tenant in directory.tenants.values():
        if account is not None and account[1] in tenant.namespaces:
            return Identity(tenant=tenant.name, user=user)
    return RequestReason.UNKNOWN_TENANT


def claims_identity(
    issuer: OidcIssuer, claims: Mapping[str, Any], directory: Directory
) -> Identity | RequestReason:
    """Return the identity that verified claims describe; they must name exactly one tenant."""
    values = _texts(claims.get(issuer.tenant_claim))
    named = {issuer.tenants.get(value, "") if issuer.tenants else value for value in values}
    tenants = named & directory.tenants.keys()
    if len(tenants) != 1:
        return RequestReason.UNKNOWN_TENANT
    teams = _texts(claims.get(issuer.team_claim)) if issuer.team_claim else ()
    users = _texts(claims.get(issuer.user_claim))
    return Identity(
        tenant=tenants.pop(),
        team=teams[0] if len(teams) == 1 else None,
        user=users[0] if len(users) == 1 else None,
    )


def _texts(claim: object) -> tuple[str, ...]:
    values = claim if isinstance(claim, list) else [claim]
    return tuple(
        value
        for value in values[:_MAX_VALUES]
        if isinstance(value, str) and 0 < len(value) <= _MAX_LENGTH
    )
