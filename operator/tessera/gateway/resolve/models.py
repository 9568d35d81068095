"""The service that a name stands for, by the last directory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from tessera.api.ref import Ref
from tessera.domain.gateway.access import (
    ModelsByName,
    changed_models,
    may_use,
    models_by_user,
    resolve_model,
    scoped_names,
    similar_names,
    tenant_models,
    version_of,
    visible_models,
)
from tessera.domain.gateway.directory import Directory, Identity, ModelChanges, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.limits.charges import EVALUATION_CLASS
from tessera.domain.routes.outside import may_leave
from tessera.gateway.bodies.prompt_size import PromptSize
from tessera.gateway.identify.senders import RecordFields, Senders
from tessera.gateway.receive.receiver import Received
from tessera.gateway.refusals import RequestError, unknown_model

# Lists of the models of one tenant that are kept: one for each scope of its keys, the newest, in so
# many bytes or the last one alone.
MAX_LISTINGS, MAX_LISTING_BYTES = 64, 2**20

# Of a gate, which asks versions and nothing else.
_NO_MODELS = b'{"object":"list","data":[]}'


class _ListedModel(msgspec.Struct, gc=False):
    """A model as OpenAI shows it."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int | msgspec.UnsetType


@dataclass(slots=True)
class _TenantModels:
    """What one tenant may use, as long as none of it changes."""

    by_name: ModelsByName
    names: dict[frozenset[Ref], tuple[str, ...]] = field(default_factory=dict)
    """By the services of a key without names."""
    listings: dict[tuple[tuple[str, ...], frozenset[Ref]], bytes] = field(default_factory=dict)
    """By the names and services of a key, the oldest first."""
    listing_bytes: int = 0

    def add_listing(self, identity: Identity, listing: bytes) -> None:
        """Keep a list; where there are too many, the oldest go."""
        self.listings[identity.models, identity.services] = listing
        self.listing_bytes += len(listing)
        while len(self.listings) > MAX_LISTINGS or (
            len(self.listings) > 1 and self.listing_bytes > MAX_LISTING_BYTES
        ):
            self.listing_bytes -= len(self.listings.pop(next(iter(self.listings))))


@dataclass(slots=True, kw_only=True)
class Resolved:
    """A request whose model is known."""

    received: Received
    model: OfferedModel
    size: PromptSize | None = None
    """Its prompt, of a call of a provider: that is measured before it is known to take it."""

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        return resolved_fields(self.received, self.model)


def resolved_fields(received: Received, model: OfferedModel) -> RecordFields:
    """Return what is recorded of a request whose model is known."""
    fields = received.record_fields()
    if model.outside is not None:
        fields["provider"] = model.outside.name
    else:
        fields["service" if model.route is None else "model_route"] = str(model.service.base)
    if received.identified.identity.evaluates is not None:
        # Also without a price, so that what gates asked stands apart.
        fields["service_class"] = EVALUATION_CLASS
    return fields


class _Listers:
    """The models that list each name, the oldest first."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[OfferedModel]] = {}

    def of(self, names: Iterable[str]) -> Mapping[str, Sequence[OfferedModel]]:
        """Return those of some names; a name that none lists has none."""
        return {name: self._by_name.get(name, ()) for name in names}

    def update(self, directory: Directory, changes: ModelChanges) -> None:
        """List what differs in a directory."""
        old = {model.uid for model in changes.old}
        for name in {name for model in changes.old for name in model.all_names}:
            remaining = [model for model in self._by_name[name] if model.uid not in old]
            if remaining:
                self._by_name[name] = remaining
            else:
                del self._by_name[name]
        joined = set()
        for model in changes.new:
            for name in dict.fromkeys(model.all_names):
                of_name = self._by_name.setdefault(name, [])
                of_name.append(model)
                if len(of_name) > 1:
                    joined.add(name)
        if joined:
            places = {model.uid: place for place, model in enumerate(directory.models)}
            for name in joined:
                self._by_name[name].sort(key=lambda model: places[model.uid])


class Models:
    """The models that senders may use."""

    def __init__(self, senders: Senders) -> None:
        self._senders = senders
        self._directory = Directory()
        self._of_user: Callable[[str], Sequence[OfferedModel]] | None = None
        self._tenants: dict[str, _TenantModels] = {}
        self._listers = _Listers()
        self._by_service: dict[Ref, OfferedModel] = {}

    def update(self, directory: Directory, changes: ModelChanges, *, forget: bool) -> None:
        """Take a directory; `forget` all names where more than models differs in it."""
        self._directory, self._of_user = directory, None
        self._listers.update(directory, changes)
        for model in changes.old:
            if model.route is None:
                self._by_service.pop(model.service, None)
        self._by_service |= {each.service: each for each in changes.new if each.route is None}
        if forget:
            self._tenants = {}
        # One tenant may edit his without end, so what an edit means is what is built again.
        changed = (*changes.old, *changes.new)
        listers = self._listers.of(name for model in changed for name in model.all_names)
        for name, tenant in self._tenants.items():
            if any(may_use(name, model) for model in changed):
                known = {each: self._offered(models, name) for each, models in listers.items()}
                by_name = changed_models(tenant.by_name, known, directory.name_rights, name)
                if by_name is not tenant.by_name:
                    self._tenants[name] = _TenantModels(by_name)

    def listing(self, identity: Identity) -> bytes:
        """Return the list of the models that the sender may use, as clients get it."""
        if identity.evaluates is not None:
            return _NO_MODELS
        tenant = self._of_tenant(identity.tenant)
        listing = tenant.listings.get((identity.models, identity.services))
        if listing is None:
            models = visible_models(tenant.by_name, identity)
            data = [_listed(name, model) for name, model in models.items() if model.is_listed]
            listing = msgspec.json.encode({"object": "list", "data": data})
            tenant.add_listing(identity, listing)
        return listing

    def listings_of(self, tenant: str) -> Sequence[bytes]:
        """Return the lists that are kept of a tenant, the oldest first."""
        return list(self._of_tenant(tenant).listings.values())

    def listed(self, identity: Identity, name: str) -> bytes:
        """Return the model of this name, as clients get it; raises RequestError as `find`."""
        return msgspec.json.encode(_listed(name, self.find(identity, name)))

    def visible(self, identity: Identity) -> ModelsByName:
        """Return the models that the sender may use, by every name that they have."""
        return visible_models(self._of_tenant(identity.tenant).by_name, identity)

    def find(self, identity: Identity, name: str) -> OfferedModel:
        """Return the model of this name.

        Raises RequestError with similar names that the sender may use.
        """
        if identity.evaluates is not None:
            return self._version(identity.evaluates, name)
        model = resolve_model(self._of_tenant(identity.tenant).by_name, identity, name)
        if model is None:
            names = self._known_names(identity)
            raise unknown_model(name, similar_names(name, names), names)
        return model

    def target(self, identity: Identity, service: Ref) -> OfferedModel | None:
        """Return the model of a service as the target of a route.

        None where it does not exist, or this sender may not use it: one of another tenant needs a
        name that grants give to it.
        """
        model = self._by_service.get(service)
        if model is None or (identity.services and service not in identity.services):
            return None
        by_name = self._of_tenant(identity.tenant).by_name
        is_usable = model.tenant == identity.tenant or any(
            by_name.get(name) is model for name in model.names
        )
        return model if is_usable else None

    def outside_target(self, identity: Identity, provider: str, model: str) -> OfferedModel | None:
        """Return a model of a provider as the target of a route.

        None where it does not exist, the provider does not list the tenant, or the key is for some
        services alone.
        """
        offered = self._directory.outside.get((provider, model))
        if offered is None or offered.outside is None or identity.services:
            return None
        is_listed = identity.tenant in offered.outside.provider.weights
        return offered if is_listed else None

    def residency(self, identity: Identity) -> frozenset[str] | None:
        """Return the regions of providers that the sender's requests may go to; None for all."""
        tenant = self._directory.tenants.get(identity.tenant)
        return None if tenant is None else tenant.residency

    def resolve(self, received: Received) -> Resolved:
        """Return the request with its model; raises RequestError with status 404."""
        model = self.find(received.identified.identity, received.model)
        return Resolved(received=received, model=model)

    async def confirm(self, received: Received, admitted: OfferedModel) -> None:
        """Ask again who sends the request, and whether he may use its model by this name.

        Raises RequestError with status 401, 404 or 503.
        """
        identified, name = received.identified, received.model
        identity = await self._senders.identify_again(identified)
        model = self.find(identity, name)
        if model.route is not None:
            outside = admitted.outside
            if outside is not None:
                provider = outside.provider.name
                target = self.outside_target(identity, provider, outside.model.name)
                is_allowed = may_leave(self.residency(identity), outside.provider.spec.region)
                # A key of now is not for where the provider was before.
                if target is not None and not (target.outside == outside and is_allowed):
                    target = None
                detail = "it was changed or removed"
                error = RequestError(RequestReason.PROVIDER_UNREACHABLE, provider, detail)
            else:
                target = self.target(identity, admitted.service)
                error = RequestError(RequestReason.NO_READY_REPLICA, admitted.service)
            if target is None or target.uid != admitted.uid:
                raise error
            return
        if model.uid == admitted.uid:
            return
        # The name stands for another service now.
        if identity.evaluates is not None:
            raise RequestError(RequestReason.NO_READY_REPLICA, model.service)
        if all(each.uid != admitted.uid for each in self.visible(identity).values()):
            raise unknown_model(name, (), self._known_names(identity))
        # A tenant may give a name to another service of its own, also while requests wait.
        if model.tenant is None or model.tenant != admitted.tenant:
            raise RequestError(RequestReason.NO_READY_REPLICA, model.service)

    def _version(self, namespace: str, name: str) -> OfferedModel:
        """Return the version of a service that gates of its namespace ask by this name."""
        service = version_of(namespace, name)
        if service is None:
            raise unknown_model(name, (), ())
        model = self._by_service.get(service)
        if model is None:
            # Not unknown: who gates a change would take that for an answer of it.
            raise RequestError(RequestReason.NO_READY_REPLICA, service)
        return model

    def _of_tenant(self, name: str) -> _TenantModels:
        tenant = self._tenants.get(name)
        if tenant is None:
            # Tenants ask one after the other when a model changed that all may use.
            of_user = self._of_user = self._of_user or models_by_user(self._directory.models)
            directory = replace(self._directory, models=self._offered(of_user(name), name))
            tenant = self._tenants[name] = _TenantModels(tenant_models(directory, name))
        return tenant

    def _offered(self, models: Sequence[OfferedModel], tenant: str) -> tuple[OfferedModel, ...]:
        """Return the models without others' that are for tenants with a limit of charges alone."""
        payer = self._directory.tenants.get(tenant)
        return tuple(
            model
            for model in models
            if not model.require_charge
            or model.tenant == tenant
            or (payer is not None and payer.is_charged(model))
        )

    def _known_names(self, identity: Identity) -> Sequence[str]:
        """Return names of models that the sender may use, in order."""
        tenant = self._of_tenant(identity.tenant)
        if identity.models:
            return scoped_names(tenant.by_name, identity)
        names = tenant.names.get(identity.services)
        if names is None:
            names = tuple(visible_models(tenant.by_name, identity))
            tenant.names[identity.services] = names
        return names


def _listed(name: str, model: OfferedModel) -> _ListedModel:
    length = msgspec.UNSET if model.max_model_len is None else model.max_model_len
    return _ListedModel(name, "model", model.created, "tessera", length)
