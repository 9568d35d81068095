"""The decision for one service, computed from its proposal and its grant."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Accepted, StatusVerdict, VariantReason
from tessera.api.service_status import ModelStatus
from tessera.api.template_version import PodTemplateVersion
from tessera.api.text import counted
from tessera.domain.budget.state import Grant
from tessera.domain.incremental import FOREVER, Until, reused_until
from tessera.domain.model.precision_files import spec_in
from tessera.domain.observed.snapshot import Pod, Ref, Snapshot, SpeedReading, Workload
from tessera.domain.placement.candidates import free_replicas
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.cover import Need
from tessera.domain.placement.split_state import VariantChange
from tessera.domain.placement.variant_cost import capacity_of
from tessera.domain.planning.previous_deployments import needs_device_of_previous, previous_drains
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.domain.repartition.displacement import previous_variants
from tessera.domain.rollout.drain import (
    Displacement,
    DrainPlan,
    joined_drains,
    plan_drain,
    with_leaving,
)
from tessera.domain.rollout.replica_conflict import (
    ReplicaConflict,
    WrittenReplicas,
    is_written_by_others,
    leaves_enough,
    next_conflict,
)
from tessera.domain.rollout.strategy import is_rolling_out, should_surge
from tessera.domain.scaling.decisions import cap_to_grant
from tessera.domain.service.current_objects import pods_of_variant
from tessera.domain.service.pinned_revision import pin_revision, pinned_spec
from tessera.domain.service.preparation.claims import ClaimUsers, ModelClaim, model_claims
from tessera.domain.service.preparation.files import with_files
from tessera.domain.service.proposal import Proposal, planner_error_proposal
from tessera.domain.service.speculation import next_speculation_status
from tessera.domain.service.template_version import decide_template
from tessera.domain.service.variant_counts import (
    VariantCount,
    capacity_of_counts,
    unit_of,
    with_counts,
)


class ServicePlanInputs(NamedTuple):
    """All inputs of a service plan except the time."""

    proposal: Proposal
    grant: Grant | None
    displacement: Displacement
    """Replicas whose slices are removed."""
    surge_replicas: int
    """Further replicas that it needs on its previous variants."""
    newest_template: PodTemplateVersion
    with_surge_capacity: frozenset[str]
    """The variants whose pools have devices beyond the desired replicas."""
    autoscalers: bool = False
    """HorizontalPodAutoscalers may be written."""
    name_conflicts: tuple[StatusVerdict[Accepted], ...] = ()
    """What is wrong with its names, the worst first."""
    replica_conflicts: tuple[ReplicaConflict | None, ...] = ()
    """What the last plan knew of others who write the replicas of each of its Deployments."""
    last_pin: ModelStatus | None = None
    """The revision that the last plan pinned, while the status does not have it."""
    recorded_claims: tuple[object, ...] = ()
    """What the claims of its model files depend on beside itself."""


@reused_until
def plan_service(
    _ref: Ref, inputs: ServicePlanInputs, *, at: datetime, snapshot: Snapshot, users: ClaimUsers
) -> Until[ServicePlan]:
    """Return the plan of a service within its grant."""
    service_plan = _plan_service(inputs, at, snapshot, users)
    return Until(service_plan, at if service_plan.is_moving else FOREVER)


def _plan_service(
    inputs: ServicePlanInputs, at: datetime, snapshot: Snapshot, users: ClaimUsers
) -> ServicePlan:
    proposal, grant, displacement = inputs.proposal, inputs.grant, inputs.displacement
    has_shortage = grant is not None and grant.shortage is not None
    choice, service, preparation = proposal.placement.choice, proposal.service, proposal.preparation
    scale, counts = proposal.scale, proposal.counts
    if grant is not None and grant.shortage is not None:
        counts = tuple(
            count._replace(replicas=granted)
            for count, granted in zip(counts, grant.counts, strict=True)
        )
        # Without one that a move would start first all that is wanted may still be served.
        served = Need(capacity_of_counts(counts), sum(count.replicas for count in counts))
        if not proposal.need._replace(firm_pods=0).beside(served).is_met:
            units = served.capacity // unit_of([count.choice for count in counts]).capacity
            scale = cap_to_grant(scale, units, grant, at)
            if scale.pods is not None:
                scale = replace(scale, pods=served.pods)
        scale = replace(scale, history=with_counts(scale.history, counts))
    base_plan = replace(
        _unchanged_plan(proposal),
        accepted=_accepted(inputs),
        scale=scale,
        schedule=proposal.schedule,
        has_autoscaler=inputs.autoscalers and _is_scaled_by_hpa(service.spec),
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
    variants = tuple(
        _plan_variant(inputs, spec, count, at, snapshot)
        for index, count in enumerate(counts)
        if not index or count.replicas or pods_of_variant(objects.pods, count.choice)
    )
    variants = _one_rollout_at_a_time(variants, objects.pods)
    previous = _previous_deployments(inputs, variants, snapshot)
    drain = with_leaving(
        snapshot,
        joined_drains([*(variant.drain for variant in variants), *previous.drains]),
        previous.leaving,
        spec.drain.timeout,
    )
    claims: tuple[ModelClaim, ...] = ()
    # Nothing is fetched before a hub that is asked has said which commit that is.
    if preparation is not None and pinned_revision.query is None:
        fetched_spec = pinned_spec(preparation.spec, pinned_revision)
        fetched_spec = spec_in(fetched_spec, shape_of(fetched_spec), choice.fit.precision)
        claims = model_claims(snapshot, service, fetched_spec, users)
        preparation = with_files(snapshot, service, preparation, claims, fetched_spec)
    by_variant = {variant.choice.variant: variant.choice for variant in variants}
    choices = [by_variant.get(each.variant, each) for each in proposal.placement.choices]
    return replace(
        base_plan,
        placement=replace(proposal.placement, choices=tuple(choices)),
        pinned_revision=pinned_revision,
        claims=claims,
        preparation=preparation,
        variants=variants,
        speculation=next_speculation_status(
            spec, choice.fit, SpeedReading(), service.status.speculation, at
        ),
        drain=drain,
        holds_rollout=bool(displacement.draining)
        and any(variant.workload is not None for variant in variants),
        is_moving=has_shortage
        or bool(drain.draining)
        or (preparation is not None and preparation.pending)
        or pinned_revision.query is not None
        or any(_is_moving(variant, objects.pods) for variant in variants),
        removable_deployments=previous.removable,
        previous_deployments=previous.replicas,
    )


def _plan_variant(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    count: VariantCount,
    at: datetime,
    snapshot: Snapshot,
) -> VariantPlan:
    objects, choice, desired = inputs.proposal.objects, count.choice, count.replicas
    workload = objects.workload_of(choice.variant)
    pods = pods_of_variant(objects.pods, choice)
    conflict = _conflict(inputs, workload, desired, at)
    replicas = _remaining_replicas(inputs, count, pods)
    if conflict is not None and workload is not None and conflict.stands(at):
        replicas = workload.replicas
    return VariantPlan(
        template=decide_template(
            inputs.newest_template, inputs.proposal.service, spec, choice, workload
        ),
        desired=desired,
        drain=plan_drain(
            snapshot,
            workload,
            replicas,
            pods,
            spec.drain.timeout,
            displacement=inputs.displacement,
        ),
        surge=should_surge(
            workload, pods, at, has_capacity=choice.variant in inputs.with_surge_capacity
        ),
        workload=workload,
        replica_conflict=conflict,
        change=_change(inputs, count),
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


def _one_rollout_at_a_time(
    variants: tuple[VariantPlan, ...], pods: Sequence[Pod]
) -> tuple[VariantPlan, ...]:
    """Let new templates of further Deployments wait: each rollout may take a replica away."""
    if len(variants) == 1:
        return variants
    is_rolling = any(
        variant.workload is not None
        and (
            not variant.workload.rollout_complete
            or is_rolling_out(pods_of_variant(pods, variant.choice))
        )
        for variant in variants
    )
    result = []
    for variant in variants:
        changes = variant.workload is not None and variant.template.is_new
        result.append(replace(variant, waits=changes and is_rolling))
        is_rolling |= changes
    return tuple(result)


def _is_moving(variant: VariantPlan, pods: Sequence[Pod]) -> bool:
    """Return whether the time alone may change what is decided for a Deployment."""
    # A surge replica stays pending for a while at most.
    return (
        variant.replica_conflict is not None
        or variant.waits
        or (variant.workload is not None and not variant.workload.rollout_complete)
        or is_rolling_out(pods_of_variant(pods, variant.choice))
    )


def _unchanged_plan(proposal: Proposal) -> ServicePlan:
    """Return the plan that carries a proposal out with nothing decided beside it."""
    objects, status = proposal.objects, proposal.service.status
    return ServicePlan(
        service=proposal.service,
        accepted=proposal.accepted,
        placement=proposal.placement,
        scale=proposal.scale,
        need=proposal.need,
        drain=DrainPlan(replicas=proposal.scale.replicas),
        pods=objects.pods,
        workloads=objects.workloads,
        speed=status.speed,
        preemption=status.preemption,
        speculation=status.speculation,
        slo=status.slo,
        balance=proposal.balance,
    )


def set_aside_plan(proposal: Proposal, error: Exception) -> ServicePlan:
    """Return the plan of a service whose planning raised: all of its objects stay as they are."""
    return _unchanged_plan(
        planner_error_proposal(error, proposal.service, proposal.objects, proposal.scale.history)
    )


def _conflict(
    inputs: ServicePlanInputs, workload: Workload | None, desired: int, at: datetime
) -> ReplicaConflict | None:
    if workload is None:
        return None
    last = inputs.replica_conflicts[inputs.proposal.objects.workloads.index(workload)]
    if workload.replicas >= desired:
        # A closed budget grants nobody anything, not for a minute.
        may_stand = inputs.grant is None or not inputs.grant.is_closed
    else:
        may_stand = _may_be_fewer(inputs, at)
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


def _is_scaled_by_hpa(spec: InferenceServiceSpec | None) -> bool:
    return spec is not None and spec.scaling.mode == "HPA"


def _accepted(inputs: ServicePlanInputs) -> StatusVerdict[Accepted]:
    """Return the verdict of the proposal with what is wrong beside its spec.

    Its names may belong to another service, or its HorizontalPodAutoscaler is not written.
    """
    accepted, conflicts = inputs.proposal.accepted, inputs.name_conflicts
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
    other_devices = max(0, allocated.get(key, 0) - own_devices)
    # No node is started for a rollout.
    existing = free_replicas(offer, {key: other_devices}) - offer.startable_replicas
    return existing > desired


class _Previous(NamedTuple):
    """What becomes of the Deployments of previous variants."""

    removable: tuple[Ref, ...]
    replicas: Mapping[Ref, int]
    """New replica counts, where they change."""
    drains: Sequence[DrainPlan] = ()
    leaving: tuple[Pod, ...] = ()


def _previous_deployments(
    inputs: ServicePlanInputs, variants: Sequence[VariantPlan], snapshot: Snapshot
) -> _Previous:
    """Return what becomes of the Deployments of variants that are not offered any more.

    One of a variant that may come back goes once it is empty. A service whose slices are planned
    keeps them, also when its pool does not plan any more: its replicas move as slices are made.
    """
    proposal = inputs.proposal
    objects, spec = proposal.objects, proposal.service.spec
    names = {variant.choice.variant for variant in variants}
    offered = {count.choice.variant for count in proposal.counts}
    pods = [pod for pod in objects.pods if pod.variant in names]
    empty = tuple(each.ref for each in objects.workloads if each.variant in offered - names)
    workloads = [workload for workload in objects.workloads if workload.variant not in offered]
    if not workloads or spec is None:
        return _Previous(empty, {})
    ready = _ready_of(variants, pods)
    missing = proposal.need.beside(ready)
    if spec.placement.mig == "Auto":
        return _previous_of_layouts(inputs, empty, workloads, pods, missing)
    drains = previous_drains(
        snapshot,
        proposal.service.status,
        workloads,
        objects.pods,
        missing,
        one_gives_way=needs_device_of_previous(
            snapshot, variants, objects.pods, proposal.need.pods
        ),
        timeout=spec.drain.timeout,
        displacement=inputs.displacement,
    )
    with_pods = {pod.variant for pod in objects.pods}
    removable = [each.ref for each in workloads if each.variant not in with_pods]
    return _Previous(
        (*empty, *removable),
        {
            each.ref: drains[each.ref].replicas
            for each in workloads
            if each.ref not in removable and drains[each.ref].replicas != each.replicas
        },
        tuple(drains.values()),
    )


def _ready_of(variants: Sequence[VariantPlan], pods: Sequence[Pod]) -> Need:
    """Return what the ready replicas of variants have."""
    counts = [
        (variant.choice, sum(pod.takes_requests for pod in pods_of_variant(pods, variant.choice)))
        for variant in variants
    ]
    return Need(
        sum(capacity_of(choice) * count for choice, count in counts),
        sum(count for _, count in counts),
        sum(count for choice, count in counts if choice.offer.tier != "Spot"),
    )


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
