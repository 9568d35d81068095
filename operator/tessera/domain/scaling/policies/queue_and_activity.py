"""How many replicas: waiting requests and activity add them, running requests allow removal.

The rules are those of the HorizontalPodAutoscaler (ratio with tolerance, windows, step limit), with
one difference: an engine that decodes is nearly always active, so activity adds replicas only while
something waits, and keeps none.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.names import ENGINE_ACCOUNT
from tessera.domain.scaling.decisions import (
    changed,
    current_replicas,
    decide_bounds,
    desired_replicas,
    fewer_enough,
    push,
    with_recent_decisions,
)
from tessera.domain.scaling.explanation import contradiction_clause, floor_message, load_numbers
from tessera.domain.scaling.idle import decide_idle
from tessera.domain.scaling.state import (
    MAX_READING_GAP,
    Decided,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import HEADROOM, TOLERANCE, ScaleTarget

_METRICS_ADVICE = (
    "no replica is removed, and after 5 minutes without readings the stabilization of "
    "scale-down starts again. Check with tessera doctor that Prometheus answers and scrapes "
    f"PodMonitor/{ENGINE_ACCOUNT}"
)


def decide(target: ScaleTarget, load: ServiceLoad, history: ScalingHistory) -> ScaleDecision:
    """Choose the replica count.

    Without a history (a new service, or a restarted operator that could not read it back) the
    current count stands as recommended until now, so that no window ends early.
    """
    if history.memory is not None:  # of another policy
        history = replace(history, memory=None)
    idle, history = decide_idle(target, load, history)
    if idle is not None:
        return idle
    current = current_replicas(load, history)
    recommendation = _recommend(target, load, current)
    recommended = target.clamp(recommendation.replicas)
    history = _record(target.spec, load, current, recommended, history)
    history = with_recent_decisions(target.spec, load, history)
    decision = changed(
        _decide(target, load, recommendation, current, history), load.at, current, history
    )
    return replace(decision, until=load.until) if _is_steady(decision, load.at) else decision


def _is_steady(decision: ScaleDecision, at: datetime) -> bool:
    """Return whether only other readings change the decision."""
    history, replicas = decision.history, decision.replicas
    windows = [recommended.replicas for recommended in (*history.up_window, *history.down_window)]
    counts_time = history.requests is not None or history.refused is not None
    is_even = windows in ([replicas, replicas], [])
    return is_even and not counts_time and history.decisions[-1].at < at


def recommended_replicas(target: ScaleTarget, load: ServiceLoad, current: int) -> int:
    """Return the recommendation of one reading within the bounds, before windows and steps."""
    return target.clamp(_recommend(target, load, current).replicas)


def restore(
    target: ScaleTarget, readings: Sequence[ServiceLoad], history: ScalingHistory
) -> ScalingHistory:
    """Build the windows from past readings, oldest first."""
    for load in readings:
        current = history.decisions[-1].replicas if history.decisions else load.replicas
        recommended = recommended_replicas(target, load, current)
        history = _record(target.spec, load, current, recommended, history)
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
    down_window, down_span = history.down_window, spec.scale_down.stabilization_window
    if down_window and at - down_window[-1].at >= MAX_READING_GAP:
        down_window = push(down_window, start, start, down_span, lowest=False)
    up_span = spec.scale_up.stabilization_window
    return replace(
        history,
        up_window=push(history.up_window, start, new, up_span, lowest=True),
        down_window=push(down_window, start, new, down_span, lowest=False),
    )


def _recommend(target: ScaleTarget, load: ServiceLoad, current: int) -> Decided:
    """Return the recommendation of one reading, before windows, steps and bounds."""
    message = _metrics_message(target, load, current)
    if load.waiting is None or load.running is None:
        replicas, reason = _by_known_queue(target, load, current)
        message = f"{message}; {_METRICS_ADVICE}"
    else:
        replicas, reason = _combine_metrics(target, load, current, load.waiting, load.running)
    return Decided(replicas, reason, message)


def _combine_metrics(
    target: ScaleTarget, load: ServiceLoad, current: int, waiting: float, running: float
) -> tuple[int, ScalingReason]:
    replica_requests = target.replica_requests
    # What starting replicas will run orders no more of them, however long their start takes.
    queue = max(0.0, waiting - max(0, current - load.ready) * replica_requests)
    queue_replicas = _by_queue(current, queue, target.queue_target)
    activity_replicas = _by_activity(target.spec, load, current) if waiting else 0
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
    target: ScaleTarget, load: ServiceLoad, current: int
) -> tuple[int, ScalingReason]:
    """Return what the known part of the queue needs: unknown requests can only add to it."""
    starting = max(0, current - load.serving)
    queue = max(0.0, load.known_waiting - starting * target.replica_requests)
    replicas = _by_queue(current, queue, target.queue_target)
    if replicas > current:
        return replicas, ScalingReason.QUEUE_ABOVE_TARGET
    return current, ScalingReason.FAILED_GET_METRICS


def _by_activity(spec: ScalingSpec, load: ServiceLoad, current: int) -> int:
    """Return the replicas for the target; those that start count as idle."""
    if load.measured_activity is None:
        return 0
    return _by_ratio(current, load.ready * load.measured_activity, float(spec.activity.target))


def _by_queue(current: int, waiting: float, target: float) -> int:
    """Return the replicas for the target; one waiting request adds at most one."""
    return min(_by_ratio(current, waiting, target), current + math.ceil(waiting))


def _by_ratio(current: int, total: float, target: float) -> int:
    if current and abs(total / (current * target) - 1) <= TOLERANCE:
        return current
    return desired_replicas(total, target)


def _decide(
    target: ScaleTarget,
    load: ServiceLoad,
    recommendation: Decided,
    current: int,
    history: ScalingHistory,
) -> Decided:
    """Apply the windows, then the step, then explain why the count stays."""
    if (bounded := decide_bounds(target, current)) is not None:
        return bounded
    if recommendation.reason is ScalingReason.FAILED_GET_METRICS:
        return recommendation._replace(replicas=current)
    up = min(recommended.replicas for recommended in history.up_window)
    down = max(recommended.replicas for recommended in history.down_window)
    if up > current:
        previous = history.decisions[0].replicas
        return _scale_up(target, recommendation, up, current, previous)
    if down < current:
        return Decided(down, ScalingReason.LOAD_BELOW_TARGET, recommendation.message)
    return _hold(target, load, recommendation, current, history)


def _scale_up(
    target: ScaleTarget, recommendation: Decided, lowest: int, current: int, previous: int
) -> Decided:
    """Raise to the lowest recommendation of the window, within the step of one period."""
    limit = previous + target.step
    replicas = max(current, min(lowest, limit))
    reason = recommendation.reason
    if replicas == lowest:
        return recommendation._replace(replicas=lowest)
    period = int(target.spec.scale_up.period.total_seconds())
    message = (
        f"{recommendation.message}; desired {lowest}, limited to {limit} by spec.scaling.scaleUp: "
        f"{target.step} more than {period} s ago ({previous})"
    )
    reason = reason if replicas > current else ScalingReason.SCALE_UP_LIMIT
    return Decided(replicas, reason, message)


def _hold(
    target: ScaleTarget,
    load: ServiceLoad,
    recommendation: Decided,
    current: int,
    history: ScalingHistory,
) -> Decided:
    """Return the current number with what keeps it."""
    spec = target.spec
    clamped, message = target.clamp(recommendation.replicas), recommendation.message
    if clamped > current:
        lower = [each.at for each in history.up_window if each.replicas <= current]
        change_at = max(lower, default=load.at) + spec.scale_up.stabilization_window
        message = f"{message}; desired {clamped}, added at {change_at:%H:%M:%S} UTC if it stays so"
        return Decided(current, ScalingReason.SCALE_UP_STABILIZED, message, change_at)
    if clamped < current:
        span = spec.scale_down.stabilization_window
        return fewer_enough(target, history.down_window, load.at, span, current)
    if recommendation.replicas > current:
        limit = f"{target.bounds_source}maxReplicas is {spec.max_replicas}"
        desired = f"desired {recommendation.replicas}, {limit}"
        return Decided(current, ScalingReason.TOO_MANY_REPLICAS, f"{message}; {desired}")
    if load.idle_replicas:
        return Decided(current, ScalingReason.INCONSISTENT_METRICS, message)
    is_partial = load.activity is None
    reason = ScalingReason.METRICS_PARTIAL if is_partial else ScalingReason.STEADY
    return Decided(current, reason, message)


def _metrics_message(target: ScaleTarget, load: ServiceLoad, current: int) -> str:
    """Return the readings with their targets, with which every message begins."""
    queue_target = f"(target {target.queue_target:.3g} per replica)"
    if load.waiting is not None:
        queue = f"{load.waiting:.0f} waiting {queue_target}"
    elif load.known_waiting:
        queue = f"at least {load.known_waiting:.0f} waiting {queue_target}"
    else:
        queue = "waiting requests unknown"
    running = (
        "running requests unknown"
        if load.running is None
        else f"{load.running:.0f} running (at most {target.max_num_seqs} per replica)"
    )
    activity = (
        "activity unknown"
        if load.activity is None
        else f"activity {load.activity:.2f} (target {target.spec.activity.target})"
    )
    if load.idle_replicas:
        activity = contradiction_clause(load)
    return f"{queue}, {running}, {activity}, {target.counted(current)}"


numbers = load_numbers


def would_change(target: ScaleTarget, load: ServiceLoad, decision: ScaleDecision) -> Iterator[str]:
    """Yield the queue that would add replicas, and the load that would remove some."""
    if decision.reason is ScalingReason.SCALE_UP_LIMIT:
        up = target.spec.scale_up
        yield (
            f"spec.scaling.scaleUp.pods above {up.pods}, or the end of the "
            f"{format_duration(up.period)} in which that many were added"
        )
    yield _scale_up_message(target, load, decision.replicas)
    yield _scale_down_message(target, load, decision.replicas)
    idle, requests = target.spec.idle, decision.history.requests
    if idle is not None and requests is not None:
        yield (
            f"{format_duration(idle.after)} without a request would remove all replicas; the last "
            f"one was seen at {requests.last_request:%H:%M:%S} UTC"
        )


def _scale_up_message(target: ScaleTarget, load: ServiceLoad, current: int) -> str:
    """Return the shortest queue that would add replicas."""
    if current >= target.most:
        return (
            f"{target.bounds_source}maxReplicas above {target.spec.max_replicas} would let a queue "
            "add more"
        )
    queue = bisect_left(
        range(math.ceil(target.queue_target) * (current + 1) * 2 + target.max_num_seqs * current),
        True,
        key=lambda waiting: _desired_replicas(target, load, current, waiting) > current,
    )
    added = _desired_replicas(target, load, current, queue) - current
    window = format_duration(target.spec.scale_up.stabilization_window)
    waiting = counted(queue, "waiting request")
    without_activity = replace(load, activity=None)
    longest = max(queue, round(load.waiting or 0))
    queue_alone = _desired_replicas(target, without_activity, current, longest)
    activity = load.measured_activity
    if activity is not None and queue_alone <= current:
        window = f"{window}, with activity {activity:.2f} above {target.spec.activity.target},"
    if load.waiting is None:
        return f"{waiting} for {window} would add {target.counted(added)}"
    if load.waiting >= queue:
        now = counted(round(load.waiting), "waiting request")
        return f"{now} for {window} will add replicas"
    missing = queue - load.waiting
    return (
        f"{waiting} in total, {missing / max(1, current):.1f} per replica more than now, for "
        f"{window} would add {target.counted(added)}"
    )


def _desired_replicas(
    target: ScaleTarget, load: ServiceLoad, current: int, waiting: int, running: int = 0
) -> int:
    requests = replace(load, waiting=float(waiting), running=float(running))
    return recommended_replicas(target, requests, current)


def _scale_down_message(target: ScaleTarget, load: ServiceLoad, current: int) -> str:
    """Return the most running requests that would let replicas be removed."""
    if current <= target.spec.floor:
        return floor_message(target)
    running = bisect_left(
        range(target.max_num_seqs * current),
        True,
        key=lambda running: _desired_replicas(target, load, current, 0, running) >= current,
    )
    window = format_duration(target.spec.scale_down.stabilization_window)
    if load.waiting == 0 and load.running is not None and load.running < running:
        now = counted(round(load.running), "running request")
        return f"0 waiting and {now} for {window} will remove replicas"
    return (
        f"at most {counted(running - 1, 'running request')} and none waiting for {window} would "
        f"remove replicas, since those left then fill at most {HEADROOM:.0%} of maxNumSeqs "
        f"({target.max_num_seqs})"
    )
