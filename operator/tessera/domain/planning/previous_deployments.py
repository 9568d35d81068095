"""Deployments of previous variants, which give way as the replicas that succeed them get ready.

Where a successor waits for the very device that one of their replicas holds, one replica goes
first; the next one goes when no other is away.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.hardware.pools import HardwareOffer
from tessera.domain.observed.snapshot import Pod, Snapshot, Workload
from tessera.domain.placement.cover import CoverOption, Need, least_cover
from tessera.domain.planning.service_plan import VariantPlan
from tessera.domain.rollout.devices import free_devices
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
    type_capacities: Mapping[str, int],
    lasting: Collection[str],
    yielding: Collection[Ref],
    timeout: timedelta,
    displacement: Displacement,
) -> Mapping[Ref, DrainPlan]:
    """Return the replicas of Deployments of previous variants, and which of them leave.

    Their ready replicas cover what is `missing` of the ready ones of present variants, but for one
    of the `yielding` ones, whose successor gets its device. Those of another instance type count by
    the recorded load (`type_capacities`). One of a `lasting` variant that is lost comes again,
    since the change may never end.
    """
    pods_by_ref = {workload.ref: pods_of_workload(pods, workload) for workload in workloads}
    options = [
        CoverOption(
            cost=1,
            capacity=type_capacities.get(workload.variant)
            or _capacity(status, workload.variant, missing),
            is_firm=True,
            most=max(
                sum(pod.takes_requests for pod in pods_by_ref[workload.ref]),
                workload.replicas if workload.variant in lasting else 0,
            ),
        )
        for workload in workloads
    ]
    counts = list(least_cover(options, missing))
    yields = [
        count if any(pod.ref in yielding for pod in pods_by_ref[workload.ref]) else 0
        for workload, count in zip(workloads, counts, strict=True)
    ]
    if any(yields):
        counts[yields.index(max(yields))] -= 1
    return {
        workload.ref: plan_drain(
            snapshot,
            workload,
            count,
            pods_by_ref[workload.ref],
            timeout,
            displacement=displacement,
            preferred=yielding,
        )
        for workload, count in zip(workloads, counts, strict=True)
    }


def _capacity(status: InferenceServiceStatus, variant: str, missing: Need) -> int:
    """Return what a replica serves by the last status, in thousandths of a token per second.

    Of a variant that is not there any more that is its share of what is missing.
    """
    rates = (
        each.input_tokens_per_second or each.tokens_per_second
        for each in status.all_variants
        if each.name == variant
    )
    share = -(-missing.capacity // max(1, missing.pods))
    return max(1, next((1000 * rate for rate in rates), share))


def yielding_previous(
    snapshot: Snapshot,
    variants: Sequence[VariantPlan],
    pods: Sequence[Pod],
    disruptions: Disruptions,
) -> frozenset[Ref]:
    """Return the replicas of previous variants of which one is to give its device to a successor.

    One waits for it and no other device is free for that, or a quota refuses it beside the replica.
    No further replica is away: the floor serves, none starts or ends, and at most the one that
    gives way drains.
    """
    names = {variant.choice.variant for variant in variants}
    own = [pod for pod in pods if pod.variant in names]
    previous = [pod for pod in pods if pod.variant not in names and pod.node is not None]
    draining = [pod for pod in previous if pod.draining_since is not None]
    if not disruptions.allows_replacement():
        return frozenset()
    starts = any(pod.node is not None and not pod.takes_requests for pod in own)
    if starts or len(draining) > 1 or any(pod.terminating for pod in (*own, *previous)):
        return frozenset()
    stuck = {pod.variant for pod in own if pod.unschedulable}
    for variant in variants:
        offer, is_refused = variant.choice.offer, _is_refused(variant, own)
        waits = is_refused or variant.choice.variant in stuck
        if not waits or offer.awaits_nodes:
            continue
        if yielding := _yielding_to(snapshot, offer, previous, is_refused=is_refused):
            return yielding
    return frozenset()


def _is_refused(variant: VariantPlan, pods: Sequence[Pod]) -> bool:
    workload = variant.workload
    return workload is not None and workload.is_refused(len(pods_of_workload(pods, workload)))


def _yielding_to(
    snapshot: Snapshot, offer: HardwareOffer, previous: Sequence[Pod], *, is_refused: bool
) -> frozenset[Ref]:
    """Return the pods whose devices are enough for a replica that finds none free, or may not."""
    resource, needed = offer.hardware.resource, offer.hardware.devices
    free = free_devices(snapshot.nodes, snapshot.pods, offer)
    if not is_refused and any(devices >= needed for devices in free.values()):
        return frozenset()
    return frozenset(
        pod.ref
        for pod in previous
        if pod.node is not None
        and pod.node in free
        and free[pod.node] + pod.devices.get(resource, 0) >= needed
    )
