"""Devices of a pool where they are too few for all tenants.

A pod that waits for a device takes the next one that becomes free, also one of another tenant. So a
tenant gets no replica beyond its share while others use devices of the same kind: then no pod waits
but the successor of one that went.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.api.reasons import ScalingReason
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.budget.budgets import BudgetView, by_namespace, tenant_of
from tessera.domain.budget.state import Grant
from tessera.domain.hardware.pools import PoolView
from tessera.domain.mig.demand import ServiceDemand
from tessera.domain.mig.fair_shares import ReplicaStep, in_fair_order
from tessera.domain.observed.snapshot import Pod
from tessera.domain.placement.placement import CLASS_RANKS
from tessera.domain.service.current_objects import pods_of_variant
from tessera.domain.service.proposal import Proposal, min_replicas_of
from tessera.domain.steps import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeviceClaim:
    """What one service wants of the devices of one kind."""

    ref: Ref
    demand: ServiceDemand
    desired: int
    devices: int
    """Devices of one replica."""
    existing: int
    """Its replicas that have a node, of any variant."""


def _share_devices(
    proposals: Mapping[Ref, Proposal],
    grants: Mapping[Ref, Grant | Exception],
    budgets: Sequence[BudgetView],
    views: Sequence[PoolView],
    pods: Sequence[Pod],
) -> Mapping[Ref, Grant | Exception]:
    """Return the grants without new replicas beyond their tenants' shares of scarce devices."""
    if not budgets:
        return grants
    budget_views = by_namespace(budgets)
    groups: dict[tuple[str, str], list[Proposal]] = defaultdict(list)
    needed = Counter[tuple[str, str]]()
    for ref, proposal in proposals.items():
        if (choice := proposal.placement.choice) is not None:
            hardware = choice.offer.hardware
            key = choice.offer.pool, hardware.resource
            groups[key].append(proposal)
            needed[key] += _desired(proposal, grants.get(ref)) * hardware.devices
    capped = dict(grants)
    for view in views:
        for resource, capacity in _capacities(view).items():
            key = view.pool.name, resource
            if needed[key] <= capacity:
                continue
            claims = [
                _device_claim(proposal, grant, budget_views)
                for proposal in groups[key]
                for grant in (grants.get(proposal.service.ref),)
                if _desired(proposal, grant)
            ]
            if len({claim.demand.tenant for claim in claims}) > 1:
                capped |= _capped_grants(view, resource, capacity, claims, pods)
    return capped


share_devices = Step(_share_devices, lambda _error, _proposals, grants, *_: grants)


def _desired(proposal: Proposal, grant: Grant | Exception | None) -> int:
    if isinstance(grant, Exception):  # it is set aside: nothing is added to it
        return _count_bound(proposal.objects.pods)
    return proposal.scale.replicas if grant is None else grant.replicas


def _capacities(view: PoolView) -> Mapping[str, int]:
    """Return the devices of the pool by resource."""
    capacities = Counter[str]()
    for offer in view.offers:
        hardware = offer.hardware
        devices = offer.replicas * hardware.devices
        capacities[hardware.resource] = max(capacities[hardware.resource], devices)
    return capacities


def _device_claim(
    proposal: Proposal, grant: Grant | Exception | None, budget_views: Mapping[str, BudgetView]
) -> _DeviceClaim:
    choice, spec, ref = proposal.placement.choice, proposal.service.spec, proposal.service.ref
    tenant, weight = tenant_of(ref.namespace, budget_views)
    running = pods_of_variant(proposal.objects.pods, choice) if choice is not None else ()
    demand = ServiceDemand(
        name=str(ref),
        demand=0.0,
        min_replicas=min_replicas_of(spec) if spec is not None else 0,
        throughput={},
        tenant=tenant,
        weight=weight,
        running_replicas=_count_bound(running),
        class_rank=CLASS_RANKS[spec.service_class] if spec is not None else 0,
    )
    return _DeviceClaim(
        ref=ref,
        demand=demand,
        desired=_desired(proposal, grant),
        devices=choice.offer.hardware.devices if choice is not None else 1,
        existing=_count_bound(proposal.objects.pods),
    )


def _count_bound(pods: Sequence[Pod]) -> int:
    return sum(pod.node is not None and not pod.terminating for pod in pods)


def _capped_grants(
    view: PoolView,
    resource: str,
    capacity: int,
    claims: Sequence[_DeviceClaim],
    pods: Sequence[Pod],
) -> Mapping[Ref, Grant]:
    """Return the grants of services that desire more than their share of one kind of devices."""
    refs = {claim.ref for claim in claims}
    free = capacity - sum(
        pod.devices.get(resource, 0)
        for pod in pods
        if pod.node in view.node_names
        and pod.ended is None
        and (pod.service not in refs or pod.batch_run is not None or pod.model_job_run is not None)
    )
    shares = dict.fromkeys(refs, 0)
    by_name = {claim.demand.name: claim for claim in claims}
    for step in in_fair_order(
        ReplicaStep(claim.demand, count, 0.0, claim.devices, count == claim.desired)
        for claim in claims
        for count in range(1, min(claim.desired, capacity // claim.devices) + 1)
    ):
        claim = by_name[step.service.name]
        if claim.devices <= free and shares[claim.ref] == step.replicas - 1:
            shares[claim.ref], free = step.replicas, free - claim.devices
    tenants = len({claim.demand.tenant for claim in claims})
    return {
        claim.ref: Grant(
            replicas=replicas,
            shortage=f"AcceleratorPool/{view.pool.name}: {counted(tenants, 'tenant')} desire more "
            f"than {capacity} {resource}, so with weight {claim.demand.weight:g} the service "
            f"gets {replicas} of {counted(claim.desired, 'replica')}. Add nodes, or raise "
            "spec.weight of the TenantBudget.",
            reason=ScalingReason.FAIR_SHARE,
        )
        for claim in claims
        if (replicas := max(shares[claim.ref], claim.existing)) < claim.desired
    }
