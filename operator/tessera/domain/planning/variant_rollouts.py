"""The Deployments of a service: for each variant the newest template's, and those it replaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import VariantReason
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, Snapshot, Workload
from tessera.domain.placement.split_state import VariantChange
from tessera.domain.placement.variant_cost import capacity_of
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.planning.service_plan import VariantPlan
from tessera.domain.rollout.devices import usable_nodes
from tessera.domain.rollout.drain import DrainPlan, plan_drain
from tessera.domain.rollout.replica_conflict import (
    ReplicaConflict,
    WrittenReplicas,
    is_written_by_others,
    leaves_enough,
    next_conflict,
)
from tessera.domain.rollout.strategy import is_rolling_out, surge_timed_out
from tessera.domain.rollout.template_rollout import (
    START_TOLERANCE,
    OlderTemplate,
    RolloutCounts,
    TemplateRollout,
)
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.service.current_objects import pods_of_variant, pods_of_workload
from tessera.domain.service.proposal import guaranteed_replicas
from tessera.domain.service.template_version import (
    TemplateDecision,
    decide_template,
    template_digest,
)
from tessera.domain.service.variant_counts import VariantCount


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRollouts:
    """The plans of all variants, and what becomes of their older templates' Deployments."""

    variants: tuple[VariantPlan, ...]
    older: Mapping[Ref, DrainPlan]
    """Their replicas, and which of them leave."""
    removable: tuple[Ref, ...]
    """Those to delete now."""
    is_rolling: bool
    """A replica may leave for one of a newer template, which is an extra until then."""

    @property
    def is_replacing(self) -> bool:
        """Return whether a replica leaves for one of a newer template."""
        return any(drain.draining for drain in self.older.values())

    def replicas(self, workloads: Sequence[Workload]) -> Mapping[Ref, int]:
        """Return the new replica counts of older templates' Deployments, where they change."""
        return {
            each.ref: self.older[each.ref].replicas
            for each in workloads
            if each.ref in self.older
            and each.ref not in self.removable
            and self.older[each.ref].replicas != each.replicas
        }


def plan_variants(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    counts: Sequence[VariantCount],
    snapshot: Snapshot,
    *,
    is_held: bool,
) -> VariantRollouts:
    """Return the Deployments of all variants with replicas, and of the first one.

    While rollouts are held no replica starts or leaves for one.
    """
    drafts = [
        _draft_variant(inputs, spec, count, snapshot.nodes, snapshot.at)
        for index, count in enumerate(counts)
        if not index
        or count.replicas
        or pods_of_variant(inputs.proposal.objects.pods, count.choice)
    ]
    stepping = _stepping(drafts)
    extra = None
    if stepping is not None and not is_held:
        extra = _extra_elsewhere(inputs, spec, counts, drafts, stepping, snapshot)
    if extra is not None:
        variant = extra.variant_count.choice.variant
        drafts = [each for each in drafts if each.variant_count.choice.variant != variant]
        drafts.append(extra)
    replicas = _count_replicas(inputs, spec, drafts, stepping, extra, snapshot, is_held=is_held)
    planned = list(zip(drafts, replicas, strict=True))
    older = {
        each.workload.ref: plan_drain(
            snapshot,
            each.workload,
            rollout.older[each.workload.ref],
            each.pods,
            spec.drain.timeout,
            displacement=inputs.displacement,
            preferred=each.yielding if draft.rollout.is_in_place else (),
        )
        for draft, rollout in planned
        for each in draft.rollout.older
    }
    return VariantRollouts(
        variants=tuple(
            _plan_variant(
                inputs, spec, draft, rollout, snapshot, extra if draft is stepping else None
            )
            for draft, rollout in planned
        ),
        older=older,
        removable=tuple(ref for rollout in replicas for ref in rollout.removable),
        is_rolling=any(each.rollout.older for each in drafts),
    )


class _Draft(NamedTuple):
    """A variant before its rollout is decided."""

    variant_count: VariantCount
    template: TemplateDecision
    rollout: TemplateRollout

    @property
    def lasting(self) -> int:
        """Return the desired replicas that stay once others are ready."""
        return self.rollout.desired - min(self.variant_count.bridging, self.rollout.desired)

    @property
    def has_surplus(self) -> bool:
        """Return whether it serves with a replica beyond those that last."""
        return self.rollout.ready > max(
            0, self.variant_count.replicas - self.variant_count.bridging
        )

    @property
    def replaces_none(self) -> bool:
        """Return whether no replica of an older template serves."""
        older = self.rollout.older
        return bool(older) and not any(each.ready for each in older)

    @property
    def ready_that_stay(self) -> int:
        ready = self.rollout.ready + sum(each.ready for each in self.rollout.older)
        return min(ready, self.rollout.desired)


def _draft_variant(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    count: VariantCount,
    nodes: Sequence[Node],
    at: datetime,
) -> _Draft:
    objects, choice = inputs.proposal.objects, count.choice
    pods = pods_of_variant(objects.pods, choice)
    workloads = objects.workloads_of(choice.variant)
    first = [
        each
        for each in workloads
        if not each.replicas and not each.template_digest and not pods_of_workload(pods, each)
    ]
    template = decide_template(
        inputs.newest_template,
        inputs.proposal.service,
        spec,
        choice,
        workloads,
        unused=next(iter(first), None),
    )
    workload, usable = template.workload, frozenset[str]()
    if any(each is not workload for each in workloads):
        usable = usable_nodes(nodes, choice.offer)
    older = [
        OlderTemplate(workload=each, pods=pods_of_workload(pods, each), usable_nodes=usable)
        for each in workloads
        if each is not workload
    ]
    others = {pod.ref for each in older for pod in each.pods}
    rollout = TemplateRollout(
        workload=workload,
        pods=[pod for pod in pods if pod.ref not in others],
        older=older,
        desired=_remaining_replicas(inputs, count, pods),
        at=at,
        has_capacity=choice.variant in inputs.with_surge_capacity,
        # Those within the minimum would have to be granted anew if they left first.
        is_paid=choice.variant not in inputs.unpaid_surges or _are_all_guaranteed(inputs, spec),
        has_fallback=bool(older)
        and older[0].workload is workloads[0]
        and _was_complete(inputs.proposal.service, older[0]),
    )
    return _Draft(count, template, rollout)


def _are_all_guaranteed(inputs: ServicePlanInputs, spec: InferenceServiceSpec) -> bool:
    """Return whether all desired replicas are within the minimum that no budget takes."""
    grant = inputs.grant
    desired = (
        [count.replicas for count in inputs.proposal.counts] if grant is None else grant.counts
    )
    return sum(desired) <= guaranteed_replicas(spec)


def _stepping(drafts: Sequence[_Draft]) -> _Draft | None:
    """Return the variant that replaces a replica; one of a service does at a time.

    Those with a free device come first: then an extra replica may serve there for the others.
    """
    rolling = [draft for draft in drafts if draft.rollout.older]
    rolling.sort(key=lambda draft: not draft.rollout.has_capacity)
    in_step = next((draft for draft in rolling if draft.rollout.in_step), None)
    return in_step or next(iter(rolling), None)


def _count_replicas(  # noqa: PLR0913 - what is decided of the service, and what there is
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    drafts: Sequence[_Draft],
    stepping: _Draft | None,
    extra: _Draft | None,
    snapshot: Snapshot,
    *,
    is_held: bool,
) -> Sequence[RolloutCounts]:
    """Return the replicas of all Deployments: one variant at a time replaces one replica.

    Where none of the older templates' serves there is nothing to wait for.
    """
    serving = _count_serving(inputs, drafts)
    may_step = not is_held and (extra is None or extra.has_surplus)
    return [
        draft.rollout.counts(
            may_step=may_step if draft is stepping else not is_held and draft.replaces_none,
            may_take=draft is stepping
            and serving >= _needed(inputs, spec, draft, extra)
            and _waiting_pod(inputs, draft, snapshot) is None,
            is_withdrawn=_is_withdrawn(inputs, draft),
        )
        for draft in drafts
    ]


def _needed(
    inputs: ServicePlanInputs, spec: InferenceServiceSpec, draft: _Draft, extra: _Draft | None
) -> int:
    """Return how many replicas have to serve before one leaves for its successor.

    With an extra one elsewhere none of the floor is missing, unless it stands for a lost device.
    """
    floor = inputs.proposal.disruptions.floor
    if extra is not None:
        return floor + any(_comes_or_goes(pod) for pod in inputs.proposal.objects.pods)
    return floor if draft.rollout.is_paid else min(floor, guaranteed_replicas(spec) + 1)


def _comes_or_goes(pod: Pod) -> bool:
    """Return whether a replica starts, drains or ends; one on a dead node does not start."""
    starts = pod.node is not None and not pod.takes_requests and not pod.containers_ready
    return starts or pod.draining_since is not None or pod.terminating


def _count_serving(inputs: ServicePlanInputs, drafts: Sequence[_Draft]) -> int:
    """Return the replicas that take requests and stay."""
    pods = inputs.proposal.objects.pods
    names = {each.variant_count.choice.variant for each in drafts}
    serving = sum(pod.takes_requests for pod in pods if pod.variant not in names)
    return serving + sum(each.ready_that_stay for each in drafts)


def _extra_elsewhere(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    counts: Sequence[VariantCount],
    drafts: Sequence[_Draft],
    stepping: _Draft,
    snapshot: Snapshot,
) -> _Draft | None:
    """Return another variant with one replica more, while one of this is replaced in place.

    It starts first, where a device is free and granted and the floor would be one less without it,
    and stays until the rollout has ended. One that does not get ready in time is given up.
    """
    rollout = stepping.rollout
    if rollout.has_capacity or not rollout.is_in_place or _is_withdrawn(inputs, stepping):
        return None
    if _count_serving(inputs, drafts) > inputs.proposal.disruptions.floor:
        return None
    by_variant = {each.variant_count.choice.variant: each for each in drafts}
    for count in sorted(counts, key=lambda count: count.choice.hourly.nanos):
        variant = count.choice.variant
        granted = variant in inputs.with_surge_capacity - inputs.unpaid_surges
        if not granted or variant == stepping.variant_count.choice.variant:
            continue
        draft = by_variant.get(variant)
        if draft is None:
            draft = _draft_variant(inputs, spec, count, snapshot.nodes, snapshot.at)
        desired = max(draft.rollout.desired, draft.lasting + 1)
        extra = draft._replace(rollout=replace(draft.rollout, desired=desired))
        if not draft.rollout.older and (
            extra.has_surplus or not (rollout.in_step or _is_given_up(inputs, extra))
        ):
            return extra
    return None


def _is_given_up(inputs: ServicePlanInputs, extra: _Draft) -> bool:
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


def _was_complete(service: ObservedService, older: OlderTemplate) -> bool:
    """Return whether all replicas of a variant were of a Deployment's template at a time.

    Where no status says so, as one that was lost, what serves counts.
    """
    workload, digest = older.workload, older.workload.template_digest
    templates = service.status.templates
    if not any(each.complete for each in templates if each.variant == workload.variant):
        return older.ready > 0
    if workload.record is not None:
        digest = template_digest(workload.record)
    return digest in {each.complete for each in templates}


def _waiting_pod(inputs: ServicePlanInputs, draft: _Draft, snapshot: Snapshot) -> Pod | None:
    """Return a pod of somebody else that would take the device that a replica in place gives back.

    It waits for such a device, and may run on a node of the pool. Of services that wait for each
    other the first by name goes on.
    """
    service, offer = inputs.proposal.service.ref, draft.variant_count.choice.offer
    resource, usable = offer.hardware.resource, usable_nodes(snapshot.nodes, offer)
    labels = [node.labels.items() for node in snapshot.nodes if node.name in usable]
    waiting = (
        pod
        for pod in snapshot.pods
        if pod.unschedulable is not None
        and pod.devices.get(resource, 0) > 0
        and not pod.terminating
        and (pod.unmanaged or pod.service < service)
        and any(set(pod.node_selector) <= each for each in labels)
    )
    return next(waiting, None)


def _blocker(inputs: ServicePlanInputs, draft: _Draft, snapshot: Snapshot) -> str | None:
    """Return for whose pod no replica leaves for its successor, which finds no device."""
    rollout = draft.rollout
    if not rollout.older or not any(pod.unschedulable for pod in rollout.pods):
        return None
    pod = _waiting_pod(inputs, draft, snapshot)
    return None if pod is None else f"Pod/{pod.ref.name} of namespace {pod.ref.namespace}"


def _unusable_nodes(rollout: TemplateRollout) -> tuple[str, ...]:
    """Return the nodes whose devices no successor can take, where it waits for one of them."""
    if not rollout.is_stuck:
        return ()
    nodes = {pod.node for each in rollout.older for pod in each.pods}
    return tuple(sorted(node for node in nodes if node is not None))


def _is_withdrawn(inputs: ServicePlanInputs, draft: _Draft) -> bool:
    """Return whether the newest template of a variant did not become ready in time."""
    if not draft.rollout.older:
        return False
    objects, status = inputs.proposal.objects, inputs.proposal.service.status
    variant, digest = draft.variant_count.choice.variant, draft.template.digest
    reported = [each.withdrawn for each in status.templates if each.variant == variant]
    if digest in inputs.withdrawn or digest in reported:
        return True
    if any(each.complete == digest for each in status.templates):
        return False
    last_started = status.start.pod if status.start is not None else None
    lead = expected_lead(objects.pods, status.start, variant)
    return draft.rollout.is_overdue(lead, last_started)


def _plan_variant(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    draft: _Draft,
    counts: RolloutCounts,
    snapshot: Snapshot,
    extra: _Draft | None,
) -> VariantPlan:
    """Return the plan of the Deployment of a variant's newest template.

    An `extra` one of another variant serves while its replicas are replaced in place.
    """
    rollout, workload, replicas = draft.rollout, draft.template.workload, counts.newest
    conflict = _conflict(inputs, draft, counts.newest, snapshot.at)
    if conflict is not None and workload is not None and conflict.stands(snapshot.at):
        replicas = workload.replicas
    return VariantPlan(
        template=draft.template,
        desired=draft.variant_count.replicas,
        drain=plan_drain(
            snapshot,
            workload,
            replicas,
            rollout.pods,
            spec.drain.timeout,
            displacement=inputs.displacement,
        ),
        surge=not rollout.is_in_place,
        extra_on=extra.variant_count.choice if extra is not None else None,
        is_surge_unpaid=not rollout.is_paid,
        older=tuple(each.workload.ref for each in rollout.older),
        is_withdrawn=counts.is_withdrawn,
        rolls_in_place=not rollout.has_capacity and is_rolling_out(rollout.pods),
        blocker=_blocker(inputs, draft, snapshot),
        unusable_nodes=_unusable_nodes(rollout),
        # With an extra one elsewhere it says from the start that this variant is in a rollout.
        waits=workload is None and bool(rollout.older) and not counts.newest and extra is None,
        replica_conflict=conflict,
        change=_change(inputs, draft.variant_count),
    )


def _change(inputs: ServicePlanInputs, count: VariantCount) -> VariantChange | None:
    """Return why a variant gets another number of replicas; within its grant."""
    proposal, grant, choice = inputs.proposal, inputs.grant, count.choice
    proposed = next(each.replicas for each in proposal.counts if each.choice == choice)
    if grant is None or count.replicas >= proposed:
        changes = (each for each in proposal.changes if each.variant == choice.variant)
        return next(changes, None)
    return VariantChange(
        variant=choice.variant,
        added=count.replicas - count.existing,
        reason=VariantReason(grant.reason),
        message=f"{count.replicas} of {counted(proposed, 'replica')} at {choice.hourly} per hour "
        f"each are granted: {grant.shortage}",
    )


def _remaining_replicas(inputs: ServicePlanInputs, count: VariantCount, pods: Sequence[Pod]) -> int:
    """Return the replicas of a variant that it has beside those whose slices are removed.

    Those that stay until others are ready need no replacement there. While such replicas drain, no
    other variant gives up any, since capacity was judged with them.
    """
    displacement = inputs.displacement
    displaced = sum(pod.ref in displacement.displaced for pod in pods)
    replicas = count.replicas - min(count.bridging, count.replicas, displaced)
    if len(inputs.proposal.counts) > 1 and displacement.draining:
        serving = sum(
            pod.takes_requests and pod.ref not in displacement.displaced and not pod.terminating
            for pod in pods
        )
        replicas = max(replicas, serving)
    return replicas


def is_moving(variant: VariantPlan, pods: Sequence[Pod]) -> bool:
    """Return whether the time alone may change what is decided for a Deployment."""
    # A surge replica stays pending for a while at most.
    return (
        variant.replica_conflict is not None
        or bool(variant.older)
        or (variant.workload is not None and not variant.workload.rollout_complete)
        or is_rolling_out(pods_of_variant(pods, variant.choice))
    )


def _conflict(
    inputs: ServicePlanInputs, draft: _Draft, desired: int, at: datetime
) -> ReplicaConflict | None:
    if (workload := draft.template.workload) is None:
        return None
    last = inputs.replica_conflicts[inputs.proposal.objects.workloads.index(workload)]
    if workload.replicas >= desired:
        # A closed budget grants nobody anything, not for a minute.
        may_stand = inputs.grant is None or not inputs.grant.is_closed
    else:
        # While a template changes, the counts of its Deployments belong together.
        may_stand = not draft.rollout.older and _may_be_fewer(inputs, at)
    return next_conflict(last, workload, desired, at, may_stand=may_stand)


def _may_be_fewer(inputs: ServicePlanInputs, at: datetime) -> bool:
    """Return whether what others write on its Deployments leaves a service what it needs."""
    counts, grant = inputs.proposal.counts, inputs.grant
    # Those that stay until others are ready are beyond what is needed, and serve instead of these.
    if any(count.bridging for count in counts):
        return False
    decided = [count.replicas for count in counts]
    if grant is not None and grant.shortage is not None:
        decided = list(grant.counts)
    written: dict[str, int] = {}
    foreign = set[str]()
    workloads = inputs.proposal.objects.workloads
    for workload, last in zip(workloads, inputs.replica_conflicts, strict=True):
        written[workload.variant] = written.get(workload.variant, 0) + workload.replicas
        if is_written_by_others(workload, last, at):
            foreign.add(workload.variant)
    return leaves_enough(
        inputs.proposal.need,
        [
            WrittenReplicas(
                capacity=capacity_of(choice),
                is_firm=choice.offer.tier != "Spot",
                decided=replicas,
                written=written[choice.variant] if choice.variant in foreign else replicas,
            )
            for choice, replicas in zip((count.choice for count in counts), decided, strict=True)
        ],
    )
