"""Deployments of previous variants, which give way as the replicas that succeed them get ready.

Where a successor waits for the very device that one of their replicas holds, one replica goes
first; the next one goes when no other is away.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.observed.snapshot import Node, Pod, Snapshot, Workload
from tessera.domain.placement.cover import CoverOption, Need, least_cover
from tessera.domain.planning.service_plan import VariantPlan
from tessera.domain.rollout.disruptions import Disruptions
from tessera.domain.rollout.drain import Displacement, DrainPlan, plan_drain
from tessera.domain.service.current_objects import pods_of_workload


def previous_drains(  # noqa: PLR0913 - what is there, and what may leave
    snapshot: Snapshot,
    status: InferenceServiceStatus,
    workloads: Sequence[Workload],
    pods: Sequence[Pod],
    missing: Need,
    *,
    one_gives_way: bool,
    timeout: timedelta,
    displacement: Displacement,
) -> Mapping[Ref, DrainPlan]:
    """Return the replicas of Deployments of previous variants, and which of them leave.

    Their ready replicas cover what is `missing` of the ready ones of present variants; where one
    gives way its successor gets its device.
    """
    pods_by_ref = {workload.ref: pods_of_workload(pods, workload) for workload in workloads}
    options = [
        CoverOption(
            cost=1,
            capacity=_reported_capacity(status, workload.variant),
            is_firm=True,
            most=sum(pod.takes_requests for pod in pods_by_ref[workload.ref]),
        )
        for workload in workloads
    ]
    counts = list(least_cover(options, missing))
    if one_gives_way and any(counts):
        counts[counts.index(max(counts))] -= 1
    return {
        workload.ref: plan_drain(
            snapshot,
            workload,
            count,
            pods_by_ref[workload.ref],
            timeout,
            displacement=displacement,
        )
        for workload, count in zip(workloads, counts, strict=True)
    }


def _reported_capacity(status: InferenceServiceStatus, variant: str) -> int:
    """Return what a replica serves by the last status, in thousandths of a token per second."""
    rates = (
        each.input_tokens_per_second or each.tokens_per_second
        for each in status.all_variants
        if each.name == variant
    )
    return 1000 * max(1, next(rates, 1))


def needs_device_of_previous(
    snapshot: Snapshot,
    variants: Sequence[VariantPlan],
    pods: Sequence[Pod],
    disruptions: Disruptions,
) -> bool:
    """Return whether one of the replicas of previous variants is to give its device to a successor.

    One waits for it, no other device is free for that, and no further replica is away: the floor
    serves, none starts or ends, and at most the one that gives way drains.
    """
    names = {variant.choice.variant for variant in variants}
    own = [pod for pod in pods if pod.variant in names]
    previous = [pod for pod in pods if pod.variant not in names and pod.node is not None]
    draining = [pod for pod in previous if pod.draining_since is not None]
    if not disruptions.allows_replacement():
        return False
    starts = any(pod.node is not None and not pod.takes_requests for pod in own)
    if starts or len(draining) > 1 or any(pod.terminating for pod in (*own, *previous)):
        return False
    stuck = {pod.variant for pod in own if pod.unschedulable}
    for variant in variants:
        offer = variant.choice.offer
        if variant.choice.variant not in stuck or offer.awaits_nodes:
            continue
        selector = offer.node_selector.items()
        nodes = [node for node in snapshot.nodes if selector <= node.labels.items()]
        names_of_nodes = {node.name for node in nodes}
        if any(pod.node in names_of_nodes for pod in previous):
            devices = offer.hardware.resource, offer.hardware.devices
            return not any(_has_free(snapshot, node, *devices) for node in nodes)
    return False


def _has_free(snapshot: Snapshot, node: Node, resource: str, devices: int) -> bool:
    used = sum(
        pod.devices.get(resource, 0)
        for pod in snapshot.pods
        if pod.node == node.name and pod.ended is None
    )
    return node.schedulable and node.allocatable.get(resource, 0) - used >= devices
