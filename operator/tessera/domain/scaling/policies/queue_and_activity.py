"""How many replicas: waiting requests and activity add them, running requests allow removal.

The rules are those of the HorizontalPodAutoscaler (ratio with tolerance, windows, step limit), with
one difference: an engine that decodes is nearly always active, so activity adds replicas only while
something waits, and keeps none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.names import ENGINE_ACCOUNT
from tessera.domain.scaling.decisions import (
    changed,
    clamp,
    current_replicas,
    decide_bounds,
    desired_replicas,
    extend_window,
    fewer_enough,
    push,
    with_recent_decisions,
)
from tessera.domain.scaling.idle import decide_idle
from tessera.domain.scaling.state import (
    MAX_READING_GAP,
    Decided,
    ScaleDecision,
    ScalingHistory,
    ScalingPolicy,
    ServiceLoad,
    TimestampedReplicas,
)

TOLERANCE = 0.1
_METRICS_ADVICE = (
    "no replica is removed, and after 5 minutes without readings the stabilization of "
    "scale-down starts again. Check with tessera doctor that Prometheus answers and scrapes "
    f"PodMonitor/{ENGINE_ACCOUNT}"
)


def scale(policy: ScalingPolicy, load: ServiceLoad, history: ScalingHistory) -> ScaleDecision:
    """Choose the replica count.

    Without a history (a new service, or a restarted operator that could not read it back) the
    current count stands as recommended until now, so that no window ends early.
    """
    idle, history = decide_idle(policy, load, history)
    if idle is not None:
        return idle
    current = current_replicas(load, history)
    recommendation = _recommend(policy, load, current)
    recommended = clamp(policy.spec, recommendation.replicas)
    history = _record(policy.spec, load, current, recommended, history)
    history = with_recent_decisions(policy.spec, load, history)
    decided = _decide(policy, load, recommendation, current, history)
    return changed(decided, load.at, current, history)


def recommended_replicas(policy: ScalingPolicy, load: ServiceLoad, current: int) -> int:
    """Return the recommendation of one reading within the bounds, before windows and steps."""
    return clamp(policy.spec, _recommend(policy, load, current).replicas)


def rebuild_history(
    policy: ScalingPolicy, readings: Sequence[ServiceLoad], history: ScalingHistory
) -> ScalingHistory:
    """Build the windows from past readings, oldest first.

    The policy `Capacity` begins with the decisions alone: nothing is removed before its time.
    """
    if policy.spec.policy == "Capacity":
        return history
    for load in readings:
        current = history.decisions[-1].replicas if history.decisions else load.replicas
        recommended = recommended_replicas(policy, load, current)
        history = _record(policy.spec, load, current, recommended, history)
    return history


def _record(
    spec: ScalingSpec, load: ServiceLoad, current: int, recommended: int, history: ScalingHistory
) -> ScalingHistory:
    """Add a recommendation to both windows, in which the one before it stands until now.

    An unknown past counts as the current number: before the first reading, and for scale-down also
    after a gap in the readings.
    """
    at = load.at
    start, new = TimestampedReplicas(at, current), TimestampedReplicas(at, recommended)
    history = replace(history, decisions=history.decisions or (start,))
    if not load.is_known and recommended <= current:
        return history
    up_window = extend_window(history.up_window, at) or (start,)
    down_window = extend_window(history.down_window, at) or (start,)
    down_span = spec.scale_down.stabilization_window
    if history.down_window and at - history.down_window[-1].at >= MAX_READING_GAP:
        down_window = push(down_window, start, down_span, lowest=False)
    return replace(
        history,
        up_window=push(up_window, new, spec.scale_up.stabilization_window, lowest=True),
        down_window=push(down_window, new, down_span, lowest=False),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recommendation:
    """The recommendation of one reading, before windows, steps and bounds."""

    replicas: int
    reason: ScalingReason
    message: str


def _recommend(policy: ScalingPolicy, load: ServiceLoad, current: int) -> _Recommendation:
    message = _metrics_message(policy, load, current)
    if load.waiting is None or load.running is None:
        replicas, reason = _by_known_queue(policy, load, current)
        message = f"{message}; {_METRICS_ADVICE}"
    else:
        replicas, reason = _combine_metrics(policy, load, current, load.waiting, load.running)
    return _Recommendation(replicas=replicas, reason=reason, message=message)


def _combine_metrics(
    policy: ScalingPolicy, load: ServiceLoad, current: int, waiting: float, running: float
) -> tuple[int, ScalingReason]:
    replica_requests = policy.replica_requests
    # What starting replicas will run orders no more of them, however long their start takes.
    queue = max(0.0, waiting - max(0, current - load.ready) * replica_requests)
    queue_replicas = _by_queue(current, queue, policy.queue_target)
    activity_replicas = _by_activity(policy.spec, load, current) if waiting else 0
    if queue_replicas > current and queue_replicas >= activity_replicas:
        return queue_replicas, ScalingReason.QUEUE_ABOVE_TARGET
    if activity_replicas > current:
        return activity_replicas, ScalingReason.ACTIVITY_ABOVE_TARGET_WITH_QUEUE
    request_replicas = desired_replicas(waiting + running, replica_requests)
    needed = max(queue_replicas, request_replicas)
    if needed < current:
        return needed, ScalingReason.LOAD_BELOW_TARGET
    return current, ScalingReason.STEADY


def _by_known_queue(
    policy: ScalingPolicy, load: ServiceLoad, current: int
) -> tuple[int, ScalingReason]:
    """Return what the known part of the queue needs: unknown requests can only add to it."""
    starting = max(0, current - load.serving)
    queue = max(0.0, load.known_waiting - starting * policy.replica_requests)
    replicas = _by_queue(current, queue, policy.queue_target)
    if replicas > current:
        return replicas, ScalingReason.QUEUE_ABOVE_TARGET
    return current, ScalingReason.FAILED_GET_METRICS


def _by_activity(spec: ScalingSpec, load: ServiceLoad, current: int) -> int:
    """Return the replicas for the target; those that start count as idle."""
    if load.activity is None:
        return 0
    return _by_ratio(current, load.ready * load.activity, float(spec.activity.target))


def _by_queue(current: int, waiting: float, target: float) -> int:
    """Return the replicas for the target; one waiting request adds at most one."""
    return min(_by_ratio(current, waiting, target), current + math.ceil(waiting))


def _by_ratio(current: int, total: float, target: float) -> int:
    if current and abs(total / (current * target) - 1) <= TOLERANCE:
        return current
    return desired_replicas(total, target)


def _decide(
    policy: ScalingPolicy,
    load: ServiceLoad,
    recommendation: _Recommendation,
    current: int,
    history: ScalingHistory,
) -> Decided:
    """Apply the windows, then the step, then explain why the count stays."""
    if (bounded := decide_bounds(policy, current)) is not None:
        return bounded
    if recommendation.reason is ScalingReason.FAILED_GET_METRICS:
        return Decided(current, recommendation.reason, recommendation.message)
    up = min(recommended.replicas for recommended in history.up_window)
    down = max(recommended.replicas for recommended in history.down_window)
    if up > current:
        previous = history.decisions[0].replicas
        return _scale_up(policy.spec, recommendation, up, current, previous)
    if down < current:
        return Decided(down, ScalingReason.LOAD_BELOW_TARGET, recommendation.message)
    return _hold(policy, load, recommendation, current, history)


def _scale_up(
    spec: ScalingSpec, recommendation: _Recommendation, target: int, current: int, previous: int
) -> Decided:
    """Raise to the lowest recommendation of the window, within the step of one period."""
    limit = previous + spec.scale_up.pods
    replicas = max(current, min(target, limit))
    reason = recommendation.reason
    if replicas == target:
        return Decided(target, reason, recommendation.message)
    period = int(spec.scale_up.period.total_seconds())
    message = (
        f"{recommendation.message}; desired {target}, limited to {limit} by spec.scaling.scaleUp: "
        f"{spec.scale_up.pods} more than {period} s ago ({previous})"
    )
    reason = reason if replicas > current else ScalingReason.SCALE_UP_LIMIT
    return Decided(replicas, reason, message)


def _hold(
    policy: ScalingPolicy,
    load: ServiceLoad,
    recommendation: _Recommendation,
    current: int,
    history: ScalingHistory,
) -> Decided:
    """Return the current number with what keeps it."""
    spec = policy.spec
    clamped, message = clamp(spec, recommendation.replicas), recommendation.message
    if clamped > current:
        lower = [each.at for each in history.up_window if each.replicas <= current]
        change_at = max(lower, default=load.at) + spec.scale_up.stabilization_window
        message = f"{message}; desired {clamped}, added at {change_at:%H:%M:%S} UTC if it stays so"
        return Decided(current, ScalingReason.SCALE_UP_STABILIZED, message, change_at)
    if clamped < current:
        span = spec.scale_down.stabilization_window
        return fewer_enough(history.down_window, load.at, span, current)
    if recommendation.replicas > current:
        limit = f"{policy.bounds_source}maxReplicas is {clamped}"
        desired = f"desired {recommendation.replicas}, {limit}"
        return Decided(current, ScalingReason.TOO_MANY_REPLICAS, f"{message}; {desired}")
    is_partial = load.activity is None
    reason = ScalingReason.METRICS_PARTIAL if is_partial else ScalingReason.STEADY
    return Decided(current, reason, message)


def _metrics_message(policy: ScalingPolicy, load: ServiceLoad, current: int) -> str:
    """Return the readings with their targets, with which every message begins."""
    target = f"(target {policy.queue_target:.3g} per replica)"
    if load.waiting is not None:
        queue = f"{load.waiting:.0f} waiting {target}"
    elif load.known_waiting:
        queue = f"at least {load.known_waiting:.0f} waiting {target}"
    else:
        queue = "waiting requests unknown"
    running = (
        "running requests unknown"
        if load.running is None
        else f"{load.running:.0f} running (at most {policy.max_num_seqs} per replica)"
    )
    activity = (
        "activity unknown"
        if load.activity is None
        else f"activity {load.activity:.2f} (target {policy.spec.activity.target})"
    )
    return f"{queue}, {running}, {activity}, {counted(current, 'replica')}"
