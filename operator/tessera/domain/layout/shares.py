"""What a tenant may take of the planned layouts: replicas that are paid, and a weight."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.domain.budget.budgets import BudgetView, by_namespace, tenant_of
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.budget.state import Grant
from tessera.domain.service.proposal import Proposal, additional_replicas, min_replicas_of
from tessera.domain.service.variant_counts import VariantCount
from tessera.domain.steps import Step


class TenantShare(NamedTuple):
    """The tenant of a service; all namespaces without a budget are one tenant."""

    tenant: str = ""
    weight: float = 1.0
    """Weight among the tenants where devices are short."""
    paid_replicas: int | None = None
    """Replicas that are granted or would be; None without a budget."""


def tenant_shares(
    proposals: Mapping[Ref, Proposal],
    grants: Mapping[Ref, Grant | Exception],
    budgets: Sequence[BudgetView],
) -> Mapping[Ref, TenantShare]:
    """Return the shares of all services whose tenant has a budget.

    A service that waits for a layout would be granted what is left once all grants are made.
    """
    views, forecast = by_namespace(budgets), GrantForecast(budgets)
    shares = {}
    for ref in sorted(proposals):
        if ref.namespace in views:
            paid = paid_replicas(proposals[ref], grants.get(ref), forecast)
            shares[ref] = TenantShare(*tenant_of(ref.namespace, views), paid)
    return shares


def _paid_replicas(
    proposal: Proposal, grant: Grant | Exception | None, forecast: GrantForecast
) -> int:
    awaited, spec = proposal.placement.awaited, proposal.service.spec
    if isinstance(grant, Grant):
        return grant.replicas
    if grant is not None or awaited is None or spec is None:
        return len(proposal.objects.pods)
    request = additional_replicas(
        proposal, VariantCount(awaited, max(1, min_replicas_of(spec)), existing=0)
    )
    return forecast.count(request)


paid_replicas = Step(_paid_replicas, lambda _error, proposal, *_: len(proposal.objects.pods))
