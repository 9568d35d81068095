"""What a repartition means for one service: who is replaced, and what former variants keep."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from tessera.api.ref import Ref
from tessera.domain.observed.snapshot import Pod, Workload
from tessera.domain.repartition.orders import PoolActions
from tessera.domain.scaling.drain import NO_DISPLACEMENT, Displacement


def displaced_pods(pool_actions: Iterable[PoolActions], pods: Sequence[Pod]) -> Displacement:
    """Of these pods, those whose slices go or are no longer planned for them."""
    displaced, draining = set[Ref](), set[Ref]()
    for actions in pool_actions:
        if actions.displaced:
            displaced |= {
                pod.ref for pod in pods if pod.ref in actions.displaced and not pod.terminating
            }
            draining |= displaced & actions.draining
    return Displacement(frozenset(displaced), frozenset(draining)) if displaced else NO_DISPLACEMENT


def previous_deployments(
    workloads: Iterable[Workload], pods: Sequence[Pod], displaced: Collection[Ref], surge: int
) -> Mapping[Ref, int]:
    """Deployments of former variants that should have another number of replicas.

    Every replica of a former variant that goes takes its place in the Deployment with it; where
    nothing planned is free, `surge` more start on what there is.
    """
    replicas = {}
    for workload in workloads:
        variant_pods = [
            pod for pod in pods if pod.variant == workload.variant and not pod.terminating
        ]
        desired = sum(pod.ref in displaced for pod in variant_pods) + (surge if variant_pods else 0)
        surge = 0 if variant_pods else surge
        if desired != workload.replicas:
            replicas[workload.ref] = desired
    return replicas
