"""The names in `spec.publishing` of budgets: to which of them a name belongs, and for whom."""

from collections import defaultdict
from typing import NamedTuple

from tessera.api.tenant_budget import NameGrant, TenantBudgetSpec

# All tenants, where a tenant is named otherwise: no TenantBudget has this name.
EVERY_TENANT = "*"


class TenantGrants(NamedTuple):
    """What the budget of a tenant says of names."""

    tenant: str
    namespaces: tuple[str, ...]
    grants: tuple[NameGrant, ...]
    accepted_publishers: tuple[str, ...] | None


class NameClash(NamedTuple):
    """A name that a budget grants although it belongs to another one."""

    field: str
    name: str
    holder: str
    """The budget that has it already."""


class GrantedNames:
    """The names of budgets in force, which never share one for the same tenant."""

    def __init__(self) -> None:
        # Those who may get a name, by the name and the budget that grants it.
        self._consumers = defaultdict[str, dict[str, frozenset[str]]](dict)

    def replace(
        self, tenant: str, spec: TenantBudgetSpec, previous: TenantBudgetSpec | None = None
    ) -> None:
        """Let a tenant have the names of a spec, and none that only its previous one has."""
        for name in _names(previous):
            self._consumers[name].pop(tenant, None)
        for grant in spec.publishing:
            for name in grant.names:
                by_budget = self._consumers[name]
                earlier = by_budget.get(tenant, frozenset())
                by_budget[tenant] = earlier | consumers_of(grant, tenant)

    def find_clash(self, tenant: str, spec: TenantBudgetSpec) -> NameClash | None:
        """Return the first name of a spec that belongs to another budget for the same tenant."""
        for index, grant in enumerate(spec.publishing):
            consumers = consumers_of(grant, tenant)
            for position, name in enumerate(grant.names):
                for holder, others in sorted(self._consumers.get(name, {}).items()):
                    if holder != tenant and _overlap(consumers, tenant, others, holder):
                        field = f"spec.publishing[{index}].names[{position}]"
                        return NameClash(field, name, holder)
        return None


def consumers_of(grant: NameGrant, tenant: str) -> frozenset[str]:
    """Return who may get services by the names of a grant: its tenant, and those that it names."""
    return frozenset((tenant, *grant.tenants, *((EVERY_TENANT,) if grant.public else ())))


def _names(spec: TenantBudgetSpec | None) -> list[str]:
    return [] if spec is None else [name for grant in spec.publishing for name in grant.names]


def _overlap(consumers: frozenset[str], tenant: str, others: frozenset[str], holder: str) -> bool:
    """Return whether some tenant would get services of two others by one name.

    A name that is public may still be one that another tenant has for itself alone.
    """
    return bool(
        consumers & others
        or (EVERY_TENANT in consumers and others - {holder})
        or (EVERY_TENANT in others and consumers - {tenant})
    )
