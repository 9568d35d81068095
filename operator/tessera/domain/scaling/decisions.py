"""Decisions within their bounds, and the windows that later ones are held to."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.budget.state import Grant
from tessera.domain.scaling.state import (
    Decided,
    ScaleDecision,
    ScalingChange,
    ScalingHistory,
    ScalingPolicy,
    ServiceLoad,
    TimestampedReplicas,
)


def desired_replicas(total: float, target_average: float) -> int:
    """Return ceil(total / target average), the formula of the HorizontalPodAutoscaler."""
    return math.ceil(total / target_average)


def current_replicas(load: ServiceLoad, history: ScalingHistory) -> int:
    """Return the replica count that was decided last; without a history the existing one."""
    return history.decisions[-1].replicas if history.decisions else load.replicas


def with_recent_decisions(
    spec: ScalingSpec, load: ServiceLoad, history: ScalingHistory
) -> ScalingHistory:
    """Return the history with only those decisions that the step limit still needs."""
    start = TimestampedReplicas(load.at, current_replicas(load, history))
    decisions = recent(history.decisions or (start,), load.at, spec.scale_up.period)
    return replace(history, decisions=decisions)


def changed(decided: Decided, at: datetime, current: int, history: ScalingHistory) -> ScaleDecision:
    """Return the decision, with a change of the number in its history."""
    replicas, reason, message = decided
    if replicas != current:
        history = replace(
            history,
            decisions=(*history.decisions, TimestampedReplicas(at, replicas)),
            change=ScalingChange(at=at, replicas=replicas, reason=reason, message=message),
        )
    return ScaleDecision(replicas=replicas, reason=reason, message=message, history=history)


def is_steady(decision: ScaleDecision, at: datetime) -> bool:
    """Return whether repeating the same readings will repeat the decision."""
    history, replicas = decision.history, decision.replicas
    windows = [recommended.replicas for recommended in (*history.up_window, *history.down_window)]
    return windows in ([replicas, replicas], []) and history.decisions[-1].at < at


def cap_to_grant(decision: ScaleDecision, grant: Grant, at: datetime) -> ScaleDecision:
    """Return the decision after fewer replicas were granted; the windows stay."""
    granted_replicas, message = grant.replicas, grant.shortage or ""
    change = decision.history.change
    decisions = tuple(decided for decided in decision.history.decisions if decided.at < at)
    if not decisions or decisions[-1].replicas != granted_replicas:
        decisions = (*decisions, TimestampedReplicas(at, granted_replicas))
        change = ScalingChange(
            at=at, replicas=granted_replicas, reason=grant.reason, message=message
        )
    history = replace(decision.history, decisions=decisions, change=change)
    return replace(
        decision,
        replicas=granted_replicas,
        reason=grant.reason,
        message=message,
        history=history,
    )


def extend_window(
    window: tuple[TimestampedReplicas, ...], at: datetime
) -> tuple[TimestampedReplicas, ...]:
    """Return the window in which the last recommendation stands until now."""
    return (*window[:-1], TimestampedReplicas(at, window[-1].replicas)) if window else ()


def clamp(spec: ScalingSpec, replicas: int) -> int:
    """Return the count within the bounds of a service in use."""
    return min(max(replicas, spec.floor), spec.max_replicas)


def decide_bounds(policy: ScalingPolicy, current: int) -> Decided | None:
    """Return the nearest count within the bounds; None if the current one is."""
    replicas = clamp(policy.spec, current)
    if replicas == current:
        return None
    bound = "minReplicas" if replicas > current else "maxReplicas"
    message = f"{policy.bounds_source}{bound} is {replicas}"
    return Decided(replicas, ScalingReason.BOUNDS_CHANGED, message)


def push(
    window: tuple[TimestampedReplicas, ...],
    new: TimestampedReplicas,
    span: timedelta,
    *,
    lowest: bool,
) -> tuple[TimestampedReplicas, ...]:
    """Append to a window of extremes; drop what is too old or no extreme any more."""
    sign = 1 if lowest else -1
    remaining = tuple(
        old
        for old in window
        if new.at - old.at < span and sign * old.replicas < sign * new.replicas
    )
    return (*remaining, new)


def recent(
    decisions: tuple[TimestampedReplicas, ...], now: datetime, period: timedelta
) -> tuple[TimestampedReplicas, ...]:
    """Return the decisions of the last period, first the one in effect when it began."""
    while len(decisions) > 1 and now - decisions[1].at >= period:
        decisions = decisions[1:]
    return decisions
