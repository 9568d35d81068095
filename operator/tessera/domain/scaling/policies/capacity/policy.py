"""The policy `Capacity`: as many replicas as carry the arrivals within the SLO.

The demand is the rate of arrivals, and the capacity of a replica that of the performance model. So
the number follows the load at once, also while streams go on, and what engines or devices show
beside it (a queue, a full KV cache, activity) may only add replicas. A replica is removed after the
demand was lower for the whole stabilization window; for as long as its start-up would cost where
the load may come back, and by estimated arrivals.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.scaling.decisions import (
    changed,
    current_replicas,
    decide_bounds,
    fewer_enough,
    push,
    with_recent_decisions,
)
from tessera.domain.scaling.explanation import contradiction_clause, floor_message, load_numbers
from tessera.domain.scaling.idle import decide_idle
from tessera.domain.scaling.policies.capacity.bursts import (
    needed_again,
    next_bursts,
    replicas_for_bursts,
    round_up,
)
from tessera.domain.scaling.policies.capacity.demand import (
    RATE_SPAN,
    Arrivals,
    DemandHistory,
    arrivals_of,
    gap_is_over,
    is_at_rest,
    next_late_alone,
    remember,
)
from tessera.domain.scaling.policies.capacity.hold import hold_of, is_new, longest_hold, next_lulls
from tessera.domain.scaling.policies.capacity.pace import Pace, next_pace, ttft_shares
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    observed_capacity,
)
from tessera.domain.scaling.state import (
    MAX_READING_GAP,
    Decided,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ScaleTarget
from tessera.domain.sizing.scheduler_limits import LATE_SHARE, P95_DEVIATIONS

# Estimated arrivals are half a minute late, so they count with what they may grow by while a
# replica starts: a factor, by the seconds of its lead.
_BASE, _PER_SECOND, _MOST_HEADROOM = 1.04, 0.001, 1.3
# Steps about as slow as the tolerance are beyond it now and then.
_SLOW_APART = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityAssessment:
    """The numbers behind a decision."""

    arrivals: Arrivals
    capacity: VariantCapacity
    """What a replica carries within the SLO, corrected by measurements."""
    bursts: int
    """Replicas that bursts need; 0 for none."""
    backlog: int
    """Replicas for the arrivals and what waits for too long; 0 if nothing does."""
    needed: int
    """Replicas for the arrivals, for bursts and for the backlog."""
    retained: int
    """Replicas below which none is removed."""
    hold: timedelta
    """Time for which fewer must be enough before replicas are removed."""
    headroom: float
    """Factor of estimated arrivals for their growth while a replica starts; 1 of known ones."""
    pace: float
    """Factor of the predicted capacity that attained first tokens show."""


def headroom_of_estimates(lead: timedelta) -> float:
    """Return the factor by which estimated arrivals may grow while a replica starts."""
    return min(_MOST_HEADROOM, _BASE + _PER_SECOND * lead.total_seconds())


def replicas_for(rate: float, replica_rate: float, headroom: float) -> int:
    """Return the replicas that carry a rate of arrivals with headroom; 0 for no arrivals."""
    return round_up(rate * headroom / replica_rate)


def decide(target: ScaleTarget, load: ServiceLoad, history: ScalingHistory) -> ScaleDecision:
    """Choose the replica count by what a replica on the hardware of the service carries."""
    variant = target.variant
    assert variant is not None  # noqa: S101 - only an explanation has none
    readings = variant.readings
    ttft = ttft_shares(variant.spec.slo, readings.latency, readings.counted_at)
    memory = history.memory if isinstance(history.memory, DemandHistory) else DemandHistory()
    load = replace(load, ttft=ttft, late_alone=next_late_alone(memory.late_alone, load))
    capacity = observed_capacity(variant, load, history)
    decision = scale_by_capacity(target, capacity, load, history)
    return replace(decision, until=load.until) if _is_steady(decision, load) else decision


def _is_steady(decision: ScaleDecision, load: ServiceLoad) -> bool:
    """Return whether only other readings change the decision, as of a service without requests."""
    history, assessment = decision.history, decision.assessment
    memory = history.memory
    if not (isinstance(assessment, CapacityAssessment) and isinstance(memory, DemandHistory)):
        return False
    arrivals = assessment.arrivals
    counts_time = history.requests is not None or history.refused is not None
    # A share of late prompts is forgotten with time.
    counts_time = counts_time or memory.late_alone.share > LATE_SHARE
    if counts_time or load.ttft is not None or history.decisions[-1].at >= load.at:
        return False
    if arrivals.most is None:
        return not load.known_waiting
    # Bursts are looked for at gateways alone, and matter while any come.
    if arrivals.rate and (memory.bursts or not arrivals.estimated):
        return False
    retained = [each.replicas for each in history.down_window]
    return load.is_known and is_at_rest(memory, load) and retained == [decision.replicas]


def restore(
    _target: ScaleTarget, _readings: Sequence[ServiceLoad], history: ScalingHistory
) -> ScalingHistory:
    """Begin with the decisions alone: nothing is removed before its time."""
    return history


def scale_by_capacity(
    target: ScaleTarget, capacity: VariantCapacity, load: ServiceLoad, history: ScalingHistory
) -> ScaleDecision:
    """Choose the replica count; without a history nothing is removed for the whole hold."""
    idle, history = decide_idle(target, load, history)
    if idle is not None:
        return idle
    spec, current = target.spec, current_replicas(load, history)
    history = with_recent_decisions(spec, load, history)
    memory = history.memory if isinstance(history.memory, DemandHistory) else None
    arrivals = arrivals_of(load, capacity, memory)
    memory = remember(target, capacity, load, current, memory)
    if capacity.slow is not None:
        memory = _with_slow_steps(memory, load.at)
    expected = capacity.requests_per_second * memory.pace.factor * max(1, load.serving)
    use = arrivals.rate / expected
    # The load may need more replicas than those that were ordered so far.
    missing = load.serving < current or use > 1
    memory = replace(memory, late_alone=load.late_alone)
    memory = replace(memory, pace=next_pace(memory.pace, load.ttft, use, missing=missing))
    corrected = _corrected(capacity, memory)
    burst = _burst(target, corrected, load)
    memory = replace(memory, bursts=next_bursts(memory.bursts, load.at, burst, arrivals.rate))
    assessment = _assess(target, corrected, load, memory, arrivals, burst, current)
    if arrivals.most is not None and (load.is_known or gap_is_over(load.at, memory)):
        memory, history = _with_recommendation(
            target, memory, history, load.at, assessment, current
        )
    history = replace(history, up_window=(), lengths=capacity.lengths, memory=memory)
    decided = decide_bounds(target, current) or _decide(
        target, load, assessment, current, history, memory
    )
    return replace(changed(decided, load.at, current, history), assessment=assessment)


def _with_slow_steps(memory: DemandHistory, at: datetime) -> DemandHistory:
    """Begin again with the pace: what it made up for so far is measured now."""
    is_first = memory.slow_at is None or at - memory.slow_at >= _SLOW_APART
    return replace(memory, slow_at=at, pace=Pace() if is_first else memory.pace)


def _corrected(capacity: VariantCapacity, memory: DemandHistory) -> VariantCapacity:
    """Return the capacity that attained first tokens and full replicas show."""
    pace, correction = memory.pace.factor, memory.correction
    return replace(
        capacity,
        requests_per_second=capacity.requests_per_second * pace * correction,
        fewer_requests_per_second=capacity.fewer_requests_per_second * pace * correction,
        prompts_per_second=capacity.prompts_per_second * pace,
    )


def _burst(target: ScaleTarget, capacity: VariantCapacity, load: ServiceLoad) -> int:
    """Return the replicas that the last minute needed beyond its rate; 0 for none."""
    if not load.arrival_rate:
        return 0
    usual = max(1, round_up(load.arrival_rate / capacity.requests_per_second))
    needed = replicas_for_bursts(
        load.arrivals,
        capacity.prompts_per_second,
        capacity.queue_time,
        usual,
        target.most,
    )
    return needed if needed > usual else 0


def _assess(  # noqa: PLR0913, PLR0917 - what is needed, and what there is
    target: ScaleTarget,
    capacity: VariantCapacity,
    load: ServiceLoad,
    memory: DemandHistory,
    arrivals: Arrivals,
    burst: int,
    current: int,
) -> CapacityAssessment:
    spec, replica_rate = target.spec, capacity.requests_per_second
    most = arrivals.rate if arrivals.most is None else arrivals.most
    window = spec.scale_down.stabilization_window
    longest = longest_hold(window, capacity.lead)
    running = TimestampedReplicas(load.at, current)
    headroom, hold = 1.0, hold_of(memory.lulls, running, window, longest)
    bursts = needed_again(memory.bursts, arrivals.rate)
    if is_new(memory.lulls, load.at, longest):
        # An earlier one may not have been seen.
        bursts = max(burst, bursts)
    # A replica is removed once it is not needed for what Poisson arrivals vary by, either.
    noise = P95_DEVIATIONS * math.sqrt(most / RATE_SPAN.total_seconds())
    if arrivals.estimated:
        headroom, hold = headroom_of_estimates(capacity.lead), longest
    retained = replicas_for(most + noise, replica_rate, headroom)
    if retained < load.serving:
        fewer_rate = capacity.fewer_requests_per_second
        retained = min(load.serving, replicas_for(most + noise, fewer_rate, headroom))
    if spec.min_replicas > 1:
        # Those left after one is lost carry the load.
        retained = max(retained, round_up(most / replica_rate) + 1)
    waiting, backlog = load.known_waiting, 0
    if waiting > capacity.queue_time.total_seconds() * replica_rate * max(1, load.serving):
        # It is served as if it had come within the span of the rate.
        rate = arrivals.rate + waiting / RATE_SPAN.total_seconds()
        backlog = round_up(rate / replica_rate)
    needed = max(replicas_for(arrivals.rate, replica_rate, headroom), bursts)
    return CapacityAssessment(
        arrivals=arrivals,
        capacity=capacity,
        bursts=bursts,
        backlog=backlog,
        needed=max(needed, backlog),
        retained=target.clamp(max(retained, needed, backlog)),
        hold=hold,
        headroom=headroom,
        pace=memory.pace.factor,
    )


def _with_recommendation(
    target: ScaleTarget,
    memory: DemandHistory,
    history: ScalingHistory,
    at: datetime,
    assessment: CapacityAssessment,
    current: int,
) -> tuple[DemandHistory, ScalingHistory]:
    """Add what is retained to the window; an unknown past counts as the current number."""
    start, new = TimestampedReplicas(at, current), TimestampedReplicas(at, assessment.retained)
    window = target.spec.scale_down.stabilization_window
    longest = longest_hold(window, assessment.capacity.lead)
    lulls = next_lulls(memory.lulls, history.down_window, new, current, window, longest)
    down_window = push(history.down_window, start, new, longest, lowest=False)
    return replace(memory, lulls=lulls), replace(history, down_window=down_window)


def _decide(
    target: ScaleTarget,
    load: ServiceLoad,
    assessment: CapacityAssessment,
    current: int,
    history: ScalingHistory,
    memory: DemandHistory,
) -> Decided:
    """Add at once; remove what the window needs no more, and starting replicas without it."""
    replicas_text, why = target.counted(current), _why(load, assessment)
    needed = target.clamp(assessment.needed)
    if needed > current:
        reason = ScalingReason.DEMAND_ABOVE_CAPACITY
        if assessment.backlog == assessment.needed:
            reason = ScalingReason.BACKLOG_ABOVE_TARGET
        elif memory.correction < 1:
            reason = ScalingReason.REPLICAS_FULL
        more = f"{target.counted(needed)} instead of {current}; {why}"
        return Decided(needed, reason, more)
    if not load.is_known and (assessment.arrivals.most is None or not gap_is_over(load.at, memory)):
        since = format_duration(MAX_READING_GAP)
        return Decided(
            current,
            ScalingReason.FAILED_GET_METRICS,
            f"{replicas_text}; requests of a replica are unknown, so none is removed, and after "
            f"{since} the metrics that are left decide; check with tessera doctor that Prometheus "
            "answers",
        )
    window = [each for each in history.down_window if load.at - each.at < assessment.hold]
    most_retained = max((each.replicas for each in window), default=current)
    if most_retained < current:
        fewer = (
            f"{target.counted(most_retained)} instead of {current}, enough for "
            f"{format_duration(assessment.hold)}; {why}"
        )
        return Decided(most_retained, ScalingReason.CAPACITY_ABOVE_DEMAND, fewer)
    begin = load.at - RATE_SPAN
    recent = max((each.replicas for each in window if each.at >= begin), default=0)
    unneeded = min(current - load.serving, current - recent)
    if unneeded > 0 and history.decisions[-1].at <= begin:
        fewer = (
            f"{target.counted(current - unneeded)} instead of {current}, as what starts is not "
            f"needed any more; {why}"
        )
        return Decided(current - unneeded, ScalingReason.STARTING_REPLICA_WITHDRAWN, fewer)
    if assessment.retained < current:
        return fewer_enough(target, window, load.at, assessment.hold, current)
    return _hold(target, load, assessment, current, why)


def _hold(
    target: ScaleTarget,
    load: ServiceLoad,
    assessment: CapacityAssessment,
    current: int,
    why: str,
) -> Decided:
    replicas_text = target.counted(current)
    if assessment.needed > current:
        limit = f"{target.bounds_source}maxReplicas is {target.spec.max_replicas}"
        message = f"{replicas_text}; {assessment.needed} needed, {limit}; {why}"
        return Decided(current, ScalingReason.TOO_MANY_REPLICAS, message)
    message = f"{replicas_text}; {why}"
    if not load.is_known:
        return Decided(current, ScalingReason.METRICS_PARTIAL, message)
    if load.idle_replicas:
        contradiction = f"{message}; {contradiction_clause(load)}"
        return Decided(current, ScalingReason.INCONSISTENT_METRICS, contradiction)
    if assessment.arrivals.estimated:
        return Decided(current, ScalingReason.ESTIMATED_ARRIVALS, message)
    is_late = assessment.capacity.late_alone_share > 0
    return Decided(
        current, ScalingReason.LATE_PROMPTS if is_late else ScalingReason.STEADY, message
    )


def _why(load: ServiceLoad, assessment: CapacityAssessment) -> str:
    """Return the clause with which messages end: arrivals against the capacity of a replica."""
    slo = _slo_clause(assessment.capacity)
    bursts = f", bursts need {assessment.bursts}" if assessment.bursts else ""
    at_least = "at least " if load.waiting is None else ""
    waiting = f", {at_least}{load.known_waiting:.0f} waiting" if load.known_waiting else ""
    cached = _cached_clause(assessment.capacity, " with ")
    return (
        f"{assessment.arrivals}, a replica carries "
        f"{assessment.capacity.requests_per_second:.2f}/s{cached}{slo}"
        f"{_slow_clause(assessment.capacity)}{bursts}{waiting}"
    )


def _slow_clause(capacity: VariantCapacity) -> str:
    """Return the clause for steps that take longer than predicted; empty within the tolerance."""
    slow = capacity.slow
    return "" if slow is None else f", steps take {slow.ratio:.2f} times as long ({slow.source})"


def _slo_clause(capacity: VariantCapacity) -> str:
    """Return the clause for a rate that is not promised; empty for one that is."""
    if capacity.late_alone_share:
        return (
            f", while {capacity.late_alone_share:.1%} of the prompts take longer than "
            f"spec.slo.ttftP95 by themselves (at most {LATE_SHARE:.0%} may)"
        )
    return "" if capacity.meets_slo else ", which misses the SLO even with one request"


def _cached_clause(capacity: VariantCapacity, before: str) -> str:
    """Return the clause for what the prefix cache has of the prompts; empty for nothing."""
    share = f"{capacity.cached_share:.0%}"
    return "" if share == "0%" else f"{before}{share} of the input cached"


def numbers(
    target: ScaleTarget, load: ServiceLoad, decision: ScaleDecision
) -> tuple[tuple[str, str], ...]:
    """Return the arrivals, what a replica carries of them, and what follows."""
    assessment = decision.assessment
    if not isinstance(assessment, CapacityAssessment):
        return load_numbers(target, load, decision)
    capacity, pace, headroom, why_held = assessment.capacity, "", "", ""
    promised = " within spec.slo" if capacity.meets_slo else ""
    if round(assessment.pace, 2) != 1:
        pace = f", {assessment.pace:.2f} times the prediction by the TTFT attained"
    if assessment.headroom > 1:
        lead = format_duration(timedelta(seconds=round(capacity.lead.total_seconds())))
        headroom = f", with headroom {assessment.headroom:.2f} for a start-up of {lead}"
    if assessment.hold > target.spec.scale_down.stabilization_window:
        why_held = ", as long as a start-up is worth, since the load may come back"
    lengths = (
        f"{capacity.input_tokens} input and {counted(capacity.output_tokens, 'output token')}"
        if capacity.output_tokens
        else counted(capacity.input_tokens, "input token")
    )
    return (
        ("policy", "Capacity"),
        ("arrivals", str(assessment.arrivals)),
        (
            "capacity",
            f"{capacity.requests_per_second:.2f} requests/s per replica{promised}, of "
            f"{lengths}{_cached_clause(capacity, ', ')}{_slow_clause(capacity)}{pace}"
            f"{_slo_clause(capacity)}",
        ),
        ("needed", f"{assessment.needed}{headroom}"),
        ("retained", f"{assessment.retained} at least, while arrivals stay"),
        ("waiting requests", f"{load.known_waiting:.0f}"),
        ("scale down", f"after {format_duration(assessment.hold)}{why_held}"),
    )


def would_change(target: ScaleTarget, _load: ServiceLoad, decision: ScaleDecision) -> Iterator[str]:
    """Yield the arrivals that would add replicas, and when the present ones remove some."""
    assessment, current = decision.assessment, decision.replicas
    if not isinstance(assessment, CapacityAssessment):
        return
    if current >= target.most:
        most = target.spec.max_replicas
        yield f"{target.bounds_source}maxReplicas above {most} would let arrivals add more"
    else:
        # Without arrivals the capacity of the replicas, an upper bound since it has no headroom.
        rate = assessment.capacity.requests_per_second * current
        if assessment.needed:
            rate = assessment.arrivals.rate * current / assessment.needed
        yield (
            f"more than {rate:.2f} requests/s may add replicas at once, and so does a queue too "
            "long for spec.slo.ttftP95"
        )
    if current <= target.spec.floor:
        yield floor_message(target)
    elif assessment.retained < current:
        yield (
            f"{format_duration(assessment.hold)} with at most as many requests as now will remove "
            f"{target.counted(current - assessment.retained)}"
        )
