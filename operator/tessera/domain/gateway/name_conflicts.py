"""Names that several services have: the gateway sends the requests for one to a single service."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.gateway.access import tenant_models
from tessera.domain.gateway.build import offered_names, oldest_first
from tessera.domain.gateway.directory import Directory, OfferedModel
from tessera.domain.incremental import reused
from tessera.domain.observed.snapshot import ObservedService

_MAX_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NameConflict:
    """A name of a service whose requests an older one gets."""

    name: str
    receiver: Ref
    tenants: tuple[str, ...]
    """Whose requests the other one gets, in order."""

    @property
    def senders(self) -> str:
        """Return the tenants in words."""
        if len(self.tenants) == 1:
            return f"TenantBudget/{self.tenants[0]}"
        return f"{counted(len(self.tenants), 'tenant')}, first TenantBudget/{self.tenants[0]}"


NameConflicts = Mapping[Ref, tuple[NameConflict, ...]]


@reused
def find_name_conflicts(
    services: Sequence[ObservedService], tenants: Mapping[str, tuple[str, ...]]
) -> NameConflicts:
    """Return the conflicts of each service that is not the one to get the requests for a name.

    `tenants` maps each tenant to its namespaces. A tenant that names a service of its own like one
    that is shared with it chooses to, which is no conflict.
    """
    tenant_by_namespace = {name: tenant for tenant, names in tenants.items() for name in names}
    models = tuple(
        offered_names(service.uid, service, tenant_by_namespace.get(service.ref.namespace))
        for service in oldest_first(services)
    )
    return _conflicts(models, tuple(sorted(tenants)))


def loses(service: Ref, spec: InferenceServiceSpec, conflicts: NameConflicts) -> Sequence[str]:
    """Return a sentence for each name of a service by which an older one gets requests."""
    return [
        f"{_field(spec, conflict.name)}: {conflict.name} is also a name of InferenceService/"
        f"{conflict.receiver}, which is older and gets the requests of {conflict.senders} at the "
        "gateway; remove it from one of the two"
        for conflict in conflicts.get(service, ())[:_MAX_NAMED]
    ]


def takes(service: Ref, spec: InferenceServiceSpec, conflicts: NameConflicts) -> Sequence[str]:
    """Return a sentence for each name by which a service gets the requests of a newer one."""
    return [
        f"{_field(spec, conflict.name)}: {conflict.name} is also a name of InferenceService/"
        f"{loser}, which is newer and does not get the requests of {conflict.senders} at the "
        "gateway; remove it from one of the two"
        for loser in sorted(conflicts)
        for conflict in conflicts[loser]
        if conflict.receiver == service
    ][:_MAX_NAMED]


@reused
def _conflicts(models: tuple[OfferedModel, ...], tenants: tuple[str, ...]) -> NameConflicts:
    visible: dict[str, list[OfferedModel]] = {tenant: [] for tenant in tenants}
    for model in models:
        for tenant in tenants if model.public else {model.tenant, *model.tenants}:
            if tenant in visible:
                visible[tenant].append(model)
    senders = defaultdict[Ref, defaultdict[tuple[str, Ref], list[str]]](lambda: defaultdict(list))
    for tenant in tenants:
        receivers = tenant_models(Directory(models=tuple(visible[tenant])), tenant)
        for model in visible[tenant]:
            for name in dict.fromkeys((*model.names, *model.adapters)):
                receiver = receivers[name]
                is_choice = receiver.tenant == tenant != model.tenant
                if receiver is not model and not is_choice:
                    senders[model.service][name, receiver.service].append(tenant)
    return {
        service: tuple(
            NameConflict(name=name, receiver=receiver, tenants=tuple(names))
            for (name, receiver), names in of_service.items()
        )
        for service, of_service in senders.items()
    }


def _field(spec: InferenceServiceSpec, name: str) -> str:
    """Return the path of the field that has a name."""
    if name in spec.access.aliases:
        return f"spec.access.aliases[{spec.access.aliases.index(name)}]"
    for index, adapter in enumerate(spec.model.adapters):
        if adapter.name == name:
            return f"spec.model.adapters[{index}].name"
    return "spec.model.servedName" if spec.model.served_name is not None else "metadata.name"
