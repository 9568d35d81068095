"""What a repartition means for one service: replaced pods, and Deployments of previous variants."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tessera.api.ref import Ref
from tessera.domain.observed.snapshot import Pod, Workload
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.rollout.drain import DRAINED_DELETION_COST, NO_DISPLACEMENT, Displacement
from tessera.domain.rollout.strategy import is_rolling_out
from tessera.domain.service.current_objects import pods_of_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousVariants:
    """What is done about the Deployments of a service's previous variants."""

    replicas: Mapping[Ref, int] = field(default_factory=dict)
    """New replica counts, where they change."""
    leaving: tuple[Pod, ...] = ()
    """Pods that no pool displaces and that are drained now."""


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


def previous_variants(
    workloads: Iterable[Workload],
    pods: Sequence[Pod],
    displacement: Displacement,
    *,
    surge: int,
    enough_ready: bool,
) -> PreviousVariants:
    """Return what to do about these Deployments of previous variants.

    `surge` is the number of extra replicas on them. A serving pod that no pool displaces is on a
    node that left its pool: it stays until the present variant has `enough_ready`, then it drains.
    """
    replicas, leaving = {}, list[Pod]()
    for workload in workloads:
        variant_pods = [pod for pod in pods_of_workload(pods, workload) if not pod.terminating]
        others = [
            pod
            for pod in variant_pods
            if pod.ref not in displacement.displaced
            and (pod.takes_requests or pod.draining_since is not None)
        ]
        leaving += others if enough_ready else ()
        marked = enough_ready * sum(pod.deletion_cost == DRAINED_DELETION_COST for pod in others)
        # Its displaced pods are the only ones of the pool that it keeps: with each that leaves it
        # shrinks by one, so the Deployment controller starts no successor on the previous profile.
        displaced_count = sum(pod.ref in displacement.displaced for pod in variant_pods)
        desired = displaced_count + len(others) - marked + (surge if variant_pods else 0)
        is_rolling = not workload.rollout_complete or is_rolling_out(variant_pods)
        if not enough_ready and is_rolling:
            # Its replicas that start are no surplus: with fewer, their predecessors would go.
            desired = max(desired, workload.replicas)
        # The first Deployment with pods takes the whole surge.
        surge = 0 if variant_pods else surge
        if desired != workload.replicas:
            replicas[workload.ref] = desired
    return PreviousVariants(replicas=replicas, leaving=tuple(leaving))
