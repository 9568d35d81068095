"""Names by which tenants do not get a service although its spec offers it, and why."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import NAME_REASONS, Accepted, StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.budget.name_grants import EVERY_TENANT
from tessera.domain.gateway.access import may_offer, offered_to
from tessera.domain.gateway.build import offered_names, oldest_first
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.name_rights import NameRights
from tessera.domain.incremental import reused
from tessera.domain.observed.snapshot import ObservedService

_MAX_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NameConflict:
    """What is wrong with a name of a service."""

    reason: Accepted
    name: str
    tenant: str | None
    """Tenant of the service."""
    consumers: str
    """Whose requests it is about, in words."""
    holder: str | None = None
    """Tenant to which the name belongs for them, or that wants it as well."""
    other: Ref | None = None
    """The service that gets the requests; with `NAME_CONTESTED` the one that does not."""


NameConflicts = Mapping[Ref, tuple[NameConflict, ...]]


@reused
def find_name_conflicts(
    services: Sequence[ObservedService],
    tenants: Mapping[str, tuple[str, ...]],
    rights: NameRights,
    of: Ref | None = None,
) -> NameConflicts:
    """Return what is wrong with the names of each service, or those `of` one service alone.

    `tenants` maps each tenant to its namespaces. A tenant that names a service of its own like one
    that is shared with it chooses to, which is no conflict.
    """
    tenant_by_namespace = {name: tenant for tenant, names in tenants.items() for name in names}
    models = tuple(
        offered_names(service.uid, service, tenant_by_namespace.get(service.ref.namespace))
        for service in oldest_first(services)
    )
    return _conflicts(models, frozenset(tenants), rights, of)


def name_verdicts(
    service: Ref, spec: InferenceServiceSpec, conflicts: NameConflicts
) -> tuple[StatusVerdict[Accepted], ...]:
    """Return what the status of a service says of its names, the worst first.

    A tenant learns that a name is taken, but not which other tenant has it.
    """
    # In the order of the spec: that of all names of all services would tell of those of others.
    names = ("", *all_names(service.name, spec))
    worst_first = sorted(
        conflicts.get(service, ()),
        key=lambda conflict: (NAME_REASONS.index(conflict.reason), names.index(conflict.name)),
    )
    return tuple(
        StatusVerdict(conflict.reason, _sentence(spec, conflict))
        for conflict in worst_first[:_MAX_NAMED]
    )


def all_names(service: str, spec: InferenceServiceSpec) -> tuple[str, ...]:
    """Return all names that a service lists, with those of its adapters."""
    adapters = (adapter.name for adapter in spec.model.adapters)
    return (spec.model.served_name or service, *spec.access.aliases, *adapters)


def lists_any(names: frozenset[str], service: str, spec: InferenceServiceSpec) -> bool:
    """Return whether a service lists one of the names; makes no list, as thousands are asked."""
    model = spec.model
    return (
        (model.served_name or service) in names
        or not names.isdisjoint(spec.access.aliases)
        or (bool(model.adapters) and any(each.name in names for each in model.adapters))
    )


@reused
def _conflicts(
    models: tuple[OfferedModel, ...],
    tenants: frozenset[str],
    rights: NameRights,
    of: Ref | None,
) -> NameConflicts:
    refusing: dict[str | None, frozenset[str]] = {
        publisher: frozenset(
            consumer for consumer in rights.publishers if not rights.accepts(consumer, publisher)
        )
        for publisher in {model.tenant for model in models}
    }
    by_name = defaultdict[str, list[OfferedModel]](list)
    conflicts = defaultdict[Ref, list[NameConflict]](list)
    for model in models:
        for name in dict.fromkeys(model.all_names):
            by_name[name].append(model)
        if refused := model.tenants & tenants & refusing[model.tenant]:
            conflicts[model.service].append(
                NameConflict(
                    reason=Accepted.PUBLISHER_NOT_ACCEPTED,
                    name="",
                    tenant=model.tenant,
                    consumers=_in_words(refused, model),
                )
            )
    for name, listers in by_name.items():
        is_shared = len(listers) > 1 or listers[0].public or listers[0].tenants
        if not is_shared and name.lower() not in rights.holders:
            continue
        for service, conflict in _NameUse(name, listers, tenants, rights, refusing).conflicts(of):
            conflicts[service].append(conflict)
    return {service: tuple(of_service) for service, of_service in conflicts.items()}


class _NameUse:
    """The services that list one name, the oldest first, and who gets which of them by it."""

    def __init__(
        self,
        name: str,
        listers: Sequence[OfferedModel],
        tenants: frozenset[str],
        rights: NameRights,
        refusing: Mapping[str | None, frozenset[str]],
    ) -> None:
        self._name, self._listers, self._rights = name, listers, rights
        # What a tenant has for itself is its own affair: no status of others depends on it.
        self._holders = {
            consumer: holder
            for consumer, holder in rights.holders.get(name.lower(), {}).items()
            if holder.tenant != consumer
        }
        self._rights_of_others = replace(rights, holders={name.lower(): self._holders})
        self._own: dict[str, OfferedModel] = {}
        for model in listers:
            if model.tenant in tenants and may_offer(rights, model, name, model.tenant):
                self._own.setdefault(model.tenant, model)
        self._receivers: dict[str, OfferedModel] = {}
        self._tenants, self._refusing = tenants, refusing

    def conflicts(self, of: Ref | None) -> Iterator[tuple[Ref, NameConflict]]:
        """Yield what is wrong, with the service whose status says it, at least all `of` one."""
        contested: set[tuple[Ref, bool]] = set()
        offers = [self._offer(model) for model in self._listers]
        receivers = {each.service for each in (*self._own.values(), *self._receivers.values())}
        for model, (lost, withheld) in zip(self._listers, offers, strict=True):
            if of is not None and model.service != of and of not in receivers:
                continue
            taken = lost | self._owned(withheld)
            for conflict in self._taken(model, taken):
                yield model.service, conflict
                is_own = conflict.holder == model.tenant
                if conflict.other is not None and (conflict.other, is_own) not in contested:
                    contested.add((conflict.other, is_own))
                    yield conflict.other, _contest(conflict, model)
            if consumers := withheld - taken:
                yield (
                    model.service,
                    NameConflict(
                        reason=Accepted.NAME_NOT_PUBLISHED,
                        name=self._name,
                        tenant=model.tenant,
                        consumers=_in_words(consumers, model),
                    ),
                )

    def _offer(self, model: OfferedModel) -> tuple[frozenset[str], frozenset[str]]:
        """Return other tenants that get an older one instead, and those that may not get it."""
        asked = self._tenants if model.public else self._tenants & model.tenants
        audience = asked.difference(self._refusing[model.tenant], (model.tenant,))
        allowed = offered_to(self._rights_of_others, model, self._name, audience)
        lost = allowed.intersection(self._receivers)
        self._receivers.update(dict.fromkeys(allowed - lost, model))
        return lost, audience - allowed

    def _owned(self, consumers: frozenset[str]) -> frozenset[str]:
        """Return those of tenants for whom the name belongs to somebody."""
        return consumers if EVERY_TENANT in self._holders else consumers.intersection(self._holders)

    def _taken(self, model: OfferedModel, taken: frozenset[str]) -> Iterator[NameConflict]:
        """Yield who has the name for its own tenant, and for these others, instead of a model."""
        own, is_own = model.tenant, False
        if own in self._tenants and self._own.get(own) is not model:
            is_own = True
            yield self._conflict(model, frozenset((own,)), own)
        if taken:
            conflict = self._conflict(model, taken, min(taken & self._receivers.keys() or taken))
            if not is_own or conflict.holder != own:
                yield conflict

    def _conflict(self, model: OfferedModel, consumers: frozenset[str], first: str) -> NameConflict:
        is_own = first == model.tenant
        receiver = (self._own if is_own else self._receivers).get(first)
        rights = self._rights if is_own else self._rights_of_others
        holder = rights.holder(self._name, first)
        return NameConflict(
            reason=Accepted.NAME_CONFLICT,
            name=self._name,
            tenant=model.tenant,
            consumers=_in_words(consumers, model),
            holder=receiver.tenant if receiver else holder and holder.tenant,
            other=receiver.service if receiver else None,
        )


def _contest(conflict: NameConflict, loser: OfferedModel) -> NameConflict:
    return NameConflict(
        reason=Accepted.NAME_CONTESTED,
        name=conflict.name,
        tenant=conflict.holder,
        consumers=conflict.consumers,
        holder=loser.tenant,
        other=loser.service,
    )


def _in_words(consumers: frozenset[str], model: OfferedModel) -> str:
    """Return tenants in the words of a spec: those that it names, or all others."""
    if model.tenant in consumers:
        return f"TenantBudget/{model.tenant}"
    if model.public:
        return "other tenants"
    first = f"TenantBudget/{min(consumers)}"
    return first if len(consumers) == 1 else f"{counted(len(consumers), 'tenant')}, first {first}"


def _sentence(spec: InferenceServiceSpec, conflict: NameConflict) -> str:
    name, consumers, budget = conflict.name, conflict.consumers, f"TenantBudget/{conflict.tenant}"
    field, is_lost = _field(spec, name), conflict.reason is Accepted.NAME_CONFLICT
    if conflict.reason is Accepted.PUBLISHER_NOT_ACCEPTED:
        return (
            f"spec.access.tenants: models of {budget} are not accepted by {consumers}; have it "
            "added to spec.acceptedPublishers there, or remove the tenant"
        )
    if conflict.reason is Accepted.NAME_NOT_PUBLISHED:
        cause = (
            f"no grant in spec.publishing of {budget} has it for them"
            if conflict.tenant is not None
            else "no TenantBudget has its namespace, so no grant can have it"
        )
        return (
            f"{field}: {name} cannot be used by {consumers}, since {cause}; ask the platform team "
            "for a grant (docs/tasks/publish-models.md)"
        )
    if conflict.holder != conflict.tenant:
        return (
            f"{field}: {name} is taken, so requests of {consumers} for it do not come here from "
            "the gateway; choose another name"
            if is_lost
            else f"{field}: a service of another tenant has the name {name} too, and gets no "
            "requests for it that come here"
        )
    if conflict.other is None:
        return (
            f"{field}: {name} belongs to other namespaces by spec.publishing of {budget}, so "
            f"requests of {consumers} for it do not come here from the gateway; choose another name"
        )
    gets = "gets" if is_lost else "does not get"
    return (
        f"{field}: {name} is also a name of InferenceService/{conflict.other}, which {gets} the "
        f"requests of {consumers} at the gateway; remove it from one of the two"
    )


def _field(spec: InferenceServiceSpec, name: str) -> str:
    """Return the path of the field that has a name."""
    if name in spec.access.aliases:
        return f"spec.access.aliases[{spec.access.aliases.index(name)}]"
    for index, adapter in enumerate(spec.model.adapters):
        if adapter.name == name:
            return f"spec.model.adapters[{index}].name"
    return "spec.model.servedName" if spec.model.served_name is not None else "metadata.name"
