"""The verdicts on a service that its plan has: Placed, Progressing and Ready."""

from collections.abc import Sequence
from datetime import datetime

from tessera.api.meta import format_duration
from tessera.api.reasons import PlacementReason, Progressing, Ready, ScalingReason, StatusVerdict
from tessera.api.text import counted
from tessera.domain.health.readiness import assess_readiness
from tessera.domain.health.startup_failure import startup_failure
from tessera.domain.observed.snapshot import Pod, Snapshot
from tessera.domain.observed.taints import names_taints
from tessera.domain.placement.free_hardware import beside_clause, cheapest_free
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.strategy import (
    is_rolling_out,
    replaces_in_place,
    rollout_progress,
    strategy_message,
)
from tessera.domain.rollout.template_rollout import START_TOLERANCE
from tessera.domain.service.proposal import min_replicas_of
from tessera.domain.service.proposals import is_awaited_by_others
from tessera.domain.status.rollouts import first_version_verdict


def placed_verdict(snapshot: Snapshot, service_plan: ServicePlan) -> StatusVerdict[PlacementReason]:
    # Those of a pool that is gone are no more of the desired ones.
    names = {variant.choice.variant for variant in service_plan.variants}
    stuck = [
        pod
        for pod in service_plan.pods
        if pod.unschedulable and not pod.terminating and pod.variant in names
    ]
    spec = service_plan.service.spec
    if service_plan.choice is None or spec is None or not stuck:
        return _placed_on(service_plan)
    choices = (variant.choice for variant in service_plan.variants)
    named = (choice for choice in choices if choice.variant == stuck[0].variant)
    choice = next(named, service_plan.choice)
    pool, free = choice.offer.pool, ""
    if (startable := choice.offer.startable) is not None:
        return StatusVerdict(
            PlacementReason.NODES_STARTING,
            f"{len(stuck)} of {counted(service_plan.desired_pods, 'replica')} on "
            f"{choice.fit.hardware.name} of AcceleratorPool/{pool} wait for new nodes "
            f"({startable.text})",
        )
    if (backoff_until := choice.offer.backoff_until) is not None:
        free = f"; no node came in time, so none counts until {backoff_until:%Y-%m-%dT%H:%M:%SZ}"
    lacks = stuck[0].unschedulable or ""
    # The scheduler counts a node by the first that it lacks: behind a taint its devices are free.
    is_barred = names_taints(lacks)
    other = cheapest_free(snapshot, service_plan.service, service_plan.choice)
    if other is not None and not (is_barred and other.offer.pool == pool):
        is_awaited = is_awaited_by_others(snapshot, service_plan.service.ref, other.offer)
        reason = beside_clause(spec, service_plan.placement, other, is_awaited=is_awaited)
        free += (
            f"; {other.offer.hardware.name} of AcceleratorPool/{other.offer.pool} is free, {reason}"
        )
    lack, cure = f"no free {choice.fit.hardware.name} in", "Free or add such hardware"
    if is_barred:
        lack, cure = f"no node for {choice.fit.hardware.name} in", "Tolerate or remove the taint"
    return StatusVerdict(
        PlacementReason.UNSCHEDULABLE,
        f"spec.placement.pools: {len(stuck)} of {counted(service_plan.desired_pods, 'replica')} "
        f"unschedulable, {lack} AcceleratorPool/{pool} ({lacks}){free}. {cure}, lower "
        "spec.scaling.minReplicas, or name another pool.",
    )


def _placed_on(service_plan: ServicePlan) -> StatusVerdict[PlacementReason]:
    """Return the verdict of the placement, which speaks of its first variant, with all."""
    verdict = service_plan.placement.verdict
    if len(service_plan.variants) < 2:
        return verdict
    names = ", ".join(
        f"{variant.choice.variant} at {variant.choice.hourly} per hour"
        for variant in service_plan.used_variants
    )
    message = f"replicas on {names}; placed on {verdict.message}"
    return StatusVerdict(verdict.reason, message)


def progressing_verdict(
    service_plan: ServicePlan, problem: str | None, at: datetime, budget: str = ""
) -> StatusVerdict[Progressing]:
    """Return how far a service is; `budget` names the TenantBudget of its tenant, if any."""
    if problem is not None:
        return StatusVerdict(Progressing.APPLY_FAILED, problem)
    if service_plan.choice is None:
        return StatusVerdict(Progressing.NOT_PLACED, "existing replicas stay unchanged")
    spec, preparation = service_plan.service.spec, service_plan.preparation
    desired, complete = service_plan.desired_pods, _is_rollout_complete(service_plan)
    failure = (
        startup_failure(spec, service_plan.pods, service_plan.current_workloads)
        or _stalled_verdict(service_plan, complete=complete)
        or (preparation.missing_files if preparation is not None else None)
        or next(filter(None, (each.verdict(at) for each in service_plan.contested)), None)
        or _withheld_verdict(service_plan)
        or _withdrawn_verdict(service_plan)
        or _unpaid_verdict(service_plan, budget)
        or _blocked_verdict(service_plan)
        or _short_verdict(service_plan)
    )
    if failure is not None:
        return failure
    is_rolling = any(variant.older for variant in service_plan.variants)
    if service_plan.drain.draining and not is_rolling:
        return StatusVerdict(
            Progressing.DRAINING,
            f"{counted(len(service_plan.drain.draining), 'replica')} draining, {desired} desired",
        )
    if complete and service_plan.pinned_revision.query is None:
        return _refused_verdict(service_plan, budget) or _complete_verdict(service_plan)
    return _in_progress_verdict(service_plan)


def _withheld_verdict(service_plan: ServicePlan) -> StatusVerdict[Progressing] | None:
    """Return that replicas stay which the plan took."""
    if not service_plan.withheld:
        return None
    ref, disruptions = service_plan.service.ref, service_plan.disruptions
    return StatusVerdict(
        Progressing.DISRUPTION_NOT_ALLOWED,
        f"{counted(service_plan.withheld, 'replica')} of {len(disruptions.healthy)} healthy ones "
        f"were to leave and stay, since spec.scaling needs {disruptions.floor}; please report it "
        f"with the output of kubectl get tsvc {ref.name} -n {ref.namespace} -o yaml",
    )


def _withdrawn_verdict(service_plan: ServicePlan) -> StatusVerdict[Progressing] | None:
    """Return that the newest template gave its devices back."""
    withdrawn = [each.choice.variant for each in service_plan.variants if each.is_withdrawn]
    if not withdrawn:
        return None
    ready = sum(pod.takes_requests for pod in service_plan.pods)
    return StatusVerdict(
        Progressing.PROGRESS_DEADLINE_EXCEEDED,
        f"replicas of the newest template on {', '.join(withdrawn)} were not ready "
        f"{format_duration(START_TOLERANCE)} after their expected start, so "
        f"{counted(ready, 'replica')} of the template before stay: change spec.model, spec.engine "
        "or spec.podTemplate, or take the last change back",
    )


def _unpaid_verdict(service_plan: ServicePlan, budget: str) -> StatusVerdict[Progressing] | None:
    """Return that replicas of previous variants stay while no successor is granted."""
    names = {each.choice.variant for each in service_plan.variants}
    previous = [pod for pod in service_plan.pods if pod.variant not in names]
    scale = service_plan.scale
    if not previous or scale.reason not in _NOT_GRANTED:
        return None
    pools = ", ".join(sorted({pod.variant for pod in previous}))
    message = f"{counted(len(previous), 'replica')} of {pools} stay, which no pool offers any more"
    # The amounts change all the time; that message changes with the count alone.
    owner = f"TenantBudget/{budget}" if budget else "the platform"
    message += f", and {owner} grants none in their place: see status.scaling.message"
    return StatusVerdict(Progressing.BUDGET_EXHAUSTED, message)


def _blocked_verdict(service_plan: ServicePlan) -> StatusVerdict[Progressing] | None:
    """Return for whom a rollout in place waits."""
    for variant in service_plan.variants:
        if variant.blocker is not None:
            hardware = variant.choice.fit.hardware.name
            return StatusVerdict(
                Progressing.WAITING_FOR_DEVICE,
                f"replicas of older templates stay, since {variant.blocker} waits for a {hardware} "
                f"of AcceleratorPool/{variant.choice.offer.pool} and would take the next one: free "
                "or add such hardware, or delete that pod",
            )
        if variant.unusable_nodes:
            nodes = " and ".join(f"Node/{name}" for name in variant.unusable_nodes)
            return StatusVerdict(
                Progressing.WAITING_FOR_DEVICE,
                f"replicas of older templates stay, since no successor can be bound to {nodes} "
                f"(cordoned, or not selected by AcceleratorPool/{variant.choice.offer.pool}): "
                "uncordon or select it, or add such hardware",
            )
    return None


def _short_verdict(service_plan: ServicePlan) -> StatusVerdict[Progressing] | None:
    """Return why no replica stops for its successor while others are missing."""
    floor = service_plan.rollout_floor
    if floor is None or not floor.missing:
        return None
    unbound = {pod.variant for pod in service_plan.pods if pod.unschedulable}
    waiting = [each for each in service_plan.variants if each.choice.variant in unbound]
    if not waiting or waiting[0].surge:
        return None
    choice = waiting[0].choice
    hardware = f"{choice.fit.hardware.name} of AcceleratorPool/{choice.offer.pool}"
    if floor.taker is not None:
        pod = floor.taker.ref
        cause = (
            f"Pod/{pod.name} of namespace {pod.namespace} took the device on "
            f"Node/{floor.taker.node} that one of them gave back for its successor"
        )
        cure = f"delete that pod, free or add a {hardware}"
    else:
        cause = f"{floor.missing} of the {counted(floor.replicas, 'replica')} to keep is missing"
        cure = f"free or add a {hardware}"
    ends = ""
    if floor.falls_at is not None:
        ends = f"; at {floor.falls_at:%Y-%m-%dT%H:%M:%SZ} the rollout goes on without it"
    return StatusVerdict(
        Progressing.WAITING_FOR_DEVICE,
        f"replicas of older templates stay, since {cause}{ends}: {cure}, or lower "
        "spec.scaling.minReplicas",
    )


_NOT_GRANTED = (ScalingReason.BUDGET_EXHAUSTED, ScalingReason.GPU_QUOTA_EXCEEDED)


def _refused_verdict(service_plan: ServicePlan, budget: str) -> StatusVerdict[Progressing] | None:
    """Return that replicas of the floor are refused, and whose act ends that."""
    spec, granted, refusal = service_plan.service.spec, service_plan.desired_pods, None
    if spec is not None and service_plan.scale.reason in _REFUSALS:
        refusal = _REFUSALS[service_plan.scale.reason]
    floor = min(service_plan.need.pods, min_replicas_of(spec)) if spec is not None else 0
    if spec is None or refusal is None or granted >= floor:
        return None
    reason, until, act = refusal
    field = "spec.scaling.minReplicas" if spec.fixed_replicas is None else "spec.replicas"
    owner = f"the owner of TenantBudget/{budget}" if budget else "the platform team"
    # The amounts change all the time; this message changes with the counts alone.
    return StatusVerdict(
        reason,
        f"{granted} of {counted(floor, 'replica')} of {field} are granted, all of them ready: the "
        f"others start once {until}, or once {owner} {act}; see status.scaling.message",
    )


_REFUSALS = {
    ScalingReason.BUDGET_EXHAUSTED: (
        Progressing.BUDGET_EXHAUSTED,
        "a window of the budget has room for them",
        "raises the limit in spec.limits",
    ),
    ScalingReason.GPU_QUOTA_EXCEEDED: (
        Progressing.GPU_QUOTA_EXCEEDED,
        "other replicas or batches of the tenant end",
        "raises spec.gpus",
    ),
}


def _complete_verdict(service_plan: ServicePlan) -> StatusVerdict[Progressing]:
    """Return that all replicas run as planned, or what others added to their Deployment."""
    summary = f"{counted(service_plan.desired_pods, 'replica')} ready"
    changed = (each for each in service_plan.current_workloads if each.foreign_fields)
    workload = next(changed, None)
    if workload is None:
        return StatusVerdict(Progressing.ROLLOUT_COMPLETE, f"{summary}, with the newest template")
    fields = ", ".join(
        f"{field.path} (set by {field.manager})" for field in workload.foreign_fields
    )
    ref = workload.ref
    return StatusVerdict(
        Progressing.FIELD_MANAGER_CONFLICT,
        f"{summary}, but Deployment/{ref.name} has {fields}, which Tessera does not set and does "
        f"not remove. Ask the platform team to remove it with kubectl -n {ref.namespace} edit "
        f"deployment/{ref.name}, or set it in spec.podTemplate of "
        f"InferenceService/{workload.service.name}.",
    )


def _in_progress_verdict(service_plan: ServicePlan) -> StatusVerdict[Progressing]:
    """Return what a rollout or start waits for."""
    desired, pods = service_plan.desired_pods, service_plan.pods
    if (query := service_plan.pinned_revision.query) is not None:
        return StatusVerdict(
            Progressing.RESOLVING_REVISION,
            f"resolving revision {query.revision} of {query.repository}",
        )
    rolling = next(
        (
            variant
            for variant in service_plan.variants
            if variant.older
            or (variant.workload is not None and not variant.workload.rollout_complete)
        ),
        service_plan.variants[0],
    )
    strategy = strategy_message(
        rolling.choice,
        surge=rolling.surge,
        unpaid=rolling.is_surge_unpaid,
        extra_on=rolling.extra_on,
    )
    names = {variant.choice.variant for variant in service_plan.variants}
    previous = {pod.variant for pod in pods if not pod.terminating} - names
    if previous and previous <= service_plan.placement.type_capacities.keys():
        strategy = "for another instance type, the old ones stay until the new ones are ready"
    has_previous = bool(previous)
    has_older = has_previous or any(variant.older for variant in service_plan.variants)
    new, old = _template_progress(service_plan) if has_older else rollout_progress(pods)
    replaces_any = has_older and (old > 0 or not _lack_devices(pods))
    if replaces_any or _is_rolling_out(service_plan):
        return StatusVerdict(
            Progressing.ROLLING_OUT,
            f"{new} of {counted(desired, 'replica')} updated, {old} old; {strategy}",
        )
    ready_count = sum(pod.takes_requests for pod in pods)
    summary = f"{ready_count} of {counted(desired, 'replica')} ready"
    changed = rolling.workload is not None and not rolling.workload.rollout_complete and pods
    message = f"{summary}; rolling out: {strategy}" if changed else summary
    return StatusVerdict(Progressing.STARTING, message)


def _template_progress(service_plan: ServicePlan) -> tuple[int, int]:
    """Return the ready replicas of the newest templates, and the active ones of older ones."""
    newest = {
        (variant.choice.variant, variant.workload.template_digest)
        for variant in service_plan.variants
        if variant.workload is not None
    }
    active = [pod for pod in service_plan.pods if not pod.terminating]
    new = [pod for pod in active if (pod.variant, pod.template_digest) in newest]
    return sum(pod.takes_requests for pod in new), len(active) - len(new)


def _is_rolling_out(service_plan: ServicePlan) -> bool:
    """Return whether new replicas replace old ones; a reported rollout lasts until its end.

    It has ended where those of the newest template that are not ready find no device.
    """
    pods, status = service_plan.pods, service_plan.service.status
    if is_rolling_out(pods) or replaces_in_place(pods):
        return True
    if _lack_devices(pods):
        return False
    reported = any(condition.reason == Progressing.ROLLING_OUT for condition in status.conditions)
    return reported and any(not pod.terminating for pod in pods)


def _lack_devices(pods: Sequence[Pod]) -> bool:
    """Return whether the replicas that are not ready find no device, so that no step follows."""
    waiting = [pod for pod in pods if not pod.takes_requests]
    return bool(waiting) and all(pod.unschedulable for pod in waiting)


def _is_rollout_complete(service_plan: ServicePlan) -> bool:
    pods, variants = service_plan.pods, service_plan.variants
    ready_count = sum(pod.takes_requests for pod in pods)
    return ready_count == len(pods) == service_plan.desired_pods and all(
        variant.workload is not None and variant.workload.rollout_complete and not variant.older
        for variant in variants
    )


def _stalled_verdict(
    service_plan: ServicePlan, *, complete: bool
) -> StatusVerdict[Progressing] | None:
    """Return a stalled engine, or until the rollout is complete the replaced one."""
    stall, status = service_plan.stall, service_plan.service.status
    message = stall.replacement.message if stall.replacement is not None else stall.blocker
    last = status.replacement
    reported = any(
        condition.reason == Progressing.ENGINE_STALLED for condition in status.conditions
    )
    if message is None and last is not None and reported and not complete:
        message = last.message
    return None if message is None else StatusVerdict(Progressing.ENGINE_STALLED, message)


def ready_verdict(snapshot: Snapshot, service_plan: ServicePlan) -> StatusVerdict[Ready]:
    """Return whether a service answers; a first version may wait for its gate."""
    return first_version_verdict(service_plan, _ready_verdict(snapshot, service_plan))


def _ready_verdict(snapshot: Snapshot, service_plan: ServicePlan) -> StatusVerdict[Ready]:
    accepted, placed = service_plan.accepted, service_plan.placement.verdict
    if service_plan.choice is None and not service_plan.pods:
        blocking = placed if accepted.reason.is_true else accepted
        return StatusVerdict(Ready.NOT_PLACED, blocking.message)
    desired, scaling_reason = service_plan.desired_pods, service_plan.scale.reason
    if desired == 0 and scaling_reason is ScalingReason.SCALED_TO_ZERO:
        return StatusVerdict(Ready.SCALED_TO_ZERO, _sleeping_message(service_plan))
    if desired == 0 and scaling_reason in _WITHOUT_REPLICA:
        # Those of previous variants stay while none that would replace them is granted.
        desired = sum(pod.takes_requests for pod in service_plan.pods)
        if not desired:
            return _WITHOUT_REPLICA[scaling_reason]
    failure = startup_failure(
        service_plan.service.spec, service_plan.pods, service_plan.current_workloads
    )
    return assess_readiness(snapshot, service_plan.service, desired, service_plan.pods, failure)


_WITHOUT_REPLICA = {
    ScalingReason.BUDGET_EXHAUSTED: StatusVerdict(
        Ready.BUDGET_EXHAUSTED, "0 replicas are granted; see status.scaling.message"
    ),
    ScalingReason.GPU_QUOTA_EXCEEDED: StatusVerdict(
        Ready.NO_REPLICA_READY, "0 replicas are granted; see status.scaling.message"
    ),
    ScalingReason.FAIR_SHARE: StatusVerdict(
        Ready.NO_REPLICA_READY, "0 replicas have a device; see status.scaling.message"
    ),
}


def _sleeping_message(service_plan: ServicePlan) -> str:
    """Return why there is no replica, how one starts, and what it costs.

    For how long no request came stands in status.scaling, which is written once.
    """
    if (refusal := service_plan.start_refusal) is not None:
        return f"0 replicas, and a request at the gateway starts none: {refusal}"
    ref = service_plan.service.ref
    patch = '{"spec": {"scaling": {"minReplicas": 1}}}'
    start = f"patch tsvc {ref.name} --type merge -p '{patch}'"
    if service_plan.schedule is not None:
        start = f"scale tsvc/{ref.name} --replicas=1"
    choice = service_plan.choice
    place = f" on {choice.variant} for {choice.hourly} per hour" if choice is not None else ""
    return (
        f"0 replicas; the next request at the gateway starts one{place}. Without the gateway: "
        f"kubectl -n {ref.namespace} {start}"
    )
