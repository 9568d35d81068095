"""The decision for one service, computed from its proposal and its grant."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Accepted, StatusVerdict
from tessera.domain.aspects.aspects import reported_by
from tessera.domain.budget.state import Grant
from tessera.domain.incremental import Until, reused_until
from tessera.domain.model.precision_files import spec_in
from tessera.domain.observed.snapshot import Pod, Ref, Snapshot, Workload
from tessera.domain.placement.candidates import free_replicas
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.cover import Need
from tessera.domain.placement.variant_cost import served_by
from tessera.domain.planning.disruption_limit import within_disruptions
from tessera.domain.planning.funding import (
    reading_refusal,
    with_layout_refusal,
    without_unpaid,
)
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.planning.previous_deployments import previous_drains, yielding_previous
from tessera.domain.planning.rollout_span import until_it_moves
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.domain.planning.variant_rollouts import VariantRollouts, is_moving, plan_variants
from tessera.domain.quality.lost_revision import RevisionMissingError
from tessera.domain.repartition.displacement import previous_variants
from tessera.domain.rollout.disruptions import Disruptions
from tessera.domain.rollout.drain import (
    DrainPlan,
    joined_drains,
    with_leaving,
)
from tessera.domain.rollout.strategy import is_rolling_out
from tessera.domain.scaling.decisions import cap_to_grant
from tessera.domain.service.current_objects import pods_of_variant, pods_of_workload
from tessera.domain.service.pinned_revision import PinnedRevision, pin_revision, pinned_spec
from tessera.domain.service.preparation.claims import ClaimUsers, ModelClaim, model_claims
from tessera.domain.service.preparation.files import with_files
from tessera.domain.service.preparation.preparation import Preparation
from tessera.domain.service.proposal import (
    Proposal,
    planner_error_proposal,
    unchanged_proposal,
)
from tessera.domain.service.variant_counts import (
    VariantCount,
    unit_of,
    with_counts,
)


@reused_until
def plan_service(
    _ref: Ref, inputs: ServicePlanInputs, *, at: datetime, snapshot: Snapshot, users: ClaimUsers
) -> Until[ServicePlan]:
    """Return the plan of a service within its grant."""
    return until_it_moves(_plan_service(inputs, at, snapshot, users), inputs, at)


def _plan_service(
    inputs: ServicePlanInputs, at: datetime, snapshot: Snapshot, users: ClaimUsers
) -> ServicePlan:
    proposal, grant, displacement = inputs.proposal, inputs.grant, inputs.displacement
    has_shortage = grant is not None and grant.shortage is not None
    choice, service, preparation = proposal.placement.choice, proposal.service, proposal.preparation
    if preparation is not None:
        preparation = without_unpaid(preparation, (), inputs.preparation_refusal)[0]
    scale, counts, disruptions = proposal.scale, proposal.counts, proposal.disruptions
    if grant is not None and grant.shortage is not None:
        counts = tuple(
            count._replace(replicas=granted)
            for count, granted in zip(counts, grant.counts, strict=True)
        )
        disruptions = _within_grant(disruptions, grant)
        # Without one that a move would start first all that is wanted may still be served.
        served = served_by((count.choice, count.replicas) for count in counts)
        if not proposal.need._replace(firm_pods=0).beside(served).is_met:
            units = served.capacity // unit_of([count.choice for count in counts]).capacity
            scale = cap_to_grant(scale, units, grant, at)
            if scale.pods is not None:
                scale = replace(scale, pods=served.pods)
        scale = replace(scale, history=with_counts(scale.history, counts))
    base_plan = replace(
        _unchanged_plan(proposal),
        accepted=_accepted(inputs),
        placement=with_layout_refusal(proposal.placement, inputs.start_refusal),
        scale=scale,
        start_refusal=inputs.start_refusal,
        schedule=proposal.schedule,
        has_autoscaler=inputs.autoscalers and _is_scaled_by_hpa(service.spec),
        disruptions=disruptions,
        drain=DrainPlan(replicas=scale.replicas, draining=tuple(sorted(displacement.draining))),
        preparation=preparation,
        is_moving=has_shortage
        or bool(displacement.draining)
        or (preparation is not None and preparation.pending),
    )
    spec = service.spec
    if choice is None or spec is None:
        return base_plan
    objects = proposal.objects
    pinned_revision = pin_revision(
        service, spec, objects.workload_of(choice.variant), snapshot.resolutions, inputs.last_pin
    )
    preparation, claims = _with_claims(inputs, preparation, pinned_revision, snapshot, users)
    is_held = (
        bool(displacement.draining)
        or pinned_revision.query is not None
        or (preparation is not None and preparation.missing_files is not None)
    )
    rollouts = plan_variants(inputs, spec, counts, disruptions, snapshot, is_held=is_held)
    disruptions = disruptions.within(rollouts.floor)
    variants = rollouts.variants
    previous = _previous_deployments(inputs, rollouts, disruptions, snapshot)
    drain = with_leaving(
        snapshot,
        joined_drains(
            [*(variant.drain for variant in variants), *rollouts.older.values(), *previous.drains]
        ),
        previous.leaving,
        spec.drain.timeout,
    )
    by_variant = {variant.choice.variant: variant.choice for variant in variants}
    choices = [by_variant.get(each.variant, each) for each in proposal.placement.choices]
    service_plan = replace(
        base_plan,
        placement=replace(proposal.placement, choices=tuple(choices)),
        pinned_revision=pinned_revision,
        claims=claims,
        preparation=preparation,
        variants=variants,
        drain=drain,
        contested=rollouts.contested,
        disruptions=disruptions,
        rollout_floor=rollouts.floor,
        holds_rollout=bool(displacement.draining) and any(each.workload for each in variants),
        is_moving=has_shortage
        or bool(drain.draining)
        or (preparation is not None and preparation.pending)
        or pinned_revision.query is not None
        or bool(rollouts.contested)
        or rollouts.floor is not None
        or any(is_moving(variant, objects.pods) for variant in variants),
        removable_deployments=(*previous.removable, *rollouts.removable),
        previous_deployments={**previous.replicas, **rollouts.replicas(objects.workloads)},
    )
    return within_disruptions(
        service_plan,
        replaces_one=rollouts.is_rolling or previous.gives_way,
        excused=displacement.displaced if service.allows_downtime else frozenset(),
    )


def _with_claims(
    inputs: ServicePlanInputs,
    preparation: Preparation | None,
    pinned_revision: PinnedRevision,
    snapshot: Snapshot,
    users: ClaimUsers,
) -> tuple[Preparation | None, tuple[ModelClaim, ...]]:
    """Return what is left to do for the files of a model, and the claims for them.

    Nothing is fetched before a hub that is asked has said which commit that is.
    """
    choice, service = inputs.proposal.placement.choice, inputs.proposal.service
    if preparation is None or choice is None or pinned_revision.query is not None:
        return preparation, ()
    fetched_spec = pinned_spec(preparation.spec, pinned_revision)
    fetched_spec = spec_in(fetched_spec, shape_of(fetched_spec), choice.fit.precision)
    claims = model_claims(snapshot, service, fetched_spec, users)
    preparation = with_files(snapshot, service, preparation, claims, fetched_spec)
    return without_unpaid(preparation, claims, inputs.preparation_refusal)


def _within_grant(disruptions: Disruptions, grant: Grant) -> Disruptions:
    """Return the disruptions with a floor that is granted, which what is ready within it is."""
    return disruptions._replace(floor=min(disruptions.floor, grant.replicas))


def _unchanged_plan(proposal: Proposal) -> ServicePlan:
    """Return the plan that carries a proposal out with nothing decided beside it."""
    objects = proposal.objects
    return ServicePlan(
        service=proposal.service,
        accepted=proposal.accepted,
        placement=proposal.placement,
        scale=proposal.scale,
        need=proposal.need,
        disruptions=proposal.disruptions,
        drain=DrainPlan(replicas=proposal.scale.replicas),
        pods=objects.pods,
        workloads=objects.workloads,
    )


def set_aside_plan(proposal: Proposal, error: Exception) -> ServicePlan:
    """Return the plan of a service whose planning raised: all of its objects stay as they are."""
    service_plan = _unchanged_plan(
        planner_error_proposal(error, proposal.service, proposal.objects, proposal.scale.history)
    )
    return replace(service_plan, reported=reported_by(service_plan.placed))


def held_plan(proposal: Proposal, error: RevisionMissingError) -> ServicePlan:
    """Return the plan of a service whose version in force is not known.

    All objects stay as they are, and a replica that restarts serves again if it did before.
    """
    verdict = StatusVerdict(Accepted.REVISION_MISSING, error.message)
    objects, history = proposal.objects, proposal.scale.history
    unchanged = unchanged_proposal(proposal.service, objects, verdict, history).result
    service_plan = _unchanged_plan(unchanged)
    closed = tuple(
        pod.ref
        for pod in objects.pods
        if (pod.variant, pod.template_digest) in error.closed or pod.draining_since is not None
    )
    service_plan = replace(service_plan, drain=replace(service_plan.drain, draining=closed))
    return replace(service_plan, reported=reported_by(service_plan.placed))


def _is_scaled_by_hpa(spec: InferenceServiceSpec | None) -> bool:
    return spec is not None and spec.scaling.mode == "HPA"


def _accepted(inputs: ServicePlanInputs) -> StatusVerdict[Accepted]:
    """Return the verdict of the proposal with what is wrong beside its spec.

    Its names may belong to another service, its HorizontalPodAutoscaler is not written, or no Job
    reads its model, since none of its replicas is paid.
    """
    accepted, conflicts = inputs.proposal.accepted, inputs.name_conflicts
    if (refusal := reading_refusal(inputs.proposal, inputs.preparation_refusal)) is not None:
        accepted = StatusVerdict(Accepted.BUDGET_EXHAUSTED, refusal)
    needed = _is_scaled_by_hpa(inputs.proposal.service.spec)
    if accepted.reason is Accepted.VALID and needed and not inputs.autoscalers:
        accepted = StatusVerdict(
            Accepted.HPA_DISABLED,
            "spec.scaling.mode: the chart's value hpa.enabled is false, so no "
            "HorizontalPodAutoscaler is written; set it to true, or spec.scaling.mode to External",
        )
    if not conflicts or not accepted.reason.is_true:
        return accepted
    others = () if accepted.reason is Accepted.VALID else (accepted.message,)
    messages = [conflict.message for conflict in conflicts]
    return StatusVerdict(conflicts[0].reason, "; ".join((*messages, *others)))


def with_surge_capacity(
    proposal: Proposal, grant: Grant | None, allocated: Mapping[tuple[str, str], int]
) -> frozenset[str]:
    """Return the variants with capacity beyond the desired replicas, own rollouts apart.

    `allocated` has the devices of all services, by pool and resource.
    """
    return frozenset(
        count.choice.variant
        for index, count in enumerate(proposal.counts)
        if _has_surge_capacity(
            count, count.replicas if grant is None else grant.counts[index], allocated
        )
    )


def _has_surge_capacity(
    count: VariantCount, desired: int, allocated: Mapping[tuple[str, str], int]
) -> bool:
    offer = count.choice.offer
    key = offer.pool, offer.hardware.resource
    own_devices = max(desired, count.existing) * offer.hardware.devices
    own_devices = min(own_devices, allocated.get(key, 0))
    # No node is started for a rollout.
    existing = free_replicas(offer, allocated, -own_devices) - offer.startable_replicas
    return existing > desired


class _Previous(NamedTuple):
    """What becomes of the Deployments of previous variants."""

    removable: tuple[Ref, ...]
    replicas: Mapping[Ref, int]
    """New replica counts, where they change."""
    drains: Sequence[DrainPlan] = ()
    leaving: tuple[Pod, ...] = ()
    gives_way: bool = False
    """One leaves for the successor that needs its device."""


def _previous_deployments(
    inputs: ServicePlanInputs,
    rollouts: VariantRollouts,
    disruptions: Disruptions,
    snapshot: Snapshot,
) -> _Previous:
    """Return what becomes of the Deployments of variants that are not offered any more.

    A replica gives way to its successor within the `disruptions`, if no other one is replaced.

    One of a variant that may come back goes once it is empty. A service whose slices are planned
    keeps them, also when its pool does not plan any more: its replicas move as slices are made.
    """
    proposal, variants = inputs.proposal, rollouts.variants
    objects, spec = proposal.objects, proposal.service.spec
    names = {variant.choice.variant for variant in variants}
    offered = {count.choice.variant for count in proposal.counts}
    pods = [pod for pod in objects.pods if pod.variant in names]
    empty = tuple(each.ref for each in objects.workloads if each.variant in offered - names)
    workloads = [workload for workload in objects.workloads if workload.variant not in offered]
    if not workloads or spec is None:
        return _Previous(empty, {})
    missing = proposal.need.beside(_ready_of(variants, pods))
    if all(count.choice.offer.tier == "Spot" for count in proposal.counts):
        # No replica on firm nodes can come, so none of them is waited for.
        missing = missing._replace(firm_pods=0)
    if spec.placement.mig == "Auto":
        return _previous_of_layouts(inputs, empty, workloads, pods, missing)
    yielding = frozenset[Ref]()
    # A change to another instance type stops nothing: it waits for room, or is taken back.
    is_of_type = any(each.variant in proposal.placement.type_capacities for each in workloads)
    if rollouts.may_yield and not is_of_type:
        yielding = yielding_previous(snapshot, variants, objects.pods, disruptions)
    drains = previous_drains(
        snapshot,
        proposal.service.status,
        workloads,
        objects.pods,
        missing,
        type_capacities=proposal.placement.type_capacities,
        lasting=proposal.placement.type_capacities.keys() - {proposal.placement.left_type},
        yielding=yielding,
        timeout=spec.drain.timeout,
        displacement=inputs.displacement,
    )
    removable = [
        each.ref
        for each in workloads
        if not pods_of_workload(objects.pods, each) and not drains[each.ref].replicas
    ]
    return _Previous(
        (*empty, *removable),
        {
            each.ref: drains[each.ref].replicas
            for each in workloads
            if each.ref not in removable and drains[each.ref].replicas != each.replicas
        },
        tuple(drains.values()),
        gives_way=bool(yielding),
    )


def _ready_of(variants: Sequence[VariantPlan], pods: Sequence[Pod]) -> Need:
    """Return what the ready replicas of variants have that stay."""
    counts = [
        (
            variant.choice,
            min(
                variant.desired,
                sum(pod.takes_requests for pod in pods_of_variant(pods, variant.choice)),
            ),
        )
        for variant in variants
    ]
    return served_by(counts)


def _previous_of_layouts(
    inputs: ServicePlanInputs,
    empty: tuple[Ref, ...],
    workloads: Sequence[Workload],
    pods: Sequence[Pod],
    missing: Need,
) -> _Previous:
    objects = inputs.proposal.objects
    others_remain = len(objects.pods) > len(pods)
    stay = others_remain or not missing.is_met
    removable = () if stay else tuple(workload.ref for workload in workloads)
    previous = previous_variants(
        [each for each in workloads if each.ref not in removable],
        objects.pods,
        inputs.displacement,
        surge=inputs.surge_replicas,
        enough_ready=missing.is_met and not is_rolling_out(pods),
    )
    return _Previous((*empty, *removable), previous.replicas, leaving=previous.leaving)
