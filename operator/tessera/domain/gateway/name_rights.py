"""Which tenant may offer models by which name to whom: the grants of all budgets in force."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tessera.domain.budget.name_grants import EVERY_TENANT, TenantGrants, consumers_of
from tessera.domain.incremental import reused


class NameHolder(NamedTuple):
    """The tenant to which a name belongs."""

    tenant: str
    namespaces: frozenset[str]
    """Namespaces of the tenant whose services get requests by the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRights:
    """Names that tenants have for others, and whose models tenants accept.

    A name that no grant has is offered to no other tenant.
    """

    holders: Mapping[str, Mapping[str, NameHolder]] = field(default_factory=dict)
    """By the name in lower case, and by who gets models by it: a tenant, or `*` for every one."""
    publishers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Tenants whose models a tenant accepts, where it does not accept those of all."""

    def holder(self, name: str, consumer: str) -> NameHolder | None:
        """Return to whom a name belongs where this tenant sends it; None if no grant has it."""
        by_consumer = self.holders.get(name.lower())
        if by_consumer is None:
            return None
        return by_consumer.get(consumer) or by_consumer.get(EVERY_TENANT)

    def grants(self, name: str, namespace: str, consumers: Sequence[str] = ()) -> bool:
        """Return whether services of a namespace have a name for one of these tenants.

        Without tenants: for every one, or where nobody has it so, for any.
        """
        by_consumer = self.holders.get(name.lower(), {})
        holders = [self.holder(name, each) for each in consumers or (EVERY_TENANT,)]
        if not (consumers or any(holders)):
            holders = [*by_consumer.values()]
        return any(holder is not None and namespace in holder.namespaces for holder in holders)

    def accepts(self, consumer: str, publisher: str | None) -> bool:
        """Return whether a tenant accepts models of another one."""
        accepted = self.publishers.get(consumer)
        return accepted is None or publisher in accepted


@reused
def name_rights(grants: tuple[TenantGrants, ...]) -> NameRights:
    """Return the rights by the grants in force; of two tenants with one name the first one's hold.

    They hold whether or not a service has the name now, so it stays reserved while one is away.
    """
    holders: dict[str, dict[str, NameHolder]] = {}
    for tenant, namespaces, of_tenant, _ in grants:
        for grant in of_tenant:
            allowed = frozenset(namespaces).intersection(grant.namespaces or namespaces)
            for name in grant.names:
                by_consumer = holders.setdefault(name, {})
                for consumer in consumers_of(grant, tenant):
                    holder = by_consumer.setdefault(consumer, NameHolder(tenant, allowed))
                    if holder.tenant == tenant:
                        by_consumer[consumer] = NameHolder(tenant, holder.namespaces | allowed)
    return NameRights(
        holders=holders,
        publishers={
            each.tenant: frozenset(each.accepted_publishers)
            for each in grants
            if each.accepted_publishers is not None
        },
    )
