"""Who may use which model, and by which name."""

import hashlib
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter

from tessera.api.ref import Ref
from tessera.domain.budget.name_grants import EVERY_TENANT
from tessera.domain.gateway.directory import ApiKey, Directory, Identity, OfferedModel
from tessera.domain.gateway.name_rights import NameRights
from tessera.domain.gateway.reasons import RequestReason

# Models of one tenant, by every name that a request may give.
ModelsByName = Mapping[str, OfferedModel]

_MAX_NEAREST = 3
# Longer names are no misspelling. All names together take some 50 us to compare, since no limit
# counts requests for an unknown model.
_MAX_COMPARED_LENGTH = 64
_MAX_COMPARED_NAMES = 20
# vLLM takes 128 characters at most.
_SALT_LENGTH = 32
# Of the pairs of letters of the shorter name.
_LEAST_SIMILARITY = 0.5
# By what a gate asks for a version of a service of its namespace.
_VERSIONS = {"Baseline": "@stable", "Candidate": "@candidate"}


def key_identity(key: ApiKey | None, now: datetime) -> Identity | RequestReason:
    """Return whose key it is, or why it is refused."""
    if key is None:
        return RequestReason.INVALID_KEY
    if key.expires is not None and key.expires <= now:
        return RequestReason.EXPIRED_KEY
    return Identity(
        tenant=key.tenant,
        team=key.team,
        key=key.line,
        models=key.models,
        services=key.services,
        limits=key.limits,
        budget=key.budget,
        sheddable=key.sheddable,
        allow_downgrade=key.allow_downgrade,
        is_lasting=key.expires is None,
    )


def may_use(tenant: str, model: OfferedModel) -> bool:
    """Return whether a model is the tenant's own, shared with it, or public."""
    return model.tenant == tenant or model.public or tenant in model.tenants


def tenant_models(directory: Directory, tenant: str) -> ModelsByName:
    """Return what a tenant may use, by name: its own, those shared with it, and public ones.

    Models of other tenants have the names alone that grants give to these, and such a name stands
    for no model of anyone else, also while no model of these has it. Of two models with one name
    the tenant's own comes first, then the older one.
    """
    rights = directory.name_rights
    shared = [model for model in directory.models if may_use(tenant, model)]
    by_name: dict[str, OfferedModel] = {}
    for model in sorted(shared, key=lambda model: model.tenant != tenant):
        for name in model.all_names:
            if name not in by_name and may_offer(rights, model, name, tenant):
                by_name[name] = model
    return dict(sorted(by_name.items(), key=itemgetter(0)))


def changed_models(
    models: ModelsByName,
    listers: Mapping[str, Sequence[OfferedModel]],
    rights: NameRights,
    tenant: str,
) -> ModelsByName:
    """Return the models of a tenant after an edit; the same mapping where it changes nothing.

    `listers` are those that list a name now, the oldest first, for each name that the edit means.
    """
    receivers = {
        name: next(
            (
                model
                for model in sorted(of_name, key=lambda model: model.tenant != tenant)
                if may_use(tenant, model) and may_offer(rights, model, name, tenant)
            ),
            None,
        )
        for name, of_name in listers.items()
    }
    changed = {name: model for name, model in receivers.items() if models.get(name) is not model}
    if not changed:
        return models
    by_name = dict(models)
    for name, model in changed.items():
        if model is None:
            del by_name[name]
        else:
            by_name[name] = model
    if by_name.keys() <= models.keys():
        return by_name
    names = sorted(by_name)
    return dict(zip(names, map(by_name.__getitem__, names), strict=True))


def models_by_user(
    models: Iterable[OfferedModel],
) -> Callable[[str], Sequence[OfferedModel]]:
    """Return what finds the models that a tenant may have, without a look at all of them."""
    own = defaultdict[str | None, list[OfferedModel]](list)
    shared = []
    for model in models:
        own[model.tenant].append(model)
        if model.is_shared:
            shared.append(model)
    return lambda tenant: (
        *own.get(tenant, ()),
        *(each for each in shared if each.tenant != tenant),
    )


def may_offer(rights: NameRights, model: OfferedModel, name: str, consumer: str) -> bool:
    """Return whether a tenant may get a model by one of its names, if its owner wants that."""
    holder = rights.holder(name, consumer)
    namespace = model.service.namespace
    if model.tenant == consumer:
        # What others have for this tenant binds no service of its own.
        return holder is None or holder.tenant != consumer or namespace in holder.namespaces
    if not rights.accepts(consumer, model.tenant):
        return False
    return holder is not None and namespace in holder.namespaces


def offered_to(
    rights: NameRights, model: OfferedModel, name: str, consumers: frozenset[str]
) -> frozenset[str]:
    """Return those of other tenants that may get a model by a name, of tenants that accept it.

    It is `may_offer` for many at once.
    """
    by_consumer = rights.holders.get(name.lower(), {})
    granted = {
        consumer
        for consumer, holder in by_consumer.items()
        if model.service.namespace in holder.namespaces
    }
    if EVERY_TENANT in granted:
        return consumers.difference(by_consumer.keys() - granted)
    return consumers.intersection(granted)


def visible_models(models: ModelsByName, identity: Identity) -> ModelsByName:
    """Return the models of the tenant that this sender may use, in the order of names."""
    if not identity.models and not identity.services:
        return models
    return {name: model for name, model in models.items() if _in_scope(models, name, identity)}


def resolve_model(models: ModelsByName, identity: Identity, name: str) -> OfferedModel | None:
    """Return the model of a name that the sender may use; None for an unknown name."""
    model = models.get(name)
    return model if model is not None and _in_scope(models, name, identity) else None


def scoped_names(models: ModelsByName, identity: Identity) -> Sequence[str]:
    """Return the names in the scope of a key that stand for a model, in order, without aliases."""
    return sorted(
        name
        for name in identity.models
        if (model := models.get(name)) is not None and _is_allowed(model, identity)
    )


def cache_salt(model: OfferedModel, tenant: str) -> str | None:
    """Return what parts the prompts of a tenant from those of others in the cache of an engine.

    None where nothing has to. It is no secret: the gateway puts it in place of what a client
    sends, and who else reaches an engine is of the tenant that runs it and reads all its prompts.
    So all gateways make the same of what they know, also after a restart.
    """
    if model.shared_prefix_cache or not model.is_shared:
        return None
    return hashlib.sha256(f"{model.uid}/{tenant}".encode()).hexdigest()[:_SALT_LENGTH]


def version_name(service: str, role: str) -> str:
    """Return by which name gates of its namespace ask for a version of a service."""
    return f"{service}{_VERSIONS[role]}"


def version_of(namespace: str, name: str) -> Ref | None:
    """Return what such a name means in a namespace; None for any other name."""
    for role, suffix in _VERSIONS.items():
        if name.endswith(suffix):
            service = Ref(namespace, name.removesuffix(suffix))
            return service if role == "Baseline" else service.candidate
    return None


def similar_names(name: str, names: Sequence[str]) -> Sequence[str]:
    """Return the names that have most pairs of letters of this one, of those beside it in order."""
    if len(name) > _MAX_COMPARED_LENGTH:
        return ()
    first = max(bisect(names, name) - _MAX_COMPARED_NAMES // 2, 0)
    letters = name.lower()
    # Not all of a long name.
    step = 1 + len(letters) // 32
    pairs = {letters[place : place + 2] for place in range(0, len(letters) - 1, step)}
    similar = []
    for each in names[first : first + _MAX_COMPARED_NAMES]:
        common = sum(map(each.lower().__contains__, pairs))
        if common and common >= _LEAST_SIMILARITY * min(len(pairs), len(each) - 1):
            similar.append((-common, each))
    return [each for _, each in sorted(similar)[:_MAX_NEAREST]]


def _is_allowed(model: OfferedModel, identity: Identity) -> bool:
    if not identity.services:
        return True
    if model.route is None:
        return model.service in identity.services
    own = model.service.namespace
    return any(each.service_ref(own) in identity.services for each in model.route.targets)


def _in_scope(models: ModelsByName, name: str, identity: Identity) -> bool:
    """Return whether the key is for the model of a name, by any of its names, or for an adapter.

    What a name of the key's scope means is decided for the tenant: another model that lists that
    name as well is not meant.
    """
    model = models[name]
    if not _is_allowed(model, identity):
        return False
    if not identity.models or name in identity.models:
        return True
    return name in model.names and any(
        alias in identity.models and models.get(alias) is model for alias in model.names
    )
