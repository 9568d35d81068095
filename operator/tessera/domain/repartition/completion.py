"""What a plan still lacks once every GPU has its planned layout."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from tessera.api.mig import MigPlan
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted, first_names
from tessera.domain.mig_backends.devices import (
    DEVICE_PLUGIN_LABEL,
    allocatable_slices,
    planned_slices,
)
from tessera.domain.repartition.actions import PoolService
from tessera.domain.repartition.capacity import PoolCapacity
from tessera.domain.repartition.goals import NodeGoal
from tessera.domain.repartition.units import node_blocker


def unfinished(
    plan: MigPlan, goals: Mapping[str, NodeGoal], capacity: PoolCapacity, own_pods: Collection[Ref]
) -> StatusVerdict[LayoutReady] | None:
    """Return what is missing: slices that no node offers, or services that did not move to them."""
    planned = {assignment.service for assignment in plan.services}
    services = [service for service in capacity.services if str(service.ref) in planned]
    verdicts = (*_missing_devices(goals.values()), *_unmoved(services, capacity, own_pods))
    return next(iter(verdicts), None)


def _missing_devices(goals: Iterable[NodeGoal]) -> Iterator[StatusVerdict[LayoutReady]]:
    for goal in goals:
        planned, offered = planned_slices(goal.node, goal.desired), allocatable_slices(goal.node)
        if planned != offered and not node_blocker(goal):
            yield StatusVerdict(
                LayoutReady.DEVICES_MISSING,
                f"Node/{goal.node.name} has {_slices(planned)} as planned and offers "
                f"{_slices(offered)}; wait for its device plugin, or check its pod on the node and "
                f"the label {DEVICE_PLUGIN_LABEL}",
            )


def _unmoved(
    services: Iterable[PoolService], capacity: PoolCapacity, own_pods: Collection[Ref]
) -> Iterator[StatusVerdict[LayoutReady]]:
    waiting_pods = capacity.waiting_pods()
    for service in services:
        former = [
            replica
            for replica in service.replicas
            if replica.node is not None and replica.profile not in (None, *service.planned)
        ]
        if not service.planned or not former:
            continue
        holders = sorted(
            {
                pod
                for pods in capacity.other_pods.values()
                for pod, profile in pods
                if profile in service.planned
            }
        )
        waiting = sum(replica.node is None for replica in service.replicas)
        profiles = " or ".join(sorted(service.planned))
        state = f"{counted(len(former), 'replica')} of {service.ref} not yet on {profiles}"
        lacking = sum(waiting_pods[profile] for profile in service.planned)
        if not holders and lacking:
            yield StatusVerdict(
                LayoutReady.INSUFFICIENT_CAPACITY,
                f"{state}: {counted(lacking, 'more free slice')} of that profile needed; add a "
                "node, or lower spec.scaling.minReplicas",
            )
        elif not (waiting and holders):
            yield StatusVerdict(
                LayoutReady.REPARTITIONING,
                f"{state}: waiting for their replacements to become Ready",
            )
            continue
        pods = first_names([f"Pod/{pod}" for pod in holders])
        unmanaged = any(pod not in own_pods for pod in holders)
        yield StatusVerdict(
            LayoutReady.UNMANAGED_POD if unmanaged else LayoutReady.REPARTITIONING,
            f"{state}: slices for {counted(waiting, 'more pod')} are held by {pods}; delete those "
            "pods, wait for their end, or add a node",
        )


def _slices(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count}x {name}" for name, count in sorted(counts.items())) or "no slices"
