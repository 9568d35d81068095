"""Explanation of the number of replicas, and the readings that would change it."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.service_status import ScalingStatus
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision
from tessera.domain.scaling.load import in_units, load_of, service_readings, usable_readings
from tessera.domain.scaling.policies.by_name import POLICIES
from tessera.domain.scaling.state import ServiceLoad
from tessera.domain.scaling.target import ScaleTarget, target_of
from tessera.domain.service.variant_counts import shares_of, unit_choice
from tessera.domain.status.scaling import WITHOUT_RATES
from tessera.domain.waits import kind_of


def explain_scaling(snapshot: Snapshot, service_plan: ServicePlan) -> Iterator[Decision]:
    """Yield the decision about the number of replicas; nothing for an invalid spec."""
    spec, scale = service_plan.service.spec, service_plan.scale
    if spec is None:
        return
    status = service_plan.service.status.scaling
    is_read = snapshot.readings is not None and snapshot.readings.problem is None
    without_readings = not is_read and spec.fixed_replicas is None
    replicas = service_plan.desired_pods
    reason, message, since = str(scale.reason), scale.message, None
    change_at = scale.change_at
    if status is not None and (without_readings or status.desired_replicas == replicas):
        reason = status.reason
        since = max((entry.at for entry in status.recent_changes), default=None)
        # Of a window that began before, a plan made here does not know the begin.
        if reason in WITHOUT_RATES:
            message, change_at = status.message, status.change_at
        elif without_readings or reason != scale.reason:
            message, change_at = _dated_message(status), status.change_at
    same = without_readings or reason == scale.reason
    load = replace(_load(snapshot, service_plan), is_read=is_read)
    yield Decision(
        topic="scaling",
        reason=reason,
        message=message,
        since=since,
        numbers=(
            *_numbers(spec, load, service_plan),
            *_further_numbers(service_plan, change_at, snapshot.at),
        ),
        would_change=tuple(_would_change(spec, load, service_plan)),
        replayed="" if same else f"{scale.reason}: {scale.message}",
    )


def _dated_message(status: ScalingStatus) -> str:
    """Return the message of the status with the time of its metrics."""
    if status.observed_at is None:
        return status.message
    return f"{status.message} (at {status.observed_at:%Y-%m-%d %H:%M:%S} UTC)"


def _load(snapshot: Snapshot, service_plan: ServicePlan) -> ServiceLoad:
    choices = service_plan.placement.choices
    shares = shares_of(choices) if choices else {}
    pods = [pod for pod in service_plan.pods if not shares or pod.variant in shares]
    ref = service_plan.service.ref
    usable = usable_readings(snapshot.readings, snapshot.at)
    readings = service_readings(snapshot.readings, usable, ref, pods)
    demand = snapshot.demand_of(ref)
    load = load_of(pods, readings, service_plan.scale.replicas, snapshot.at, demand)
    return in_units(load, pods, shares) if shares else load


def _numbers(
    spec: InferenceServiceSpec, load: ServiceLoad, service_plan: ServicePlan
) -> Iterator[tuple[str, str]]:
    scale, scaling = service_plan.scale, spec.scaling
    bounds = f"{scaling.min_replicas} to {scaling.max_replicas}"
    if spec.fixed_replicas is None:
        yield "replicas", f"{service_plan.desired_pods} desired"
        yield "bounds", bounds
        yield from POLICIES[scaling.policy].numbers(_target(spec, service_plan), load, scale)
        return
    yield "replicas", f"{service_plan.desired_pods} desired by spec.replicas"
    if spec.sets_scaling:
        yield "bounds", f"{bounds}, which rest while spec.replicas is set"


def _target(spec: InferenceServiceSpec, service_plan: ServicePlan) -> ScaleTarget:
    if not (choices := service_plan.placement.choices):
        return target_of(spec, None, 0)
    choice = unit_choice(choices)
    return target_of(
        spec,
        choice.fit.limits,
        choice.fit.max_model_len,
        service_plan.schedule,
        largest_share=max(shares_of(choices).values()),
    )


def _further_numbers(
    service_plan: ServicePlan, change_at: datetime | None, at: datetime
) -> Iterator[tuple[str, str]]:
    """Yield when a window ends, the bounds of schedules, and what the policy would decide."""
    if change_at is not None and change_at > at:
        left = format_duration(timedelta(seconds=round((change_at - at).total_seconds())))
        yield "time left", f"{left}, until {change_at:%H:%M:%S} UTC"
    if service_plan.schedule is not None:
        status = service_plan.schedule.status
        yield "schedule", status.current.schedule
        if (following := status.next) is not None:
            yield (
                "next bounds",
                f"{following.min_replicas} to {following.max_replicas} from "
                f"{status.next_at:%Y-%m-%d %H:%M} UTC, by {following.schedule}",
            )
    if (recommended := service_plan.scale.recommended) is not None:
        pods = service_plan.scale.recommended_pods
        yield "recommended", f"{pods} ({recommended.reason}: {recommended.message})"


def _would_change(
    spec: InferenceServiceSpec, load: ServiceLoad, service_plan: ServicePlan
) -> Iterator[str]:
    scale = service_plan.scale
    if spec.fixed_replicas is not None:
        yield "kubectl scale, or another spec.replicas; without spec.replicas, spec.scaling decides"
        return
    if service_plan.choice is None:
        yield "hardware for the service: see placed"
        return
    refused = service_plan.start_refusal is not None
    reason = ScalingReason.BUDGET_EXHAUSTED if refused else scale.reason
    if reason is ScalingReason.SCALED_EXTERNALLY:
        yield "another spec.replicas, by whoever scales it, or spec.scaling.mode Native"
        return
    if (kind := kind_of(reason)) is not None:
        yield kind.exit
        if reason is not ScalingReason.FAILED_GET_METRICS:
            return
    policy = POLICIES[spec.scaling.policy]
    yield from policy.would_change(_target(spec, service_plan), load, scale)
