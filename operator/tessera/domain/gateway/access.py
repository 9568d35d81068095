"""Who may use which model, and by which name."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tessera.domain.gateway.directory import ApiKey, Directory, Identity, OfferedModel

# Models of one tenant, by every name that a request may give.
ModelsByName = Mapping[str, OfferedModel]

_MAX_NEAREST = 3
# Longer names are no misspelling, and comparing them costs time.
_MAX_COMPARED_LENGTH = 200
_MAX_COMPARED_NAMES = 300


class AccessReason(StrEnum):
    """Why a request is not identified."""

    MISSING_KEY = "MissingKey"
    """It has no `Authorization: Bearer`, nor `x-api-key`."""
    INVALID_KEY = "InvalidKey"
    """Its key is unknown or revoked."""
    EXPIRED_KEY = "ExpiredKey"
    INVALID_TOKEN = "InvalidToken"  # noqa: S105 - no password
    """Its token has a wrong signature, issuer or audience, or is expired."""
    UNKNOWN_TENANT = "UnknownTenant"
    """Its token belongs to no tenant: no TenantBudget has the namespace or name."""
    TOKENS_NOT_VERIFIED = "TokensNotVerified"
    """Tokens cannot be verified now, since the API server or the issuer does not answer."""


@dataclass(frozen=True, slots=True)
class UnknownModel:
    """A name that stands for no model that the sender may use."""

    nearest: tuple[str, ...]
    """Similar names that the sender may use, the most similar first."""


def key_identity(key: ApiKey | None, now: datetime) -> Identity | AccessReason:
    """Return whose key it is, or why it is refused."""
    if key is None:
        return AccessReason.INVALID_KEY
    if key.expires is not None and key.expires <= now:
        return AccessReason.EXPIRED_KEY
    return Identity(
        tenant=key.tenant, team=key.team, key=key.name, models=key.models, limits=key.limits
    )


def tenant_models(directory: Directory, tenant: str) -> ModelsByName:
    """Return what a tenant may use: its own, those shared with it, and public ones.

    Of two models with one name its own comes first, then the older one; so no new service takes the
    requests of another.
    """
    shared = [
        model
        for model in directory.models
        if model.tenant == tenant or model.public or tenant in model.tenants
    ]
    by_name: dict[str, OfferedModel] = {}
    for model in sorted(shared, key=lambda model: model.tenant != tenant):
        for name in (*model.names, *model.adapters):
            by_name.setdefault(name, model)
    return by_name


def visible_models(models: ModelsByName, identity: Identity) -> ModelsByName:
    """Return the models of the tenant that this sender may use, in the order of names."""
    return {
        name: models[name] for name in sorted(models) if _in_scope(models[name], name, identity)
    }


def resolve_model(
    models: ModelsByName, identity: Identity, name: str
) -> OfferedModel | UnknownModel:
    """Return the model that a request names, or similar names that its sender may use."""
    model = models.get(name)
    if model is not None and _in_scope(model, name, identity):
        return model
    if len(name) > _MAX_COMPARED_LENGTH:
        return UnknownModel(())
    candidates = list(visible_models(models, identity))[:_MAX_COMPARED_NAMES]
    return UnknownModel(
        tuple(difflib.get_close_matches(name, candidates, n=_MAX_NEAREST, cutoff=0.4))
    )


def _in_scope(model: OfferedModel, name: str, identity: Identity) -> bool:
    """Return whether the key is for this model, under any of its names, or for its adapter."""
    if not identity.models or name in identity.models:
        return True
    return name in model.names and any(alias in identity.models for alias in model.names)
