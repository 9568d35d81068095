"""Decisions within their bounds, and the windows that later ones are held to."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.budget.state import Grant
from tessera.domain.scaling.state import (
    MAX_READING_GAP,
    Decided,
    ScaleDecision,
    ScalingChange,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ScaleTarget

_RECENT_SPAN = timedelta(seconds=60)
# A replica that the load did not need for so long may lend its device to a version that is tried.
NEED_SPAN = timedelta(minutes=30)


def desired_replicas(total: float, target_average: float) -> int:
    """Return ceil(total / target average), the formula of the HorizontalPodAutoscaler."""
    return math.ceil(total / target_average)


def current_replicas(load: ServiceLoad, history: ScalingHistory) -> int:
    """Return the replica count that was decided last; without a history the existing one."""
    return history.decisions[-1].replicas if history.decisions else load.replicas


def current_pods(load: ServiceLoad, history: ScalingHistory) -> int:
    """Return the pods of all variants that were decided last."""
    if history.counts:
        return sum(replicas for _, replicas in history.counts)
    return current_replicas(load, history)


def with_recent_decisions(
    spec: ScalingSpec, load: ServiceLoad, history: ScalingHistory
) -> ScalingHistory:
    """Return the history with only those decisions that the step limit still needs."""
    start = TimestampedReplicas(load.at, current_replicas(load, history))
    decisions = recent(history.decisions or (start,), load.at, spec.scale_up.period)
    return replace(history, decisions=decisions)


def changed(decided: Decided, at: datetime, current: int, history: ScalingHistory) -> ScaleDecision:
    """Return the decision, with a change of the number in its history."""
    replicas, reason, message, change_at = decided
    if replicas != current:
        history = replace(
            history,
            decisions=(*history.decisions, TimestampedReplicas(at, replicas)),
            change=ScalingChange(at=at, replicas=replicas, reason=reason, message=message),
        )
    return ScaleDecision(
        replicas=replicas, reason=reason, message=message, change_at=change_at, history=history
    )


def cap_to_grant(
    decision: ScaleDecision, granted_replicas: int, grant: Grant, at: datetime
) -> ScaleDecision:
    """Return the decision after fewer replicas were granted; the windows stay."""
    message = grant.shortage or ""
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
        change_at=None,
        history=history,
    )


def decide_bounds(target: ScaleTarget, current: int) -> Decided | None:
    """Return the nearest count within the bounds; None if the current one is."""
    replicas = target.clamp(current)
    if replicas == current:
        return None
    bound = ("minReplicas", target.spec.floor)
    if replicas < current:
        bound = ("maxReplicas", target.spec.max_replicas)
    message = f"{target.bounds_source}{bound[0]} is {bound[1]}"
    return Decided(replicas, ScalingReason.BOUNDS_CHANGED, message)


def push(
    window: tuple[TimestampedReplicas, ...],
    start: TimestampedReplicas,
    new: TimestampedReplicas,
    span: timedelta,
    *,
    lowest: bool,
) -> tuple[TimestampedReplicas, ...]:
    """Append to a window of extremes, in which the last recommendation stands until now.

    What is too old or no extreme any more is dropped; an empty window begins with `start`.
    """
    last = TimestampedReplicas(new.at, window[-1].replicas) if window else start
    sign = 1 if lowest else -1
    remaining = tuple(
        old
        for old in (*window[:-1], last)
        if new.at - old.at < span and sign * old.replicas < sign * new.replicas
    )
    return (*remaining, new)


def with_need(
    needs: tuple[TimestampedReplicas, ...], decision: ScaleDecision, at: datetime
) -> tuple[TimestampedReplicas, ...]:
    """Return the needs of the last half hour with that of now; none before the load is known.

    Later on, what is not known counts as the number in effect, and so does the time before.
    """
    window, current = decision.history.down_window, TimestampedReplicas(at, decision.replicas)
    if not window and not needs:
        return ()
    decisions = decision.history.decisions or (current,)
    needed = decision.replicas
    if window and at - window[-1].at < MAX_READING_GAP:
        needed = window[-1].replicas
    if decisions[-1].at == at and decisions[-1].replicas > decisions[-2:][0].replicas:
        # It was added for the load, be that known in part only.
        needed = max(needed, decision.replicas)
    start = TimestampedReplicas(at, max(each.replicas for each in decisions))
    new = TimestampedReplicas(at, needed)
    return push(needs, start, new, NEED_SPAN, lowest=False)


def needed_lately(history: ScalingHistory, at: datetime) -> int | None:
    """Return the replicas of the unit that the last half hour needed; None if not known."""
    needs = history.needs
    recent_needs = (each for each in needs[:-1] if at - each.at < NEED_SPAN)
    return max((each.replicas for each in (*recent_needs, *needs[-1:])), default=None)


def fewer_enough(
    target: ScaleTarget,
    window: Sequence[TimestampedReplicas],
    at: datetime,
    span: timedelta,
    current: int,
) -> Decided:
    """Keep the number, and say how many are enough, since when, and when the others go.

    The largest recommendation of the last minute counts, so that the sentence changes rarely.
    """
    recent_most = max(
        (each.replicas for each in window if at - each.at <= _RECENT_SPAN), default=current
    )
    enough = recent_most if recent_most < current else window[-1].replicas
    since = max((each.at for each in window if each.replicas > enough), default=at)
    verb, goes = ("is", "are")[enough != 1], ("goes", "go")[current - enough != 1]
    return Decided(
        current,
        ScalingReason.SCALE_DOWN_STABILIZED,
        f"{target.counted(current)}; {enough} {verb} enough since {since:%H:%M:%S} UTC, so "
        f"{current - enough} {goes} at {since + span:%H:%M:%S} UTC",
        since + span,
    )


def recent(
    decisions: tuple[TimestampedReplicas, ...], now: datetime, period: timedelta
) -> tuple[TimestampedReplicas, ...]:
    """Return the decisions of the last period, first the one in effect when it began."""
    while len(decisions) > 1 and now - decisions[1].at >= period:
        decisions = decisions[1:]
    return decisions
