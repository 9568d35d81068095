"""Grants of budgets to services and batches."""

from collections.abc import Mapping, Sequence

from tessera.domain.batch import batches
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.state import (
    RESERVED_DURATION,
    BudgetState,
    Grant,
    GrantRequest,
    grant_requests,
)
from tessera.domain.observed.snapshot import Ref
from tessera.domain.scaling.autoscale import ScalingHistory
from tessera.domain.service.proposal import (
    Proposal,
    guaranteed_replicas,
    history_from_status,
    pods_of_variant,
    termination_time,
)


def grant_replicas(
    proposals: Mapping[Ref, Proposal],
    batch_proposals: Mapping[Ref, batches.ProposedBatch],
    budgets: Sequence[BudgetView],
    scaling_history: Mapping[Ref, ScalingHistory],
) -> Mapping[Ref, Grant]:
    """Return the grants of all services and batches for which a budget, open or closed, decides."""
    grants: dict[Ref, Grant] = {}
    for view in budgets:
        names = view.namespaces
        claims: list[GrantRequest] = []
        for ref in sorted(ref for ref in proposals if ref.namespace in names):
            _commit_running(proposals[ref], view.meter, view.state)
            claims += _grant_requests(proposals[ref], scaling_history.get(ref))
        for ref in sorted(ref for ref in batch_proposals if ref.namespace in names):
            batch_proposals[ref].charge_live_pods(view.meter, view.state)
            claims += batch_proposals[ref].claims
        grants |= grant_requests(view.state, claims)
    return grants


def _commit_running(proposal: Proposal, meter: SpendMeter, budget_state: BudgetState) -> None:
    """Commit what running pods cost beside the request of their service.

    Pods of a service without a choice stay unchanged, and pods of a previous variant run until the
    new one is ready.
    """
    choice = proposal.placement.choice
    for pod in proposal.objects.pods:
        running = meter.running.get(pod.uid)
        if running is not None and choice is None:
            budget_state.reserve_min_replicas(running.tariff, 1)
        elif running is not None and choice is not None and pod.variant != choice.variant:
            budget_state.reserve_termination(running.tariff, RESERVED_DURATION, 1)


def _grant_requests(
    proposal: Proposal, known_history: ScalingHistory | None
) -> tuple[GrantRequest, ...]:
    """Return the request of a service."""
    choice, spec = proposal.placement.choice, proposal.service.spec
    if choice is None or spec is None:
        return ()
    objects, desired, ref = proposal.objects, proposal.scale.replicas, proposal.service.ref
    history = known_history or history_from_status(proposal.service.status)
    last_replicas = [count.replicas for count in history.decisions[-1:]]
    active_pods = [pod for pod in pods_of_variant(objects.pods, choice) if pod.ended is None]
    grant_request = GrantRequest(
        ref=ref,
        tariff=choice.offer.tariff,
        min_replicas=min(guaranteed_replicas(spec), desired),
        desired=desired,
        running=max(
            [*last_replicas, *(workload.replicas for workload in objects.workloads)], default=0
        ),
        existing_pods=len(active_pods),
        termination_time=termination_time(spec),
    )
    return (grant_request,)
