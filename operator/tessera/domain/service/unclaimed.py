"""Pods on devices of pools for which no service and no batch of the plan stands."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tessera.domain.budget.namespaces import group_by_namespace
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import reused
from tessera.domain.observed.batches import Batch
from tessera.domain.observed.snapshot import Node, ObservedService, Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class UnclaimedPods:
    """Unmanaged pods, and those of deleted services and batches, as long as they hold devices."""

    by_namespace: Mapping[str, Sequence[Pod]] = field(default_factory=dict)
    allocated: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Their devices on schedulable nodes, by pool and resource."""


@reused
def unclaimed_pods(
    pods: Sequence[Pod],
    services: Sequence[ObservedService],
    batches: Sequence[Batch],
    nodes: Sequence[Node],
    views: Sequence[PoolView],
) -> UnclaimedPods:
    """Return the pods that are bound to nodes of pools and that nothing in the plan accounts for.

    What they hold is in use and costs their namespace, also where Tessera did not create them.
    """
    refs, uids = {service.ref for service in services}, {batch.uid for batch in batches}
    pools = {name: view.pool.name for view in views for name in view.node_names}
    schedulable = {node.name for node in nodes if node.schedulable}
    unclaimed, allocated = [], Counter[tuple[str, str]]()
    for pod in pods:
        claimed = pod.service in refs if pod.batch_run is None else pod.batch_run.batch_uid in uids
        if claimed or not pod.holds_devices or pod.node not in pools:
            continue
        unclaimed.append(pod)
        if pod.node in schedulable:
            for resource, count in pod.devices.items():
                allocated[pools[pod.node], resource] += count
    return UnclaimedPods(
        by_namespace=group_by_namespace((pod.ref, pod) for pod in unclaimed), allocated=allocated
    )
