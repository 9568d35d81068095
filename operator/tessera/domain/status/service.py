"""The status of services from the plan."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, auto

from tessera.api.budget_reasons import WithinBudget
from tessera.api.reasons import Accepted, Progressing, Ready, StatusVerdict, UpdateAvailable
from tessera.api.service_status import (
    CostStatus,
    InferenceServiceStatus,
    ModelStatus,
    PrecisionStatus,
    RolloutFloorStatus,
    TenancyStatus,
    VariantTemplates,
)
from tessera.api.text import counted
from tessera.api.variant_status import MAX_VARIANTS
from tessera.domain.aspects.aspects import status_fields, verdicts
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.hardware.pools import weight_of
from tessera.domain.health.readiness import was_ready
from tessera.domain.money import Money, Tariff, per_million_tokens
from tessera.domain.names import PORT, selector
from tessera.domain.observed.snapshot import ObservedService, Pod, Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.scaling.starts import next_start_status
from tessera.domain.status.conditions import conditions, with_accepted
from tessera.domain.status.rollouts import gated_verdict, rollout_fields
from tessera.domain.status.scaling import scaling_status
from tessera.domain.status.service_conditions import (
    placed_verdict,
    progressing_verdict,
    ready_verdict,
)
from tessera.domain.status.variants import (
    capacity_text,
    expected_rate,
    instances_text,
    speed_error,
    speed_source,
    template_record,
    variant_status,
    variant_statuses,
)
from tessera.domain.steps import Step, planner_error

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
    budget = budget_view.budget.name if budget_view is not None else ""
    of_conditions = {
        "Accepted": service_plan.accepted,
        "Placed": placed_verdict(snapshot, service_plan),
        "Progressing": gated_verdict(
            service_plan, progressing_verdict(service_plan, problem, snapshot.at, budget)
        ),
        "Ready": ready_verdict(snapshot, service_plan),
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
        rollout_floor=_rollout_floor(service_plan, previous),
        replica_conflicts=tuple(each.conflict for each in service_plan.contested[:MAX_VARIANTS]),
        cost=_cost_status(service_plan, choice, snapshot.at.date()) if choice else previous.cost,
        **status_fields(placed, service_plan.reported),
        tenant=TenancyStatus(
            budget=budget or None,
            reason=budget_view.within_budget.reason
            if budget_view is not None
            else WithinBudget.NO_BUDGET,
            start_refusal=service_plan.start_refusal,
        ),
        scaling=scaling_status(service_plan, previous.scaling, snapshot.at),
        # It is written before the pod is deleted.
        replacement=service_plan.stall.replacement or previous.replacement,
        start=next_start_status(service_plan.pods, previous.start, snapshot.at),
        **rollout_fields(service_plan, _tried_status(snapshot, service_plan), snapshot.at),
    )


def _rollout_floor(
    service_plan: ServicePlan, previous: InferenceServiceStatus
) -> RolloutFloorStatus | None:
    """Return what a rollout keeps; one that stands while nothing is placed keeps what it had."""
    if not service_plan.variants:
        return previous.rollout_floor
    return service_plan.rollout_floor.status if service_plan.rollout_floor else None


def _tried_status(snapshot: Snapshot, service_plan: ServicePlan) -> InferenceServiceStatus | None:
    """Return the status of the version that is tried beside a service, as if it were one."""
    tried = service_plan.candidate
    return _service_status(snapshot, tried, None, None) if tried is not None else None


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
    ready = ready_verdict(snapshot, service_plan).reason
    if was_ready(service_plan.service):
        return StatusUrgency.USUAL if ready.is_true else StatusUrgency.AT_ONCE
    progressing = progressing_verdict(service_plan, None, snapshot.at).reason
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
    findings = ("shape", "source", "cache", "draft")
    return pinned.model_copy(update={name: getattr(current, name) for name in findings})


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
    error = speed_error(service_plan, choice)
    source = speed_source(service_plan, choice).lower()
    source += "" if error is None else f", error {error:.0%}"
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
