"""The status of services from the plan."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, auto

from tessera.api.budget_reasons import WithinBudget
from tessera.api.meta import format_duration
from tessera.api.reasons import (
    Accepted,
    PlacementReason,
    Progressing,
    Ready,
    ScalingReason,
    StatusVerdict,
    UpdateAvailable,
)
from tessera.api.service_status import (
    CostStatus,
    InferenceServiceStatus,
    ModelStatus,
    PrecisionStatus,
    ReplicaChange,
    RequestLengths,
    ScalingStatus,
    TenancyStatus,
    VariantTemplates,
)
from tessera.api.text import counted
from tessera.api.variant_status import MAX_VARIANTS
from tessera.domain.aspects.aspects import status_fields, verdicts
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.hardware.pools import weight_of
from tessera.domain.health.readiness import assess_readiness, was_ready
from tessera.domain.health.startup_failure import startup_failure
from tessera.domain.money import Money, Tariff, per_million_tokens
from tessera.domain.names import PORT, selector
from tessera.domain.observed.snapshot import ObservedService, Pod, Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.free_hardware import beside_clause, cheapest_free
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.strategy import (
    is_rolling_out,
    replaces_in_place,
    rollout_progress,
    strategy_message,
)
from tessera.domain.rollout.template_rollout import START_TOLERANCE
from tessera.domain.scaling.starts import next_start_status
from tessera.domain.scaling.state import ScaleDecision, ScalingChange
from tessera.domain.status.conditions import conditions, with_accepted
from tessera.domain.status.variants import (
    capacity_text,
    expected_rate,
    instances_text,
    speed_source,
    template_record,
    variant_status,
    variant_statuses,
)
from tessera.domain.steps import Step, planner_error

_MIN_LENGTH_CHANGE = 0.2
_STARTS = (Progressing.RESOLVING_REVISION, Progressing.STARTING, Progressing.ROLLOUT_COMPLETE)
_NO_TEMPLATE = StatusVerdict(UpdateAvailable.NOT_PLACED, "existing replicas stay unchanged")


def _service_status(
    snapshot: Snapshot,
    service_plan: ServicePlan,
    budget_view: BudgetView | None,
    problem: str | None,
) -> InferenceServiceStatus:
    """Return the status of a service; `problem` is an error of the API server in this cycle."""
    service, previous = service_plan.service, service_plan.service.status
    choice, template, placed = service_plan.choice, service_plan.template, service_plan.placed
    of_conditions = {
        "Accepted": service_plan.accepted,
        "Placed": _placed_verdict(snapshot, service_plan),
        "Progressing": _progressing_verdict(service_plan, problem, snapshot.at),
        "Ready": _ready_verdict(snapshot, service_plan),
        "UpdateAvailable": template.verdict if template is not None else _NO_TEMPLATE,
        **verdicts(placed, service_plan.reported),
    }
    return InferenceServiceStatus(
        observed_generation=service.generation,
        conditions=conditions(of_conditions, service, snapshot.at),
        replicas=len(service_plan.pods),
        ready_replicas=sum(pod.takes_requests for pod in service_plan.pods),
        capacity=capacity_text(service_plan) if choice else previous.capacity,
        selector=selector(service.ref.name),
        endpoint=f"http://{service.ref.name}.{service.ref.namespace}.svc:{PORT}/v1",
        variant=variant_status(service_plan, choice) if choice else previous.variant,
        variants=variant_statuses(service_plan) if choice else previous.variants,
        instances=instances_text(service_plan) if choice else previous.instances,
        model=_model_status(service_plan, previous.model),
        precisions=_precisions(service_plan, previous),
        pod_template_version=template_record(service_plan, service_plan.variants[0])
        if service_plan.variants
        else previous.pod_template_version,
        templates=_templates(service_plan),
        cost=_cost_status(service_plan, choice, snapshot.at.date()) if choice else previous.cost,
        **status_fields(placed, service_plan.reported),
        tenant=TenancyStatus(
            budget=(budget_view.budget.name or None) if budget_view is not None else None,
            reason=budget_view.within_budget.reason
            if budget_view is not None
            else WithinBudget.NO_BUDGET,
        ),
        scaling=_scaling_status(service_plan, previous.scaling, snapshot.at),
        # It is written before the pod is deleted.
        replacement=service_plan.stall.replacement or previous.replacement,
        start=next_start_status(service_plan.pods, previous.start, snapshot.at),
    )


def _templates(service_plan: ServicePlan) -> tuple[VariantTemplates, ...]:
    """Return the digests of the templates of each variant that all replicas had, or that failed."""
    reported = {each.variant: each.complete for each in service_plan.service.status.templates}
    templates = []
    for variant in service_plan.variants[:MAX_VARIANTS]:
        name, digest = variant.choice.variant, variant.template.digest
        pods = [pod for pod in service_plan.pods if pod.variant == name]
        ready = sum(pod.takes_requests for pod in pods)
        is_complete = (
            variant.workload is not None
            and variant.workload.rollout_complete
            and not variant.older
            and 0 < ready == len(pods) == variant.desired
        )
        complete = digest if is_complete else reported.get(name)
        withdrawn = digest if variant.is_withdrawn else None
        if complete or withdrawn:
            templates.append(VariantTemplates(variant=name, complete=complete, withdrawn=withdrawn))
    # A variant that has no replica now may come back to its Deployment.
    names = {variant.choice.variant for variant in service_plan.variants}
    existing = {workload.variant for workload in service_plan.workloads} - names
    templates += [
        each for each in service_plan.service.status.templates if each.variant in existing
    ]
    return tuple(templates[:MAX_VARIANTS])


def _set_aside_service(
    error: Exception, snapshot: Snapshot, service_plan: ServicePlan, *_: object
) -> InferenceServiceStatus:
    service = service_plan.service
    message = planner_error(error, "tsvc", service.ref.name, service.ref.namespace)
    update = with_accepted(service, Accepted.PLANNER_ERROR, message, snapshot.at)
    return service.status.model_copy(update=update)


service_status = Step(_service_status, _set_aside_service)


class StatusUrgency(Enum):
    """How soon a status is written after the last write for its object."""

    SETTLING = auto()
    """It only says that a start goes on: another one follows soon."""
    USUAL = auto()
    AT_ONCE = auto()
    """It says that a service is ready no more, which may be over soon."""


def status_urgency(snapshot: Snapshot, service_plan: ServicePlan) -> StatusUrgency:
    """Return how soon the status of a service is written."""
    ready = _ready_verdict(snapshot, service_plan).reason
    if was_ready(service_plan.service):
        return StatusUrgency.USUAL if ready.is_true else StatusUrgency.AT_ONCE
    progressing = _progressing_verdict(service_plan, None, snapshot.at).reason
    if progressing in _STARTS and ready in (Ready.NO_REPLICA_READY, Ready.PROBE_PENDING):
        return StatusUrgency.SETTLING
    return StatusUrgency.USUAL


def deleting_status(
    service: ObservedService, pods: Sequence[Pod], at: datetime
) -> InferenceServiceStatus:
    """Return the status of a service that a finalizer keeps, with its remaining replicas."""
    message = (
        f"InferenceService/{service.ref.name} is being deleted and kept by metadata.finalizers: "
        f"{counted(len(pods), 'replica')} of 0 are left"
    )
    verdicts = {
        "Progressing": StatusVerdict(Progressing.TERMINATING, message),
        "Ready": StatusVerdict(Ready.TERMINATING, message),
    }
    previous = service.status
    updated = {condition.type: condition for condition in conditions(verdicts, service, at)}
    return previous.model_copy(
        update={
            "conditions": tuple(
                updated.get(condition.type, condition) for condition in previous.conditions
            ),
            "replicas": len(pods),
            "ready_replicas": sum(pod.takes_requests for pod in pods),
        }
    )


def _placed_verdict(
    snapshot: Snapshot, service_plan: ServicePlan
) -> StatusVerdict[PlacementReason]:
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
    if (until := choice.offer.backoff_until) is not None:
        free = f"; no node came in time, so none counts until {until:%Y-%m-%dT%H:%M:%SZ}"
    if other := cheapest_free(snapshot, service_plan.service, service_plan.choice):
        reason = beside_clause(spec, service_plan.placement, other)
        free += (
            f"; {other.offer.hardware.name} of AcceleratorPool/{other.offer.pool} is free, {reason}"
        )
    return StatusVerdict(
        PlacementReason.UNSCHEDULABLE,
        f"spec.placement.pools: {len(stuck)} of {counted(service_plan.desired_pods, 'replica')} "
        f"unschedulable, no free {choice.fit.hardware.name} in "
        f"AcceleratorPool/{pool} ({stuck[0].unschedulable}){free}. Free or add such "
        "hardware, lower spec.scaling.minReplicas, or name another pool.",
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


def _progressing_verdict(
    service_plan: ServicePlan, problem: str | None, at: datetime
) -> StatusVerdict[Progressing]:
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
        or next((each.verdict(at) for each in service_plan.contested), None)
    )
    failure = (
        failure
        or _withheld_verdict(service_plan)
        or _withdrawn_verdict(service_plan)
        or _unpaid_verdict(service_plan)
        or _blocked_verdict(service_plan)
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
        return _complete_verdict(service_plan)
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


def _unpaid_verdict(service_plan: ServicePlan) -> StatusVerdict[Progressing] | None:
    """Return that replicas of previous variants stay while no successor is granted."""
    names = {each.choice.variant for each in service_plan.variants}
    previous = [pod for pod in service_plan.pods if pod.variant not in names]
    scale = service_plan.scale
    if not previous or scale.reason not in _NOT_GRANTED:
        return None
    pools = ", ".join(sorted({pod.variant for pod in previous}))
    message = f"{counted(len(previous), 'replica')} of {pools} stay, which no pool offers any more"
    # The amounts change all the time; that message changes with the count alone.
    message += ", and the TenantBudget grants none in their place: see status.scaling.message"
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


_NOT_GRANTED = (ScalingReason.BUDGET_EXHAUSTED, ScalingReason.GPU_QUOTA_EXCEEDED)


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
    has_previous = any(pod.variant not in names for pod in pods if not pod.terminating)
    if has_previous or any(variant.older for variant in service_plan.variants):
        new, old = _template_progress(service_plan)
        return StatusVerdict(
            Progressing.ROLLING_OUT,
            f"{new} of {counted(desired, 'replica')} updated, {old} old; {strategy}",
        )
    if _is_rolling_out(service_plan):
        new, old = rollout_progress(pods)
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
    """Return whether new replicas replace old ones; a reported rollout lasts until its end."""
    pods, status = service_plan.pods, service_plan.service.status
    if is_rolling_out(pods) or replaces_in_place(pods):
        return True
    reported = any(condition.reason == Progressing.ROLLING_OUT for condition in status.conditions)
    return reported and any(not pod.terminating for pod in pods)


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
    """Return why there is no replica, and how one starts."""
    ref = service_plan.service.ref
    patch = '{"spec": {"scaling": {"minReplicas": 1}}}'
    start = f"patch tsvc {ref.name} --type merge -p '{patch}'"
    if service_plan.schedule is not None:
        start = f"scale tsvc/{ref.name} --replicas=1"
    return (
        f"{service_plan.scale.message}; the next request at the gateway starts a replica. Without "
        f"the gateway: kubectl -n {ref.namespace} {start}"
    )


def _model_status(service_plan: ServicePlan, previous: ModelStatus | None) -> ModelStatus | None:
    """Return weights, shape and cache of the model that runs."""
    if service_plan.preparation is None:
        return previous
    current, pinned = service_plan.preparation.status, service_plan.pinned_revision.status
    has_findings = any((current.shape, current.cache, current.draft))
    if service_plan.choice is None:
        return current if has_findings else previous
    if pinned is None:
        return current if has_findings else None
    if (pinned.uri, pinned.requested_revision) != (current.uri, current.requested_revision):
        return pinned
    findings = {
        "shape": current.shape,
        "source": current.source,
        "cache": current.cache,
        "draft": current.draft,
    }
    return pinned.model_copy(update=findings)


def _precisions(
    service_plan: ServicePlan, previous: InferenceServiceStatus
) -> tuple[PrecisionStatus, ...]:
    """Return what was read of the listed precisions, and which may be chosen."""
    preparation = service_plan.preparation
    if preparation is None or preparation.precisions is None:
        return previous.precisions
    return tuple(check.status for check in preparation.precisions)


def _cost_status(service_plan: ServicePlan, choice: HardwareChoice, day: date) -> CostStatus:
    total_hourly, is_pooling = _hourly_cost(service_plan, choice, day), service_plan.is_pooling
    token_price, assumed_load = _token_price(service_plan, choice)
    per_million = token_price.rounded(4)
    return CostStatus(
        per_hour=total_hourly.rounded(4),
        per_million_tokens=None if is_pooling else per_million,
        per_million_input_tokens=per_million if is_pooling else None,
        currency=total_hourly.currency,
        assumed_load=assumed_load,
    )


def _token_price(service_plan: ServicePlan, choice: HardwareChoice) -> tuple[Money, str]:
    """Return the price of a million tokens, and of which load: of all desired replicas when
    full; while no variant has one, of a replica of the first one."""
    limits, is_pooling = choice.fit.limits, service_plan.is_pooling
    unit = "input tokens/s" if is_pooling else "output tokens/s"
    serving = [variant for variant in service_plan.variants if variant.desired]
    hourly = service_plan.desired_hourly
    if len(service_plan.variants) > 1 and serving and hourly is not None:
        throughput = sum(
            variant.desired * expected_rate(service_plan, variant.choice) for variant in serving
        )
        load = f"{throughput:.0f} {unit} of {instances_text(service_plan)}"
        return per_million_tokens(hourly, throughput), load
    throughput = expected_rate(service_plan, choice)
    load = (
        f"in steps of {counted(limits.max_num_batched_tokens, 'token')}"
        if is_pooling
        else f"with {limits.max_num_seqs} concurrent requests"
    )
    source = speed_source(service_plan, choice).lower()
    return (
        per_million_tokens(choice.hourly, throughput),
        f"{throughput:.0f} {unit} per replica {load}, {source}",
    )


def _hourly_cost(service_plan: ServicePlan, choice: HardwareChoice, day: date) -> Money:
    """Return the price of what runs, and of desired replicas that no running pod stands for."""
    variants = service_plan.variants
    names = {variant.choice.variant for variant in variants}
    running = [pod for pod in service_plan.pods if pod.node is not None and pod.ended is None]
    others = [pod for pod in running if pod.variant not in names]
    product, prices = choice.fit.hardware.product, choice.offer.tariff.prices
    weight = sum(
        weight_of(product, resource) * count
        for pod in others
        for resource, count in pod.devices.items()
    )
    nanos = Tariff(prices, Decimal(weight)).hourly(day).nanos
    for index, variant in enumerate(variants):
        own = sum(pod.variant == variant.choice.variant for pod in running)
        replaced = 0 if index else len(others)
        planned = max(own + replaced, variant.desired) - replaced
        nanos += variant.choice.hourly.times(planned).nanos
    return Money(nanos, choice.hourly.currency)


# Reasons whose message changes with the spec, not with the load.
# Their messages have no measured rates, so they change only when there is something to say.
WITHOUT_RATES = (
    ScalingReason.SET_BY_USER,
    ScalingReason.SCALED_EXTERNALLY,
    ScalingReason.PAUSED,
    ScalingReason.SCALE_DOWN_STABILIZED,
    ScalingReason.UNSCHEDULABLE,
)


def _scaling_status(
    service_plan: ServicePlan, previous: ScalingStatus | None, at: datetime
) -> ScalingStatus:
    """Return the last decision; a message with rates changes only with count or reason."""
    scale, desired = service_plan.scale, service_plan.desired_pods
    schedule = service_plan.schedule.status if service_plan.schedule is not None else None
    lengths = _request_lengths(scale, previous.request_lengths if previous else None)
    if (
        previous
        and (previous.desired_replicas, previous.reason) == (desired, scale.reason)
        and (scale.reason not in WITHOUT_RATES or previous.message == scale.message)
    ):
        if (previous.schedule, previous.request_lengths) == (schedule, lengths):
            return previous
        return previous.model_copy(update={"schedule": schedule, "request_lengths": lengths})
    same = previous is not None and previous.desired_replicas == desired
    reason, message, observed_at, change_at = scale.reason, scale.message, at, scale.change_at
    if previous and not same and (change := _unreported_change(scale, previous)):
        reason, message, observed_at, change_at = change.reason, change.message, change.at, None
    return ScalingStatus(
        desired_replicas=desired,
        reason=reason,
        message=message,
        observed_at=observed_at.replace(microsecond=0),
        change_at=change_at.replace(microsecond=0) if change_at is not None else None,
        recent_changes=previous.recent_changes
        if previous and same
        else _recent_changes(service_plan, previous),
        schedule=schedule,
        request_lengths=lengths,
    )


def _recent_changes(
    service_plan: ServicePlan, previous: ScalingStatus | None
) -> tuple[ReplicaChange, ...]:
    """Return the decisions of the last period; of several variants also the capacity."""
    history, desired = service_plan.scale.history, service_plan.desired_pods
    if len(service_plan.variants) < 2 or history.unit is None:
        return tuple(
            ReplicaChange(at=each.at, replicas=each.replicas) for each in history.decisions[-16:]
        )
    reported = {each.at: each.replicas for each in previous.recent_changes} if previous else {}
    *earlier, last = history.decisions[-16:]
    pods = [*(reported.get(each.at, desired) for each in earlier), desired]
    return tuple(
        ReplicaChange(
            at=each.at,
            replicas=replicas,
            tokens_per_second=round(each.replicas * history.unit.capacity / 1000),
        )
        for each, replicas in zip((*earlier, last), pods, strict=True)
    )


def _request_lengths(
    scale: ScaleDecision, previous: RequestLengths | None
) -> RequestLengths | None:
    """Return the measured lengths; those of the status while they differ by little."""
    lengths = scale.history.lengths
    if lengths is None:
        return previous
    cached = max(0, lengths.prompt - lengths.computed)
    if previous is not None:
        inputs, outputs = previous.input_tokens, previous.output_tokens
        changes = (
            (lengths.prompt - inputs, inputs),
            (lengths.answer - outputs, outputs),
            (cached - (previous.cached_input_tokens or 0), inputs),
        )
        if all(abs(change) <= _MIN_LENGTH_CHANGE * whole for change, whole in changes):
            return previous
    return RequestLengths(
        input_tokens=lengths.prompt,
        output_tokens=lengths.answer,
        cached_input_tokens=cached or None,
    )


def _unreported_change(scale: ScaleDecision, previous: ScalingStatus) -> ScalingChange | None:
    """Return why the number changed, if a later decision came before a status was written."""
    change, reported_at = scale.history.change, previous.observed_at
    if change is None or change.replicas != scale.replicas:
        return None
    return change if reported_at is None or change.at >= reported_at else None
