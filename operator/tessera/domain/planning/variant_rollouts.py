"""The Deployments of a service: for each variant the newest template's, and those it replaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import VariantReason
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Pod, Snapshot, Workload
from tessera.domain.placement.split_state import VariantChange
from tessera.domain.placement.variant_cost import capacity_of
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.planning.rollout_draft import RolloutDraft, draft_variant
from tessera.domain.planning.rollout_steps import (
    count_replicas,
    extra_elsewhere,
    stepping_draft,
    waiting_pod,
)
from tessera.domain.planning.service_plan import VariantPlan
from tessera.domain.rollout.drain import DrainPlan, plan_drain
from tessera.domain.rollout.replica_conflict import (
    ReplicaConflict,
    WrittenReplicas,
    is_written_by_others,
    leaves_enough,
    next_conflict,
)
from tessera.domain.rollout.strategy import is_rolling_out
from tessera.domain.rollout.template_rollout import (
    RolloutCounts,
    TemplateRollout,
)
from tessera.domain.service.current_objects import pods_of_variant
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
        draft_variant(inputs, spec, count, snapshot.nodes, snapshot.at)
        for index, count in enumerate(counts)
        if not index
        or count.replicas
        or pods_of_variant(inputs.proposal.objects.pods, count.choice)
    ]
    stepping = stepping_draft(drafts)
    extra = None
    if stepping is not None and not is_held:
        extra = extra_elsewhere(inputs, spec, counts, drafts, stepping, snapshot)
    if extra is not None:
        variant = extra.variant_count.choice.variant
        drafts = [each for each in drafts if each.variant_count.choice.variant != variant]
        drafts.append(extra)
    replicas = count_replicas(inputs, spec, drafts, stepping, extra, snapshot, is_held=is_held)
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


def _blocker(inputs: ServicePlanInputs, draft: RolloutDraft, snapshot: Snapshot) -> str | None:
    """Return for whose pod no replica leaves for its successor, which finds no device."""
    rollout = draft.rollout
    if not rollout.older or not any(pod.unschedulable for pod in rollout.pods):
        return None
    pod = waiting_pod(inputs, draft, snapshot)
    return None if pod is None else f"Pod/{pod.ref.name} of namespace {pod.ref.namespace}"


def _unusable_nodes(rollout: TemplateRollout) -> tuple[str, ...]:
    """Return the nodes whose devices no successor can take, where it waits for one of them."""
    if not rollout.is_stuck:
        return ()
    nodes = {pod.node for each in rollout.older for pod in each.pods}
    return tuple(sorted(node for node in nodes if node is not None))


def _plan_variant(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    draft: RolloutDraft,
    counts: RolloutCounts,
    snapshot: Snapshot,
    extra: RolloutDraft | None,
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
    inputs: ServicePlanInputs, draft: RolloutDraft, desired: int, at: datetime
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
