"""The Deployments of a service: for each variant the newest template's, and those it replaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from tessera.domain.rollout.strategy import is_rolling_out
from tessera.domain.rollout.template_rollout import OlderTemplate, RolloutCounts, TemplateRollout
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.service.current_objects import pods_of_variant, pods_of_workload
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
    is_in_place: bool
    """One replica leaves before its successor starts."""

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
    replicas = _count_replicas(inputs, drafts, snapshot, is_held=is_held)
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
            _plan_variant(inputs, spec, draft, rollout, snapshot) for draft, rollout in planned
        ),
        older=older,
        removable=tuple(ref for rollout in replicas for ref in rollout.removable),
        is_in_place=any(each.rollout.older and each.rollout.is_in_place for each in drafts),
    )


class _Draft(NamedTuple):
    """A variant before its rollout is decided."""

    variant_count: VariantCount
    template: TemplateDecision
    rollout: TemplateRollout

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
        is_paid=choice.variant not in inputs.unpaid_surges,
        has_fallback=bool(older)
        and older[0].workload is workloads[0]
        and _was_complete(inputs.proposal.service, older[0]),
    )
    return _Draft(count, template, rollout)


def _count_replicas(
    inputs: ServicePlanInputs, drafts: Sequence[_Draft], snapshot: Snapshot, *, is_held: bool
) -> Sequence[RolloutCounts]:
    """Return the replicas of all Deployments: one variant at a time replaces one replica."""
    rolling = [draft for draft in drafts if draft.rollout.older]
    stepping = next((draft for draft in rolling if draft.rollout.in_step), None)
    stepping = stepping or next(iter(rolling), None)
    pods = inputs.proposal.objects.pods
    names = {each.variant_count.choice.variant for each in drafts}
    serving = sum(pod.takes_requests for pod in pods if pod.variant not in names)
    serving += sum(each.ready_that_stay for each in drafts)
    return [
        draft.rollout.counts(
            may_step=draft is stepping and not is_held,
            may_take=draft is stepping
            and serving >= inputs.proposal.disruptions.floor
            and _waiting_pod(inputs, draft, snapshot) is None,
            is_withdrawn=_is_withdrawn(inputs, draft),
        )
        for draft in drafts
    ]


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
    """Return a pod of somebody else that waits for a device as a replica in place gives back.

    Of services that wait for each other the first by name goes on.
    """
    service = inputs.proposal.service.ref
    resource = draft.variant_count.choice.offer.hardware.resource
    waiting = (
        pod
        for pod in snapshot.pods
        if pod.unschedulable is not None
        and pod.devices.get(resource, 0) > 0
        and not pod.terminating
        and (pod.unmanaged or pod.service < service)
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
) -> VariantPlan:
    """Return the plan of the Deployment of a variant's newest template."""
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
        is_surge_unpaid=draft.variant_count.choice.variant in inputs.unpaid_surges,
        older=tuple(each.workload.ref for each in rollout.older),
        is_withdrawn=counts.is_withdrawn,
        rolls_in_place=not rollout.has_capacity and is_rolling_out(rollout.pods),
        blocker=_blocker(inputs, draft, snapshot),
        unusable_nodes=_unusable_nodes(rollout),
        waits=workload is None and bool(rollout.older) and not counts.newest,
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
