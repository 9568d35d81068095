"""Devices of a pool where they are too few for all tenants.

A pod that waits for a device takes the next one that becomes free, also one of another tenant. So a
tenant gets no replica beyond its share while others use devices of the same kind: then no pod waits
but the successor of one that went.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.api.reasons import ScalingReason
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.budget.budgets import BudgetView, by_namespace, tenant_of
from tessera.domain.budget.state import Grant
from tessera.domain.hardware.pools import PoolView, device_capacities
from tessera.domain.mig.demand import ServiceDemand
from tessera.domain.mig.fair_shares import ReplicaStep, in_fair_order
from tessera.domain.observed.snapshot import Pod
from tessera.domain.placement.placement import CLASS_RANKS
from tessera.domain.service.current_objects import pods_of_variant
from tessera.domain.service.proposal import Proposal, min_replicas_of
from tessera.domain.steps import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeviceClaim:
    """What one variant of a service wants of the devices of one kind."""

    key: tuple[Ref, int]
    """The service, and which of its variants."""
    grant: Grant
    demand: ServiceDemand
    desired: int
    devices: int
    """Devices of one replica."""
    existing: int
    """Its replicas that have a node, with those of previous variants."""


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
    groups: dict[tuple[str, str], list[tuple[Proposal, int]]] = defaultdict(list)
    needed = Counter[tuple[str, str]]()
    for ref, proposal in proposals.items():
        granted = _granted(proposal, grants.get(ref)).counts
        for index, count in enumerate(proposal.counts):
            hardware = count.choice.offer.hardware
            key = count.choice.offer.pool, hardware.resource
            groups[key].append((proposal, index))
            needed[key] += granted[index] * hardware.devices
    capped = dict(grants)
    for view in views:
        for resource, capacity in device_capacities(view).items():
            key = view.pool.name, resource
            if needed[key] <= capacity:
                continue
            claims = [
                _device_claim(proposal, index, grant, budget_views)
                for proposal, index in groups[key]
                for grant in (_granted(proposal, capped.get(proposal.service.ref)),)
                if grant.counts[index]
            ]
            if len({claim.demand.tenant for claim in claims}) > 1:
                capped |= _capped_grants(view, resource, capacity, claims, pods)
    return capped


share_devices = Step(_share_devices, lambda _error, _proposals, grants, *_: grants)


def _granted(proposal: Proposal, grant: Grant | Exception | None) -> Grant:
    if isinstance(grant, Exception):  # it is set aside: nothing is added to it
        bound = [_count_bound(_own_pods(proposal, index)) for index in range(len(proposal.counts))]
        return Grant(counts=tuple(bound))
    return grant or Grant(counts=tuple(count.replicas for count in proposal.counts))


def _own_pods(proposal: Proposal, index: int) -> Sequence[Pod]:
    """Return the pods of a variant; those of previous variants count for the first one."""
    names = [count.choice.variant for count in proposal.counts]
    if index:
        return [pod for pod in proposal.objects.pods if pod.variant == names[index]]
    return [pod for pod in proposal.objects.pods if pod.variant not in names[1:]]


def _device_claim(
    proposal: Proposal, index: int, grant: Grant, budget_views: Mapping[str, BudgetView]
) -> _DeviceClaim:
    choice, spec, ref = proposal.counts[index].choice, proposal.service.spec, proposal.service.ref
    tenant, weight = tenant_of(ref.namespace, budget_views)
    running = pods_of_variant(proposal.objects.pods, choice)
    demand = ServiceDemand(
        name=f"{ref} {index}" if index else str(ref),
        demand=0.0,
        min_replicas=min_replicas_of(spec) if spec is not None and not index else 0,
        throughput={},
        tenant=tenant,
        weight=weight,
        running_replicas=_count_bound(running),
        class_rank=CLASS_RANKS[spec.service_class] if spec is not None else 0,
    )
    return _DeviceClaim(
        key=(ref, index),
        grant=grant,
        demand=demand,
        desired=grant.counts[index],
        devices=choice.offer.hardware.devices,
        existing=_count_bound(_own_pods(proposal, index)),
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
    refs = {claim.key[0] for claim in claims}
    free = capacity - sum(
        pod.devices.get(resource, 0)
        for pod in pods
        if pod.node in view.node_names
        and pod.ended is None
        and (pod.service not in refs or pod.batch_run is not None or pod.model_job_run is not None)
    )
    shares = dict.fromkeys((claim.key for claim in claims), 0)
    by_name = {claim.demand.name: claim for claim in claims}
    for step in in_fair_order(
        ReplicaStep(claim.demand, count, 0.0, claim.devices, count == claim.desired)
        for claim in claims
        for count in range(1, min(claim.desired, capacity // claim.devices) + 1)
    ):
        claim = by_name[step.service.name]
        if claim.devices <= free and shares[claim.key] == step.replicas - 1:
            shares[claim.key], free = step.replicas, free - claim.devices
    tenants = len({claim.demand.tenant for claim in claims})
    return {
        claim.key[0]: replace(
            claim.grant,
            counts=(*claim.grant.counts[:index], replicas, *claim.grant.counts[index + 1 :]),
            shortage=f"AcceleratorPool/{view.pool.name}: {counted(tenants, 'tenant')} desire more "
            f"than {capacity} {resource}, so with weight {claim.demand.weight:g} the service "
            f"gets {replicas} of {counted(claim.desired, 'replica')}. Add nodes, or raise "
            "spec.weight of the TenantBudget.",
            reason=ScalingReason.FAIR_SHARE,
        )
        for claim in claims
        for index in (claim.key[1],)
        if (replicas := max(shares[claim.key], claim.existing)) < claim.desired
    }
