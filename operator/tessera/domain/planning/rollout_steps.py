"""Which variant of a service replaces a replica, and what has to serve meanwhile.

One variant steps at a time. Where its pool is full, one more replica may serve in another pool
until the rollout has ended.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.api.service_status import RolloutFloorStatus
from tessera.domain.hardware.pools import HardwareOffer
from tessera.domain.observed.snapshot import Pod, Snapshot
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.planning.rollout_draft import RolloutDraft, draft_variant, is_withdrawn
from tessera.domain.rollout.devices import (
    first_waiting,
    free_replicas,
    holders_by_node,
    ready_nodes,
)
from tessera.domain.rollout.disruptions import Disruptions
from tessera.domain.rollout.rollout_floor import ReplacedService, RolloutFloor, rollout_floor
from tessera.domain.rollout.strategy import surge_timed_out
from tessera.domain.rollout.template_rollout import START_TOLERANCE, RolloutCounts
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.service.proposal import guaranteed_replicas
from tessera.domain.service.variant_counts import VariantCount


def stepping_draft(drafts: Sequence[RolloutDraft]) -> RolloutDraft | None:
    """Return the variant that replaces a replica; one of a service does at a time.

    Those with a free device come first: then an extra replica may serve there for the others.
    """
    # One that is to have no replica replaces none.
    rolling = [draft for draft in drafts if draft.rollout.older and draft.rollout.desired]
    rolling.sort(key=lambda draft: not draft.rollout.has_capacity)
    in_step = next((draft for draft in rolling if draft.rollout.in_step), None)
    return in_step or next(iter(rolling), None)


def extra_elsewhere(  # noqa: PLR0913, PLR0917 - what is decided of the service
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    counts: Sequence[VariantCount],
    drafts: Sequence[RolloutDraft],
    stepping: RolloutDraft,
    floor: int,
    snapshot: Snapshot,
) -> RolloutDraft | None:
    """Return another variant with one replica more, while one of this is replaced in place.

    It starts first, where a device is free and granted and the floor would be one less without it,
    and stays until the rollout has ended. One that does not get ready in time is given up.
    """
    rollout = stepping.rollout
    if rollout.has_capacity or not rollout.is_in_place or is_withdrawn(inputs, stepping):
        return None
    if _count_serving(inputs, drafts) > floor:
        return None
    by_variant = {each.variant_count.choice.variant: each for each in drafts}
    for count in sorted(counts, key=lambda count: count.choice.hourly.nanos):
        variant = count.choice.variant
        granted = variant in inputs.with_surge_capacity - inputs.unpaid_surges
        if not granted or variant == stepping.variant_count.choice.variant:
            continue
        draft = by_variant.get(variant)
        if draft is None:
            draft = draft_variant(inputs, spec, count, snapshot)
        desired = max(draft.rollout.desired, draft.lasting + 1)
        extra = draft._replace(rollout=replace(draft.rollout, desired=desired))
        if not draft.rollout.older and (
            extra.has_surplus or not (rollout.in_step or _is_given_up(inputs, extra))
        ):
            return extra
    return None


def _is_given_up(inputs: ServicePlanInputs, extra: RolloutDraft) -> bool:
    """Return whether a replica that was to start on another variant did not get ready in time."""
    rollout, status = extra.rollout, inputs.proposal.service.status
    lead = expected_lead(
        inputs.proposal.objects.pods, status.start, extra.variant_count.choice.variant
    )
    return (
        rollout.is_refused
        or surge_timed_out(rollout.pods, rollout.at)
        or any(
            pod.bound is not None
            and not pod.takes_requests
            and not pod.terminating
            and rollout.at - pod.bound >= lead + START_TOLERANCE
            for pod in rollout.pods
        )
    )


def floor_of_rollout(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    drafts: Sequence[RolloutDraft],
    disruptions: Disruptions,
    snapshot: Snapshot,
) -> RolloutFloor | None:
    """Return what a rollout of a service keeps; None while no replica is replaced."""
    objects, service = inputs.proposal.objects, inputs.proposal.service
    counts = inputs.proposal.counts
    desired = {count.choice.variant: count.replicas for count in counts}
    has_previous = any(pod.variant not in desired for pod in objects.pods)
    if not has_previous and not any(draft.rollout.older for draft in drafts):
        return None
    by_variant = Counter(pod.variant for pod in objects.pods if pod.ref in disruptions.healthy)
    # Money that refuses a successor takes nothing of the guaranteed replicas.
    guaranteed = min(
        sum(desired.values()), guaranteed_replicas(spec), inputs.proposal.disruptions.floor
    )
    live = ready_nodes("", snapshot.nodes)
    versions = {service.ref.base, service.ref.candidate}
    wait = START_TOLERANCE + expected_lead(
        objects.pods, service.status.start, counts[0].choice.variant
    )
    record = service.status.rollout_floor
    starting = [pod for draft in drafts for pod in draft.rollout.pods]
    if record is None:
        # A successor of the last rollout may start yet, whose template is older by now.
        older = [pod for draft in drafts for each in draft.rollout.older for pod in each.pods]
        starting += [pod for pod in older if snapshot.at - (pod.bound or snapshot.at) < wait]
    leaving = [pod for pod in objects.pods if pod.is_stopping]
    nodes = {pod.node for pod in leaving if pod.node is not None}
    if record is not None and record.step is not None:
        nodes.add(record.step.node)
    holders = holders_by_node(snapshot.pods)
    replaced = ReplacedService(
        desired=sum(draft.rollout.desired for draft in drafts),
        guaranteed=guaranteed,
        staying=sum(
            min(count, desired.get(variant, count)) for variant, count in by_variant.items()
        ),
        leaving=leaving,
        is_starting=any(
            pod.node in live and not pod.takes_requests and not pod.terminating for pod in starting
        ),
        nodes_with_free_devices=_nodes_with_free_devices(drafts, snapshot),
        others=[
            pod for node in nodes for pod in holders.get(node, ()) if pod.service not in versions
        ],
    )
    if service.ref != service.ref.base:
        # Its status is not written, and it serves no user.
        status = RolloutFloorStatus(replicas=replaced.desired)
        return RolloutFloor(status, is_recorded=True)
    floor = rollout_floor(record, replaced, wait, snapshot.at)
    return floor._replace(guaranteed=guaranteed)


def _nodes_with_free_devices(drafts: Sequence[RolloutDraft], snapshot: Snapshot) -> frozenset[str]:
    # No device is of use to a pod that a quota refuses.
    offers = [draft.variant_count.choice.offer for draft in drafts if not draft.rollout.is_refused]
    free = (free_replicas(snapshot.nodes, snapshot.pods, offer) for offer in offers)
    return frozenset[str]().union(*free)


def with_shortage(drafts: Sequence[RolloutDraft], floor: RolloutFloor | None) -> list[RolloutDraft]:
    """Return the drafts with the replicas that had no device when the rollout began.

    What other variants find no device for is not missing in the one that replaces a replica.
    """
    if floor is None or not floor.is_recorded:
        return list(drafts)
    missing = sum(draft.rollout.desired for draft in drafts) - floor.replicas
    unplaced = [draft.rollout.unplaced for draft in drafts]
    return [
        draft._replace(
            rollout=replace(
                draft.rollout, shortage=max(0, missing - sum(unplaced) + unplaced[index])
            )
        )
        for index, draft in enumerate(drafts)
    ]


def count_replicas(  # noqa: PLR0913, PLR0917 - what is decided of the service, and what there is
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    drafts: Sequence[RolloutDraft],
    stepping: RolloutDraft | None,
    extra: RolloutDraft | None,
    disruptions: Disruptions,
    snapshot: Snapshot,
    *,
    is_held: bool,
    is_recorded: bool,
) -> Sequence[RolloutCounts]:
    """Return the replicas of all Deployments: one variant at a time replaces one replica.

    Where none of the older templates' serves there is nothing to wait for. In place none leaves
    before the status has what the rollout keeps, which is the floor of the `disruptions`.
    """
    serving = _count_serving(inputs, drafts)
    service = inputs.proposal.service.ref
    may_step = not is_held and (extra is None or extra.has_surplus)
    may_leave, counts = disruptions.allowed, []
    for draft in drafts:
        # No other variant has a successor for the device of one that leaves.
        is_replaced = draft is stepping and disruptions.allows_replacement()
        rollout_counts = draft.rollout.counts(
            may_step=may_step if draft is stepping else not is_held and draft.replaces_none,
            may_take=draft is stepping
            and is_recorded
            and serving >= _needed(inputs, spec, draft, extra, disruptions.floor)
            and waiting_pod(service, draft.variant_count.choice.offer, snapshot) is None,
            may_leave=may_leave + is_replaced,
            is_withdrawn=is_withdrawn(inputs, draft),
        )
        leaving = sum(
            max(0, each.healthy - rollout_counts.older[each.workload.ref])
            for each in draft.rollout.older
        )
        may_leave = max(0, may_leave - leaving)
        counts.append(rollout_counts)
    return counts


def _needed(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    draft: RolloutDraft,
    extra: RolloutDraft | None,
    floor: int,
) -> int:
    """Return how many replicas have to serve before one leaves for its successor.

    With an extra one elsewhere none of the floor is missing, unless it stands for a lost device.
    """
    if extra is not None:
        return floor + any(_comes_or_goes(pod) for pod in inputs.proposal.objects.pods)
    return floor if draft.rollout.is_paid else min(floor, guaranteed_replicas(spec) + 1)


def _comes_or_goes(pod: Pod) -> bool:
    """Return whether a replica starts, drains or ends; one on a dead node does not start."""
    starts = pod.node is not None and not pod.takes_requests and not pod.containers_ready
    return starts or pod.is_stopping


def _count_serving(inputs: ServicePlanInputs, drafts: Sequence[RolloutDraft]) -> int:
    """Return the replicas that take requests and stay."""
    pods = inputs.proposal.objects.pods
    names = {each.variant_count.choice.variant for each in drafts}
    serving = sum(pod.takes_requests for pod in pods if pod.variant not in names)
    return serving + sum(each.ready_that_stay for each in drafts)


def waiting_pod(service: Ref, offer: HardwareOffer, snapshot: Snapshot) -> Pod | None:
    """Return a pod of somebody else that would take the device that a replica in place gives back.

    It waits for such a device, and may run on a node of the pool. Of services that wait for each
    other the first by name goes on.
    """
    pod = first_waiting(snapshot.nodes, snapshot.pods, offer)
    return pod if pod is not None and (pod.unmanaged or pod.service < service) else None
