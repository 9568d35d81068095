"""What a repartition means for one service: replaced pods, and Deployments of previous variants."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from tessera.api.ref import Ref
from tessera.domain.observed.snapshot import Pod, Workload
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.scaling.drain import NO_DISPLACEMENT, Displacement


def displaced_pods(pool_actions: Iterable[PoolActions], pods: Sequence[Pod]) -> Displacement:
    """Return those of a service's pods that lose their slices, and which of them drain."""
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
    """Return the new replica count of every Deployment of a previous variant that has to change.

    `surge` is the number of extra replicas on previous variants.
    """
    replicas = {}
    for workload in workloads:
        variant_pods = [
            pod for pod in pods if pod.variant == workload.variant and not pod.terminating
        ]
        # Its displaced pods are the only ones it keeps: with each that leaves it shrinks by one,
        # so the Deployment controller starts no successor on the previous profile.
        desired = sum(pod.ref in displaced for pod in variant_pods) + (surge if variant_pods else 0)
        # The first Deployment with pods takes the whole surge.
        surge = 0 if variant_pods else surge
        if desired != workload.replicas:
            replicas[workload.ref] = desired
    return replicas
