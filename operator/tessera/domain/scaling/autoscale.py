"""How many replicas: waiting requests lead, the activity of the slices guards.

The rules are those of the HorizontalPodAutoscaler (ratio with tolerance, windows, step limit), with
one difference: an engine that decodes is nearly always active, so activity above its target keeps
replicas, and adds some only while something waits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.budget.state import Grant
from tessera.domain.names import ENGINE_ACCOUNT

TOLERANCE = 0.1
_METRICS_ADVICE = (
    "no replica is removed. Check with tessera doctor that Prometheus answers and scrapes "
    f"PodMonitor/{ENGINE_ACCOUNT}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLoad:
    """The load of a service; None is "not known"."""

    at: datetime
    replicas: int
    """Existing replicas; without a history they count as desired."""
    ready: int
    """Ready replicas, over which the activity is averaged."""
    waiting: float | None
    """Waiting requests of all replicas."""
    activity: float | None
    """Mean share of time in which the slices of ready replicas compute."""


@dataclass(frozen=True, slots=True)
class TimestampedReplicas:
    """A replica count, and when it was decided or recommended."""

    at: datetime
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingHistory:
    """What the next decision needs of earlier ones."""

    up_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-up window that no later one undercuts, oldest first."""
    down_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-down window that no later one exceeds, oldest first."""
    decisions: tuple[TimestampedReplicas, ...] = ()
    """Decisions of the last period, oldest first; the last one is in effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDecision:
    """The replica count with its reason; the caller keeps the history."""

    replicas: int
    reason: ScalingReason
    message: str
    history: ScalingHistory


def desired_replicas(total: float, target_average: float) -> int:
    """Return ceil(total / target average), the formula of the HorizontalPodAutoscaler."""
    return math.ceil(total / target_average)


def scale(policy: ScalingSpec, load: ServiceLoad, history: ScalingHistory) -> ScaleDecision:
    """Choose the replica count.

    Without a history (a new service, or a restarted operator that could not read it back) the
    current count stands as recommended until now, so that no window ends early.
    """
    current = history.decisions[-1].replicas if history.decisions else load.replicas
    recommendation = _recommend(policy, load, current)
    clamped = _clamp(policy, recommendation.replicas)
    history = _record(policy, load.at, current, clamped, history)
    decisions = _recent(history.decisions, load.at, policy.scale_up.period)
    history = replace(history, decisions=decisions)
    replicas, reason, message = _decide(policy, recommendation, clamped, current, history)
    if replicas != current:
        history = replace(
            history, decisions=(*history.decisions, TimestampedReplicas(load.at, replicas))
        )
    return ScaleDecision(replicas=replicas, reason=reason, message=message, history=history)


def is_steady(decision: ScaleDecision, at: datetime) -> bool:
    """Return whether repeating the same readings will repeat the decision."""
    history, replicas = decision.history, decision.replicas
    windows = [recommended.replicas for recommended in (*history.up_window, *history.down_window)]
    return windows in ([replicas, replicas], []) and history.decisions[-1].at < at


def extend_windows(history: ScalingHistory, at: datetime) -> ScalingHistory:
    """Return the history as if the last recommendation was repeated until `at`."""
    up_window = _extend_window(history.up_window, at)
    down_window = _extend_window(history.down_window, at)
    return replace(history, up_window=up_window, down_window=down_window)


def _extend_window(
    window: tuple[TimestampedReplicas, ...], at: datetime
) -> tuple[TimestampedReplicas, ...]:
    return (*window[:-1], TimestampedReplicas(at, window[-1].replicas)) if window else ()


def recommended_replicas(policy: ScalingSpec, load: ServiceLoad, current: int) -> int:
    """Return the recommendation of one reading within the bounds, before windows and steps."""
    return _clamp(policy, _recommend(policy, load, current).replicas)


def cap_to_grant(decision: ScaleDecision, grant: Grant, at: datetime) -> ScaleDecision:
    """Return the decision after fewer replicas were granted; the windows stay."""
    granted_replicas = grant.replicas
    decisions = tuple(decided for decided in decision.history.decisions if decided.at < at)
    if not decisions or decisions[-1].replicas != granted_replicas:
        decisions = (*decisions, TimestampedReplicas(at, granted_replicas))
    history = replace(decision.history, decisions=decisions)
    return ScaleDecision(
        replicas=granted_replicas,
        reason=grant.reason,
        message=grant.shortage or "",
        history=history,
    )


def rebuild_history(
    policy: ScalingSpec, readings: Sequence[ServiceLoad], history: ScalingHistory
) -> ScalingHistory:
    """Build the windows from past readings, oldest first."""
    for load in readings:
        current = history.decisions[-1].replicas if history.decisions else load.replicas
        recommended = _clamp(policy, _recommend(policy, load, current).replicas)
        history = _record(policy, load.at, current, recommended, history)
    return history


def _record(
    policy: ScalingSpec, at: datetime, current: int, recommended: int, history: ScalingHistory
) -> ScalingHistory:
    """Add a recommendation to both windows; an unknown past counts as the current number."""
    start = (TimestampedReplicas(at, current),)
    new = TimestampedReplicas(at, recommended)
    return ScalingHistory(
        up_window=_push(
            history.up_window or start, new, policy.scale_up.stabilization_window, lowest=True
        ),
        down_window=_push(
            history.down_window or start, new, policy.scale_down.stabilization_window, lowest=False
        ),
        decisions=history.decisions or start,
    )


def _clamp(policy: ScalingSpec, replicas: int) -> int:
    return min(max(replicas, policy.min_replicas), policy.max_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recommendation:
    """The recommendation of one reading, before windows, steps and bounds."""

    replicas: int
    reason: ScalingReason
    message: str


def _recommend(policy: ScalingSpec, load: ServiceLoad, current: int) -> _Recommendation:
    message = _metrics_message(policy, load, current)
    if load.waiting is None:
        replicas, reason = current, ScalingReason.FAILED_GET_METRICS
        message = f"{message}; {_METRICS_ADVICE}"
    elif load.activity is None:
        replicas, reason = (
            max(_by_queue(policy, current, load.waiting), current),
            ScalingReason.METRICS_PARTIAL,
        )
    else:
        replicas, reason = _combine_metrics(policy, load, current, load.waiting, load.activity)
    return _Recommendation(replicas=replicas, reason=reason, message=message)


def _combine_metrics(
    policy: ScalingSpec, load: ServiceLoad, current: int, waiting: float, activity: float
) -> tuple[int, ScalingReason]:
    queue_replicas = _by_queue(policy, current, waiting)
    activity_replicas = _by_activity(policy, current, load.ready, activity)
    if queue_replicas > current and queue_replicas >= activity_replicas:
        return queue_replicas, ScalingReason.QUEUE_ABOVE_TARGET
    if activity_replicas > current and waiting:
        return activity_replicas, ScalingReason.ACTIVITY_ABOVE_TARGET_WITH_QUEUE
    if max(queue_replicas, activity_replicas) < current:
        return max(queue_replicas, activity_replicas), ScalingReason.LOAD_BELOW_TARGET
    is_above_target = queue_replicas < current and activity > policy.activity.target
    return (
        current,
        ScalingReason.ABOVE_ACTIVITY_TARGET if is_above_target else ScalingReason.STEADY,
    )


def _by_queue(policy: ScalingSpec, current: int, waiting: float) -> int:
    return _by_ratio(current, waiting, policy.queue.target)


def _by_activity(policy: ScalingSpec, current: int, ready: int, activity: float) -> int:
    # As in the HPA: a starting replica counts as idle before adding and as on target before
    # removing, so that neither overshoots.
    target = float(policy.activity.target)
    missing = 0.0 if activity > target else max(0, current - ready) * target
    return _by_ratio(current, ready * activity + missing, target)


def _by_ratio(current: int, total: float, target: float) -> int:
    if current and abs(total / (current * target) - 1) <= TOLERANCE:
        return current
    return desired_replicas(total, target)


def _decide(
    policy: ScalingSpec,
    recommendation: _Recommendation,
    clamped: int,
    current: int,
    history: ScalingHistory,
) -> tuple[int, ScalingReason, str]:
    """Apply the windows, then the step, then explain why the count stays."""
    if current != _clamp(policy, current):
        replicas = _clamp(policy, current)
        bound = "minReplicas" if replicas > current else "maxReplicas"
        return replicas, ScalingReason.BOUNDS_CHANGED, f"spec.scaling.{bound} is {replicas}"
    up = min(recommended.replicas for recommended in history.up_window)
    down = max(recommended.replicas for recommended in history.down_window)
    if up > current:
        return _scale_up(policy, recommendation, up, current, history.decisions[0].replicas)
    if down < current:
        return down, ScalingReason.LOAD_BELOW_TARGET, recommendation.message
    return (
        current,
        _hold_reason(recommendation, clamped, current),
        _hold_message(policy, recommendation, clamped, current),
    )


def _scale_up(
    policy: ScalingSpec, recommendation: _Recommendation, target: int, current: int, previous: int
) -> tuple[int, ScalingReason, str]:
    """Raise to the lowest recommendation of the window, within the step of one period."""
    limit = previous + policy.scale_up.pods
    replicas = max(current, min(target, limit))
    reason = recommendation.reason
    if replicas == target:
        return target, reason, recommendation.message
    period = int(policy.scale_up.period.total_seconds())
    message = (
        f"{recommendation.message}; desired {target}, limited to {limit} by spec.scaling.scaleUp: "
        f"{policy.scale_up.pods} more than {period} s ago ({previous})"
    )
    return (replicas, reason if replicas > current else ScalingReason.SCALE_UP_LIMIT, message)


def _hold_reason(recommendation: _Recommendation, clamped: int, current: int) -> ScalingReason:
    if recommendation.reason in (
        ScalingReason.FAILED_GET_METRICS,
        ScalingReason.METRICS_PARTIAL,
        ScalingReason.ABOVE_ACTIVITY_TARGET,
    ):
        return recommendation.reason
    if recommendation.replicas > current and clamped == current:
        return ScalingReason.TOO_MANY_REPLICAS
    if clamped > current:
        return ScalingReason.SCALE_UP_STABILIZED
    if clamped < current:
        return ScalingReason.SCALE_DOWN_STABILIZED
    return ScalingReason.STEADY


def _hold_message(
    policy: ScalingSpec, recommendation: _Recommendation, clamped: int, current: int
) -> str:
    if clamped > current:
        window = int(policy.scale_up.stabilization_window.total_seconds())
        return f"{recommendation.message}; desired {clamped}, stabilizing for {window} s"
    if clamped < current:
        window = int(policy.scale_down.stabilization_window.total_seconds())
        return f"{recommendation.message}; desired {clamped}, stabilizing for {window} s"
    if recommendation.replicas > clamped:
        return (
            f"{recommendation.message}; desired {recommendation.replicas}, "
            f"spec.scaling.maxReplicas is {clamped}"
        )
    return recommendation.message


def _metrics_message(policy: ScalingSpec, load: ServiceLoad, current: int) -> str:
    """Return the readings with their targets, with which every message begins."""
    queue = (
        "waiting requests unknown"
        if load.waiting is None
        else f"{load.waiting:.0f} waiting (target {policy.queue.target} per replica)"
    )
    activity = (
        "activity unknown"
        if load.activity is None
        else f"activity {load.activity:.2f} (target {policy.activity.target})"
    )
    return f"{queue}, {activity}, {counted(current, 'replica')}"


def _push(
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


def _recent(
    decisions: tuple[TimestampedReplicas, ...], now: datetime, period: timedelta
) -> tuple[TimestampedReplicas, ...]:
    """Return the decisions of the last period, first the one in effect when it began."""
    while len(decisions) > 1 and now - decisions[1].at >= period:
        decisions = decisions[1:]
    return decisions
