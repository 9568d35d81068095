"""The status of the variants of a service."""

from collections.abc import Mapping, Sequence

from tessera.api.precision import CHECKPOINT
from tessera.api.reasons import VariantReason
from tessera.api.template_version import PodTemplateVersionStatus
from tessera.api.text import counted
from tessera.api.variant_status import MAX_VARIANTS, SpeedSource, VariantReplicas, VariantStatus
from tessera.domain.observed.snapshot import Pod
from tessera.domain.perf.sources import as_measured
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.variant_cost import served_by
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.domain.speed.measurements import corrected_rate

_NOT_OFFERED = {
    "desired_replicas": 0,
    "reason": VariantReason.NOT_OFFERED,
    "message": "no pool offers it to the service any more, so its replicas stop once others serve",
}


def variant_status(service_plan: ServicePlan, choice: HardwareChoice) -> VariantStatus:
    """Return the hardware and precision of a variant, with what a replica of it carries."""
    fit, is_pooling = choice.fit, service_plan.is_pooling
    rate = round(expected_rate(service_plan, choice))
    return VariantStatus(
        name=choice.variant,
        pool=choice.offer.pool,
        product=fit.hardware.product,
        profile=fit.hardware.profile,
        gpus=fit.hardware.devices,
        precision=fit.precision or CHECKPOINT,
        max_model_len=fit.max_model_len,
        max_num_seqs=fit.limits.max_num_seqs,
        max_num_batched_tokens=fit.limits.max_num_batched_tokens,
        kv_cache_tokens=fit.memory.kv_tokens,
        tokens_per_second=0 if is_pooling else rate,
        input_tokens_per_second=rate if is_pooling else None,
        source=speed_source(service_plan, choice),
    )


def expected_rate(service_plan: ServicePlan, choice: HardwareChoice) -> float:
    """Return the tokens per second of a replica, corrected where its variant was measured."""
    measured = service_plan.measured_speed if _is_reference(service_plan, choice) else None
    return corrected_rate(choice.fit.limits.tokens_per_second, measured)


def speed_source(service_plan: ServicePlan, choice: HardwareChoice) -> SpeedSource:
    """Return where the speed of a variant is known from."""
    is_measured = _is_reference(service_plan, choice) and service_plan.measured_speed is not None
    return "Measured" if is_measured else choice.fit.step.source


def speed_error(service_plan: ServicePlan, choice: HardwareChoice) -> float | None:
    """Return the error of the rate of a variant as a share; None where it is not known."""
    fit, measured = choice.fit, service_plan.measured_speed
    spec = service_plan.service.spec
    shape = shape_of(spec) if spec is not None else None
    if shape is None or measured is None or not _is_reference(service_plan, choice):
        return fit.rate_error
    return fit.error_by(as_measured(fit.step, measured.ratio, shape, fit.precision).error)


def _is_reference(service_plan: ServicePlan, choice: HardwareChoice) -> bool:
    return service_plan.choice is not None and choice.variant == service_plan.choice.variant


def variant_statuses(service_plan: ServicePlan) -> tuple[VariantReplicas, ...] | None:
    """Return all variants of a service, which are not said while there is one.

    Those that no pool offers any more come last, as they were reported, until their pods are gone.
    """
    reported = {each.name: each for each in service_plan.service.status.variants or ()}
    statuses = []
    for variant in service_plan.variants:
        last = reported.pop(variant.choice.variant, None)
        statuses.append(_variant_replicas(service_plan, variant, last))
    statuses += [
        each.model_copy(update={**_NOT_OFFERED, **_numbers(pods)})
        for each in reported.values()
        if (pods := [pod for pod in service_plan.pods if pod.variant == each.name])
    ]
    return tuple(statuses[:MAX_VARIANTS]) if len(statuses) > 1 else None


def _numbers(pods: Sequence[Pod]) -> Mapping[str, int]:
    ready = sum(pod.takes_requests for pod in pods)
    return {"replicas": len(pods), "ready_replicas": ready}


def _variant_replicas(
    service_plan: ServicePlan, variant: VariantPlan, reported: VariantReplicas | None
) -> VariantReplicas:
    choice = variant.choice
    pods = [pod for pod in service_plan.pods if pod.variant == choice.variant]
    # The last change stays while the number does, whatever pods come and go meanwhile.
    is_unchanged = (
        reported is not None
        and reported.desired_replicas == variant.desired
        and reported.reason is not VariantReason.NOT_OFFERED  # it is offered again
    )
    change = reported if is_unchanged else variant.change
    return VariantReplicas(
        **variant_status(service_plan, choice).model_dump(),
        tier=choice.offer.tier,
        desired_replicas=variant.desired,
        **_numbers(pods),
        per_hour=choice.hourly.rounded(4),
        currency=choice.hourly.currency,
        reason=change.reason if change is not None else None,
        message=change.message if change is not None else None,
        pod_template_version=template_record(service_plan, variant),
    )


def template_record(
    service_plan: ServicePlan, variant: VariantPlan
) -> PodTemplateVersionStatus | None:
    """Return what determines the template that its Deployment has, or gets now; None if unknown."""
    status = service_plan.service.status
    if variant.workload is None and variant.older:
        for reported in status.variants or ():
            if reported.name == variant.choice.variant:
                return reported.pod_template_version
        if status.pod_template_version is not None:
            return status.pod_template_version
        workloads = service_plan.workloads
        return next((each.record for each in workloads if each.ref in variant.older), None)
    return variant.template.record


def capacity_text(service_plan: ServicePlan) -> str:
    """Return what the load needs, or what the desired replicas serve where their number is set."""
    capacity = service_plan.need.capacity
    if service_plan.scale.pods is not None and service_plan.scale.recommended is None:
        variants = service_plan.variants
        capacity = served_by((each.choice, each.desired) for each in variants).capacity
    unit = "input tok/s" if service_plan.is_pooling else "tok/s"
    return f"{round(capacity / 1000)} {unit}"


def instances_text(service_plan: ServicePlan) -> str | None:
    """Return the variant of the replicas; of several ones how many are desired of each."""
    used = service_plan.used_variants
    if len(used) == 1:
        return used[0].choice.variant
    return ", ".join(f"{variant.desired} {variant.choice.variant}" for variant in used) or None


def variants_text(service_plan: ServicePlan) -> str:
    """Return the variants with replicas, as their names, numbers and prices."""
    return ", ".join(
        f"{counted(variant.desired, 'replica')} on {variant.choice.variant} at "
        f"{variant.choice.hourly} per hour"
        for variant in service_plan.used_variants
    )
