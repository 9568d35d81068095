"""The service that a name stands for, by the last directory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tessera.api.ref import Ref
from tessera.domain.gateway.access import (
    ModelsByName,
    may_use,
    models_by_user,
    resolve_model,
    scoped_names,
    similar_names,
    tenant_models,
    visible_models,
)
from tessera.domain.gateway.directory import Directory, Identity, ModelChanges, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.identify.senders import RecordFields, Senders
from tessera.gateway.receive.receiver import Received
from tessera.gateway.refusals import RequestError, unknown_model


@dataclass(slots=True, kw_only=True)
class Resolved:
    """A request whose model is known."""

    received: Received
    model: OfferedModel

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        return resolved_fields(self.received, self.model)


def resolved_fields(received: Received, model: OfferedModel) -> RecordFields:
    """Return what is recorded of a request whose model is known."""
    fields = received.record_fields()
    fields["service"] = str(model.service)
    return fields


class Models:
    """The models that senders may use."""

    def __init__(self, senders: Senders) -> None:
        self._senders = senders
        self._directory = Directory()
        self._of_user: Callable[[str], Sequence[OfferedModel]] | None = None
        # By tenant, also their names, and by sender and service.
        self._models: dict[str, ModelsByName] = {}
        self._names: dict[tuple[str, frozenset[Ref]], tuple[str, ...]] = {}

    def update(self, directory: Directory, changes: ModelChanges, *, forget: bool) -> None:
        """Take a directory; `forget` all names where more than models differs in it."""
        self._directory, self._of_user = directory, None
        if forget:
            self._models, self._names = {}, {}
        # One tenant may edit his without end.
        changed = (*changes.old, *changes.new)
        for tenant in tuple(self._models):
            if any(may_use(tenant, model) for model in changed):
                del self._models[tenant]
        for scope in [scope for scope in self._names if scope[0] not in self._models]:
            del self._names[scope]

    def visible(self, identity: Identity) -> ModelsByName:
        """Return the models that the sender may use, by every name that they have."""
        return visible_models(self._models_of(identity.tenant), identity)

    def find(self, identity: Identity, name: str) -> OfferedModel:
        """Return the model of this name.

        Raises RequestError with similar names that the sender may use.
        """
        model = resolve_model(self._models_of(identity.tenant), identity, name)
        if model is None:
            names = self._known_names(identity)
            raise unknown_model(name, similar_names(name, names), names)
        return model

    def resolve(self, received: Received) -> Resolved:
        """Return the request with its model; raises RequestError with status 404."""
        model = self.find(received.identified.identity, received.model)
        return Resolved(received=received, model=model)

    async def confirm(self, received: Received, admitted: OfferedModel) -> None:
        """Ask again who sends the request, and whether he may use its model by this name.

        Raises RequestError with status 401, 404 or 503.
        """
        identified, name = received.identified, received.model
        identity = await self._senders.identify(identified.headers, identified.client_address)
        model = self.find(identity, name)
        if model.uid == admitted.uid:
            return
        # The name stands for another service now.
        if all(each.uid != admitted.uid for each in self.visible(identity).values()):
            raise unknown_model(name, (), self._known_names(identity))
        # A tenant may give a name to another service of its own, also while requests wait.
        if model.tenant is None or model.tenant != admitted.tenant:
            raise RequestError(RequestReason.NO_READY_REPLICA, model.service)

    def _models_of(self, tenant: str) -> ModelsByName:
        models = self._models.get(tenant)
        if models is None:
            # Tenants ask one after the other when a model changed that all may use.
            of_user = self._of_user = self._of_user or models_by_user(self._directory.models)
            directory = replace(self._directory, models=tuple(of_user(tenant)))
            models = self._models[tenant] = tenant_models(directory, tenant)
        return models

    def _known_names(self, identity: Identity) -> Sequence[str]:
        """Return names of models that the sender may use, in order."""
        models = self._models_of(identity.tenant)
        if identity.models:
            return scoped_names(models, identity)
        scope = identity.tenant, identity.services
        names = self._names.get(scope)
        if names is None:
            names = self._names[scope] = tuple(visible_models(models, identity))
        return names
