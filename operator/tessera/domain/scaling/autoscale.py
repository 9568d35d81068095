"""How many replicas: waiting requests and activity add them, running requests allow removal.

The rules are those of the HorizontalPodAutoscaler (ratio with tolerance, windows, step limit), with
one difference: an engine that decodes is nearly always active, so activity adds replicas only while
something waits, and keeps none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.budget.state import Grant
from tessera.domain.names import ENGINE_ACCOUNT
from tessera.domain.observed.snapshot import TokenRates
from tessera.domain.scaling.bursts import Burst
from tessera.domain.scaling.growth import Growth
from tessera.domain.scaling.pace import Pace, TtftShares

TOLERANCE = 0.1
# Share of `maxNumSeqs` that requests may fill on the remaining replicas. A replica with twice its
# share of the connections then runs all of its requests. Steps slow down as they fill: where a full
# step takes three times as long as an empty one, the arrivals that fill this share of the remaining
# half of the replicas fill them completely.
HEADROOM = 0.5
# After so long without a reading, the stabilization window of scale-down starts again.
MAX_READING_GAP = timedelta(minutes=5)
_METRICS_ADVICE = (
    "no replica is removed, and after 5 minutes without readings the stabilization of "
    "scale-down starts again. Check with tessera doctor that Prometheus answers and scrapes "
    f"PodMonitor/{ENGINE_ACCOUNT}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """The scaling spec of a service, with what its class and its hardware add."""

    spec: ScalingSpec
    queue_target: float
    """Waiting requests per replica above which replicas are added."""
    max_num_seqs: int
    """Maximum concurrent requests per replica."""
    bounds_source: str = "spec.scaling."
    """Where the bounds stand, with which messages begin that name one."""

    @property
    def replica_requests(self) -> float:
        """Return how many requests a replica is planned for."""
        return self.max_num_seqs * HEADROOM

    @property
    def longest_window(self) -> timedelta:
        return max(
            self.spec.scale_up.stabilization_window, self.spec.scale_down.stabilization_window
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLoad:
    """The load of a service; None is "not known"."""

    at: datetime
    replicas: int
    """Existing replicas; without a history they count as desired."""
    ready: int
    """Ready replicas with readings."""
    serving: int = 0
    """Ready replicas."""
    waiting: float | None
    """Waiting requests of all replicas."""
    running: float | None
    """Running requests of all replicas."""
    known_waiting: float = 0
    """What waits at least, while `waiting` is not known."""
    activity: float | None
    """Mean share of time in which the slices of ready replicas compute."""
    queued: int | None = None
    """Requests that wait at gateways, which `waiting` includes; None without a gateway."""
    gateway_requests: int = 0
    """Requests that came to gateways since their last report, or are in engines from there."""
    finished: float | None = None
    """Requests that engines finished in the last five minutes."""
    finish_rate: float | None = None
    """Requests per second that engines finished in the last minute."""
    token_rates: TokenRates | None = None
    """Tokens per second that engines computed in the last minute."""
    arrival_rate: float | None = None
    """Requests per second that came to gateways in the last minute."""
    arrivals: tuple[int, ...] = ()
    """Requests that came to gateways in each second of the last minute, oldest first."""
    ttft: TtftShares | None = None
    """None is "not known", as without a gateway."""
    known_requests: float | None = None
    """Waiting and running requests of the replicas with readings; None without any reading."""
    with_counts: int = 0
    """Replicas whose waiting and running requests are known."""

    @property
    def is_known(self) -> bool:
        """Return whether the waiting and running requests of all replicas are known."""
        return self.waiting is not None and self.running is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWatch:
    """What is known of the last request of a service that may sleep."""

    last_request: datetime
    """No request was seen since."""
    read_at: datetime
    """Time of the last load that was known."""
    finished: float | None


@dataclass(frozen=True, slots=True)
class TimestampedReplicas:
    """A replica count, and when it was decided or recommended."""

    at: datetime
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingChange:
    """The last change of the replica count, which may not be reported before the next decision."""

    at: datetime
    replicas: int
    reason: ScalingReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandHistory:
    """What the policy `Capacity` needs of earlier readings."""

    in_flight: tuple[tuple[datetime, float], ...] = ()
    """Waiting and running requests of the last minute, oldest first."""
    known_at: datetime | None = None
    """Time of the last load that was known."""
    full_since: datetime | None = None
    """Since when requests wait although all replicas serve; None while they do not."""
    correction: float = 1.0
    """Share of the predicted capacity that full replicas were measured to carry."""
    lengths: tuple[int, int] | None = None
    """Mean tokens of prompts and answers, as last measured; None before any were."""
    pace: Pace = field(default_factory=Pace)
    growth: Growth = field(default_factory=Growth)
    bursts: tuple[Burst, ...] = ()
    """Those of the last half hour, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingHistory:
    """What the next decision needs of earlier ones."""

    up_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-up window that no later one undercuts, oldest first."""
    down_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-down window that no later one exceeds, oldest first."""
    decisions: tuple[TimestampedReplicas, ...] = ()
    """Decisions of the last period, oldest first; the last one is in effect."""
    change: ScalingChange | None = None
    requests: RequestWatch | None = None
    """Only of a service that may sleep and has replicas."""
    demand: DemandHistory | None = None
    """Only under the policy `Capacity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityAssessment:
    """The numbers behind a decision of the policy `Capacity`."""

    arrival_rate: float
    """Requests per second, of the source that decided."""
    source: str
    """Where the rate comes from."""
    replica_rate: float
    """Requests per second that a replica carries within the SLO, corrected by measurements."""
    bursts: int
    """Replicas that bursts need; 0 for none."""
    needed: int
    """Replicas for the arrivals, with their headroom."""
    retained: int
    """Replicas below which none is removed."""
    hold: timedelta
    """Time for which fewer must be enough before replicas are removed."""


class Decided(NamedTuple):
    """A replica count with its reason, before it is kept."""

    replicas: int
    reason: ScalingReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDecision:
    """The replica count with its reason; the caller keeps the history."""

    replicas: int
    reason: ScalingReason
    message: str
    history: ScalingHistory
    assessment: CapacityAssessment | None = None
    """Only under the policy `Capacity`."""
    recommended: Decided | None = None
    """What the policy would decide; only in mode `External`."""


def desired_replicas(total: float, target_average: float) -> int:
    """Return ceil(total / target average), the formula of the HorizontalPodAutoscaler."""
    return math.ceil(total / target_average)


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


def current_replicas(load: ServiceLoad, history: ScalingHistory) -> int:
    """Return the replica count that was decided last; without a history the existing one."""
    return history.decisions[-1].replicas if history.decisions else load.replicas


def decide_idle(
    policy: ScalingPolicy, load: ServiceLoad, history: ScalingHistory
) -> tuple[ScaleDecision | None, ScalingHistory]:
    """Return the decision for a service that sleeps, or goes to sleep or wakes; else None."""
    if not policy.spec.may_sleep:
        return None, replace(history, requests=None) if history.requests else history
    current = current_replicas(load, history)
    history = replace(history, requests=_watch_requests(load, history.requests))
    if current == 0 or _is_idle(policy, load, history.requests):
        return _idle_decision(policy, load, current, history), history
    return None, history


def with_recent_decisions(
    spec: ScalingSpec, load: ServiceLoad, history: ScalingHistory
) -> ScalingHistory:
    """Return the history with only those decisions that the step limit still needs."""
    start = TimestampedReplicas(load.at, current_replicas(load, history))
    decisions = _recent(history.decisions or (start,), load.at, spec.scale_up.period)
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


def _watch_requests(load: ServiceLoad, watch: RequestWatch | None) -> RequestWatch:
    """Return since when no request is seen; what is not known counts as one.

    `finished` rises with every request, also with one too short for a reading of its run.
    """
    if not load.serving and load.queued is not None:
        # Without a replica all requests are at the gateways.
        seen = load.queued + load.gateway_requests > 0
    elif load.waiting is None or load.running is None:
        return watch or RequestWatch(last_request=load.at, read_at=load.at, finished=None)
    else:
        seen = load.waiting + load.running + load.gateway_requests > 0
        seen = seen or _has_risen(load.finished, watch.finished if watch is not None else None)
    if watch is None or seen or load.at - watch.read_at >= MAX_READING_GAP:
        return RequestWatch(last_request=load.at, read_at=load.at, finished=load.finished)
    return replace(watch, read_at=load.at, finished=load.finished)


def _has_risen(finished: float | None, before: float | None) -> bool:
    """Return whether a request finished: of an extrapolated increase less than half is none."""
    return finished is None or before is None or finished > before + 0.5


def _is_idle(policy: ScalingPolicy, load: ServiceLoad, watch: RequestWatch | None) -> bool:
    idle = policy.spec.idle
    return (
        idle is not None
        and watch is not None
        and watch.read_at == load.at
        and load.at - watch.last_request >= idle.after
    )


def _idle_decision(
    policy: ScalingPolicy, load: ServiceLoad, current: int, history: ScalingHistory
) -> ScaleDecision:
    """Remove all replicas of an idle service, or start the first one for requests that wait.

    Neither waits for a window: the time without requests is one itself, and requests that wait
    for a replica need it at once.
    """
    spec = policy.spec
    if current == 0 and load.queued:
        needed = desired_replicas(load.queued, policy.replica_requests)
        decided = Decided(
            min(needed, spec.max_replicas, spec.scale_up.pods),
            ScalingReason.SCALED_FROM_ZERO,
            f"{counted(load.queued, 'request')} waiting at the gateway, 0 replicas",
        )
    else:
        after = format_duration(spec.idle.after) if spec.idle is not None else ""
        decided = Decided(
            0, ScalingReason.SCALED_TO_ZERO, f"no request for {after} (spec.scaling.idle.after)"
        )
    decisions = history.decisions or (TimestampedReplicas(load.at, current),)
    bare = ScalingHistory(
        decisions=_recent(decisions, load.at, spec.scale_up.period), change=history.change
    )
    return changed(decided, load.at, current, bare)


def is_steady(decision: ScaleDecision, at: datetime) -> bool:
    """Return whether repeating the same readings will repeat the decision."""
    history, replicas = decision.history, decision.replicas
    windows = [recommended.replicas for recommended in (*history.up_window, *history.down_window)]
    return windows in ([replicas, replicas], []) and history.decisions[-1].at < at


def recommended_replicas(policy: ScalingPolicy, load: ServiceLoad, current: int) -> int:
    """Return the recommendation of one reading within the bounds, before windows and steps."""
    return clamp(policy.spec, _recommend(policy, load, current).replicas)


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


def extend_window(
    window: tuple[TimestampedReplicas, ...], at: datetime
) -> tuple[TimestampedReplicas, ...]:
    """Return the window in which the last recommendation stands until now."""
    return (*window[:-1], TimestampedReplicas(at, window[-1].replicas)) if window else ()


def clamp(spec: ScalingSpec, replicas: int) -> int:
    """Return the count within the bounds of a service in use."""
    return min(max(replicas, spec.floor), spec.max_replicas)


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


def decide_bounds(policy: ScalingPolicy, current: int) -> Decided | None:
    """Return the nearest count within the bounds; None if the current one is."""
    replicas = clamp(policy.spec, current)
    if replicas == current:
        return None
    bound = "minReplicas" if replicas > current else "maxReplicas"
    message = f"{policy.bounds_source}{bound} is {replicas}"
    return Decided(replicas, ScalingReason.BOUNDS_CHANGED, message)


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
    return _hold(policy, load, recommendation, current)


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
    policy: ScalingPolicy, load: ServiceLoad, recommendation: _Recommendation, current: int
) -> Decided:
    """Return the current number with what keeps it."""
    spec = policy.spec
    clamped, message = clamp(spec, recommendation.replicas), recommendation.message
    if clamped > current:
        window = int(spec.scale_up.stabilization_window.total_seconds())
        reason = ScalingReason.SCALE_UP_STABILIZED
        return Decided(current, reason, f"{message}; desired {clamped}, stabilizing for {window} s")
    if clamped < current:
        window = int(spec.scale_down.stabilization_window.total_seconds())
        reason = ScalingReason.SCALE_DOWN_STABILIZED
        return Decided(current, reason, f"{message}; desired {clamped}, stabilizing for {window} s")
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


def _recent(
    decisions: tuple[TimestampedReplicas, ...], now: datetime, period: timedelta
) -> tuple[TimestampedReplicas, ...]:
    """Return the decisions of the last period, first the one in effect when it began."""
    while len(decisions) > 1 and now - decisions[1].at >= period:
        decisions = decisions[1:]
    return decisions
