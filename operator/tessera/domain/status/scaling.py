"""What a status says of the number of replicas."""

from datetime import datetime
from decimal import Decimal

from tessera.api.reasons import ScalingReason
from tessera.api.service_status import (
    MAX_OTHER_TYPES,
    OtherTypeStatus,
    ReplicaChange,
    RequestLengths,
    ScalingStatus,
)
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.scaling.policies.capacity.policy import CapacityAssessment
from tessera.domain.scaling.state import ScaleDecision, ScalingChange

_MIN_LENGTH_CHANGE = 0.2
# The messages of these reasons have no measured rates: they change with the spec alone, so each
# change is written.
WITHOUT_RATES = (
    ScalingReason.SET_BY_USER,
    ScalingReason.SCALED_EXTERNALLY,
    ScalingReason.PAUSED,
    ScalingReason.SCALE_DOWN_STABILIZED,
    ScalingReason.UNSCHEDULABLE,
)


def scaling_status(
    service_plan: ServicePlan, previous: ScalingStatus | None, at: datetime
) -> ScalingStatus:
    """Return the last decision.

    A message with rates changes only with count, reason, or what slow steps are measured by.
    """
    scale, desired = service_plan.scale, service_plan.desired_pods
    schedule = service_plan.schedule.status if service_plan.schedule is not None else None
    lengths = _request_lengths(scale, previous.request_lengths if previous else None)
    types = _other_types(service_plan, previous)
    if (
        previous
        and (previous.desired_replicas, previous.reason) == (desired, scale.reason)
        and (scale.reason not in WITHOUT_RATES or previous.message == scale.message)
        and _names_slow_steps(scale, previous.message)
    ):
        known = (previous.schedule, previous.request_lengths, previous.other_types)
        if known == (schedule, lengths, types):
            return previous
        update = {"schedule": schedule, "request_lengths": lengths, "other_types": types}
        return previous.model_copy(update=update)
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
        other_types=types,
    )


def _other_types(
    service_plan: ServicePlan, previous: ScalingStatus | None
) -> tuple[OtherTypeStatus, ...] | None:
    """Return what is known of the instance types that do not run; None where nothing is.

    Without hardware it is what was known before.
    """
    history, choice = service_plan.scale.history, service_plan.choice
    slowness, left_at = dict(history.slowness), dict(history.left_types)
    if choice is None:
        return previous.other_types if previous is not None else None
    # The newest last: those of pools that are gone leave first.
    names = [name for name in {**slowness, **left_at} if name != choice.variant]
    if not names:
        return None
    return tuple(
        OtherTypeStatus(
            name=name,
            slowness=Decimal(str(slowness[name])) if name in slowness else None,
            taken_back_at=left_at[name].replace(microsecond=0) if name in left_at else None,
        )
        for name in names[-MAX_OTHER_TYPES:]
    )


def _names_slow_steps(scale: ScaleDecision, message: str) -> bool:
    """Return whether the message names what slow steps are measured by, if any are."""
    assessment = scale.assessment
    slow = assessment.capacity.slow if isinstance(assessment, CapacityAssessment) else None
    return slow is None or slow.source in message


def _recent_changes(
    service_plan: ServicePlan, previous: ScalingStatus | None
) -> tuple[ReplicaChange, ...]:
    """Return the decisions of the last period; what is not placed keeps those of the status.

    They count replicas where the unit is the only variant, else pods with their capacity.
    """
    history, desired = service_plan.scale.history, service_plan.desired_pods
    variants = {variant.choice.variant for variant in service_plan.variants}
    if not variants or not history.decisions:
        return previous.recent_changes if previous else ()
    if history.unit is None or variants == {history.unit.variant}:
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
