"""The Deployments of a service: for each variant the newest template's, and those it replaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import VariantReason
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Pod, Snapshot, Workload
from tessera.domain.placement.split_state import VariantChange
from tessera.domain.planning.contested_replicas import contested_replicas, is_contested
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.planning.rollout_draft import RolloutDraft, draft_variant
from tessera.domain.planning.rollout_steps import (
    count_replicas,
    extra_elsewhere,
    floor_of_rollout,
    stepping_draft,
    waiting_pod,
    with_shortage,
)
from tessera.domain.planning.service_plan import VariantPlan
from tessera.domain.rollout.disruptions import Disruptions
from tessera.domain.rollout.drain import DrainPlan, plan_drain
from tessera.domain.rollout.replica_conflict import ContestedReplicas, stands
from tessera.domain.rollout.rollout_floor import RolloutFloor
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
    contested: tuple[ContestedReplicas, ...]
    """Deployments whose replicas somebody else writes."""
    is_rolling: bool
    """A replica may leave for one of a newer template, which is an extra until then."""
    floor: RolloutFloor | None
    """What is kept while replicas are replaced."""

    @property
    def may_yield(self) -> bool:
        """Return whether a replica of a previous variant may leave for its successor.

        None leaves for one of a newer template, and the status has what is kept.
        """
        is_replacing = any(drain.draining for drain in self.older.values())
        return not is_replacing and self.floor is not None and self.floor.is_recorded

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
    disruptions: Disruptions,
    snapshot: Snapshot,
    *,
    is_held: bool,
) -> VariantRollouts:
    """Return the Deployments of all variants with replicas, and of the first one.

    While rollouts are held no replica starts or leaves for one. Nor where somebody else writes the
    replicas of an older template: whatever leaves there is started again, on the same device.
    """
    drafts = [
        draft_variant(inputs, spec, count, snapshot)
        for index, count in enumerate(counts)
        if not index
        or count.replicas
        or pods_of_variant(inputs.proposal.objects.pods, count.choice)
    ]
    floor = floor_of_rollout(inputs, spec, drafts, disruptions, snapshot)
    disruptions = disruptions.within(floor)
    drafts = with_shortage(drafts, floor)
    stepping = stepping_draft(drafts)
    is_held = is_held or is_contested(inputs, drafts, snapshot.at)
    extra = None
    if stepping is not None and not is_held:
        extra = extra_elsewhere(inputs, spec, counts, drafts, stepping, disruptions.floor, snapshot)
    if extra is not None:
        variant = extra.variant_count.choice.variant
        drafts = [each for each in drafts if each.variant_count.choice.variant != variant]
        drafts.append(extra)
    replicas = count_replicas(
        inputs,
        spec,
        drafts,
        stepping,
        extra,
        disruptions,
        snapshot,
        is_held=is_held,
        is_recorded=floor is not None and floor.is_recorded,
    )
    contested = tuple(
        each
        for draft, rollout in zip(drafts, replicas, strict=True)
        for each in contested_replicas(inputs, draft, rollout, snapshot.at)
    )
    planned = [
        (draft, _standing(draft, rollout, contested, snapshot.at))
        for draft, rollout in zip(drafts, replicas, strict=True)
    ]
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
        contested=contested,
        older=older,
        removable=tuple(ref for rollout in replicas for ref in rollout.removable),
        is_rolling=any(each.rollout.older for each in drafts),
        floor=floor,
    )


def _standing(
    draft: RolloutDraft,
    counts: RolloutCounts,
    contested: Sequence[ContestedReplicas],
    at: datetime,
) -> RolloutCounts:
    """Return the counts, with the numbers of somebody else that are left for now."""
    standing = {
        each.workload.ref: each.workload.replicas for each in contested if stands(each.conflict, at)
    }
    if not standing:
        return counts
    workload = draft.template.workload
    return replace(
        counts,
        newest=counts.newest if workload is None else standing.get(workload.ref, counts.newest),
        older={ref: standing.get(ref, replicas) for ref, replicas in counts.older.items()},
    )


def _blocker(inputs: ServicePlanInputs, draft: RolloutDraft, snapshot: Snapshot) -> str | None:
    """Return for whose pod no replica leaves for its successor, which finds no device."""
    rollout = draft.rollout
    if not rollout.older or not any(pod.unschedulable for pod in rollout.pods):
        return None
    pod = waiting_pod(inputs.proposal.service.ref, draft.variant_count.choice.offer, snapshot)
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
    rollout, workload = draft.rollout, draft.template.workload
    return VariantPlan(
        template=draft.template,
        desired=draft.variant_count.replicas,
        drain=plan_drain(
            snapshot,
            workload,
            counts.newest,
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
        bool(variant.older)
        or (variant.workload is not None and not variant.workload.rollout_complete)
        or is_rolling_out(pods_of_variant(pods, variant.choice))
    )
