"""The policy `Capacity`: as many replicas as carry the arrivals within the SLO.

The demand is the rate of arrivals, and the capacity of a replica that of the performance model. So
the number follows the load at once, also while streams go on, and what engines or devices show
beside it (a queue, a full KV cache, activity) may only add replicas. A replica is removed after the
demand was lower for as long as its start-up would cost, the rule of ski rental.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.scaling.decisions import (
    changed,
    clamp,
    current_replicas,
    decide_bounds,
    extend_window,
    fewer_enough,
    push,
    with_recent_decisions,
)
from tessera.domain.scaling.idle import decide_idle
from tessera.domain.scaling.policies.capacity.bursts import (
    needed_again,
    next_bursts,
    replicas_for_bursts,
    round_up,
)
from tessera.domain.scaling.policies.capacity.growth import next_growth
from tessera.domain.scaling.policies.capacity.pace import Pace, next_pace
from tessera.domain.scaling.policies.capacity.variant_capacity import VariantCapacity
from tessera.domain.scaling.state import (
    MAX_READING_GAP,
    CapacityAssessment,
    Decided,
    DemandHistory,
    ScaleDecision,
    ScalingHistory,
    ScalingPolicy,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.sizing.scheduler_limits import P95_DEVIATIONS

# The rate of arrivals is estimated over this span.
RATE_SPAN = timedelta(seconds=60)
_MIN_RATE_SPAN = timedelta(seconds=30)
_SAMPLE_INTERVAL = timedelta(seconds=5)
# Arrivals of so many seconds count where they exceed those of the longer one by so many deviations
# of Poisson arrivals.
_RECENT_SECONDS = 15
_RISE_DEVIATIONS = 3.0
# Engines that finish and hold so many times the requests of gateways have other clients as well.
_OTHER_CLIENTS = 1.25
# What waits too long for the TTFT objective shall be served within this time.
BACKLOG_SPAN = timedelta(seconds=60)
# Starting a replica again costs its lead, and several times as much in lost objectives.
_START_UP_COST = 4
MAX_HOLD = timedelta(minutes=10)
# The measured throughput of full replicas corrects the prediction at most to this share.
_MIN_CORRECTION = 0.5
_FULL_SPAN = timedelta(seconds=60)
# A correction is forgotten after so long without full replicas.
_CORRECTION_SPAN = timedelta(hours=1)
_FULL_KV_USAGE = 0.9


class _Demand(NamedTuple):
    """Arrivals per second."""

    rate: float
    """What is known to arrive; replicas are added for it."""
    most: float | None
    """The most that may arrive; replicas are removed by it. None is "not known"."""
    source: str
    estimated: bool


def hold_of(spec: ScalingSpec, lead: timedelta) -> timedelta:
    """Return for how long fewer replicas must be enough before one is removed."""
    return max(spec.scale_down.stabilization_window, min(_START_UP_COST * lead, MAX_HOLD))


def replicas_for(rate: float, replica_rate: float, headroom: float) -> int:
    """Return the replicas that carry a rate of arrivals with headroom; 0 for no arrivals."""
    return round_up(rate * headroom / replica_rate)


def scale_by_capacity(
    policy: ScalingPolicy, capacity: VariantCapacity, load: ServiceLoad, history: ScalingHistory
) -> ScaleDecision:
    """Choose the replica count; without a history nothing is removed for the whole hold."""
    idle, history = decide_idle(policy, load, history)
    if idle is not None:
        return idle
    spec, current = policy.spec, current_replicas(load, history)
    history = with_recent_decisions(spec, load, history)
    demand = _demand(load, capacity, history.demand)
    memory = _remember(policy, capacity, load, current, history.demand)
    memory = replace(memory, pace=_next_pace(capacity, load, current, memory, demand))
    if not demand.estimated:
        # What an estimate jumps by is mostly its error.
        filled = demand.rate / capacity.requests_per_second
        growth = next_growth(memory.growth, load.at, filled, capacity.lead)
        memory = replace(memory, growth=growth)
    paced = _paced(capacity, memory.pace)
    burst = _burst(policy, paced, load, memory)
    memory = replace(memory, bursts=next_bursts(memory.bursts, load.at, burst, demand.rate))
    bursts = max(burst, needed_again(memory.bursts, demand.rate))
    assessment, backlog = _assess(policy, paced, load, memory, demand, bursts)
    history = replace(history, up_window=(), demand=memory)
    if demand.most is not None and (load.is_known or _gap_is_over(load.at, memory)):
        history = _with_recommendation(history, load.at, assessment, current)
    decided = decide_bounds(policy, current) or _decide(
        policy, capacity, load, demand, assessment, backlog, current, history
    )
    return replace(changed(decided, load.at, current, history), assessment=assessment)


def _gap_is_over(at: datetime, memory: DemandHistory) -> bool:
    """Return whether the readings are missing for so long that those left decide."""
    return memory.known_at is not None and at - memory.known_at >= MAX_READING_GAP


def _demand(load: ServiceLoad, capacity: VariantCapacity, memory: DemandHistory | None) -> _Demand:
    """Return the arrivals by gateways where these see all requests, else by the engines.

    Output tokens are no measure of them: engines that are full give out no more of them, however
    many requests wait.
    """
    estimate, arrival_rate = _estimated_rate(load, capacity, memory), load.arrival_rate
    if arrival_rate is None and load.queued == load.gateway_requests == 0 and load.is_known:
        # Gateways report no service that had no request yet.
        arrival_rate = 0.0
    if arrival_rate is not None and (
        estimate is None or estimate <= arrival_rate * _OTHER_CLIENTS + 1 / 30
    ):
        rate = max(arrival_rate, _risen_rate(load.arrivals))
        return _Demand(rate, rate, "at the gateway", estimated=False)
    if estimate is None:
        return _Demand(0.0, None, "not known", estimated=True)
    if load.is_known:
        return _Demand(estimate, estimate, "estimated from the engines", estimated=True)
    # Replicas without a reading may be full.
    unknown = max(0, load.serving - load.with_counts)
    most = estimate + unknown * capacity.requests_per_second
    return _Demand(estimate, most, "estimated from replicas with metrics", estimated=True)


def _risen_rate(arrivals: Sequence[int]) -> float:
    """Return the rate that is certain from the arrivals of the last seconds."""
    recent = sum(arrivals[-_RECENT_SECONDS:])
    return (recent - _RISE_DEVIATIONS * math.sqrt(recent)) / _RECENT_SECONDS


def _estimated_rate(
    load: ServiceLoad, capacity: VariantCapacity, memory: DemandHistory | None
) -> float | None:
    """Return finished requests and the change of those in engines, or Little's law without them."""
    if load.known_requests is None:
        return None
    if not load.is_known or load.finish_rate is None:
        return load.known_requests * capacity.requests_per_second / capacity.concurrent
    changes = [
        (load.known_requests - before) / (load.at - began).total_seconds()
        for began, before in (memory.in_flight if memory is not None else ())
        if load.at - began >= _MIN_RATE_SPAN
    ]
    # Of the longest span, and of the shortest where requests become more.
    change = max(changes[0], changes[-1]) if changes else 0.0
    return max(0.0, load.finish_rate + change)


def _remember(
    policy: ScalingPolicy,
    capacity: VariantCapacity,
    load: ServiceLoad,
    current: int,
    memory: DemandHistory | None,
) -> DemandHistory:
    """Return what later decisions need of this reading; a missed one changes nothing."""
    memory = memory or DemandHistory(known_at=load.at)
    if not load.is_known or load.known_requests is None:
        return (
            memory
            if memory.lengths == capacity.lengths
            else replace(memory, lengths=capacity.lengths)
        )
    in_flight = memory.in_flight
    if not in_flight or load.at - in_flight[-1][0] >= _SAMPLE_INTERVAL:
        in_flight = (*in_flight, (load.at, load.known_requests))
    while len(in_flight) > 1 and load.at - in_flight[1][0] >= RATE_SPAN:
        in_flight = in_flight[1:]
    full_since = (
        (memory.full_since or load.at) if _is_full(policy, capacity, load, current) else None
    )
    return DemandHistory(
        in_flight=in_flight,
        known_at=load.at,
        full_since=full_since,
        correction=_correction(capacity, load, memory, full_since),
        lengths=capacity.lengths,
        pace=memory.pace,
        growth=memory.growth,
        bursts=memory.bursts,
    )


def _is_full(
    policy: ScalingPolicy, capacity: VariantCapacity, load: ServiceLoad, current: int
) -> bool:
    """Return whether requests wait although all replicas serve, and devices or caches agree."""
    if not load.waiting or load.serving < max(1, current):
        return False
    if load.ttft is not None:
        # Their pace follows from it.
        return False
    active = load.activity is None or load.activity >= float(policy.spec.activity.target)
    return active or (capacity.kv_usage or 0.0) >= _FULL_KV_USAGE


def _correction(
    capacity: VariantCapacity,
    load: ServiceLoad,
    memory: DemandHistory,
    full_since: datetime | None,
) -> float:
    """Return the measured share of the capacity; the longer no replica is full, the nearer to 1."""
    full = full_since is not None and load.at - full_since >= _FULL_SPAN
    if full and load.finish_rate is not None:
        measured = load.finish_rate / load.serving / capacity.requests_per_second
        return min(1.0, max(_MIN_CORRECTION, measured))
    if load.waiting:
        return memory.correction
    elapsed = load.at - (memory.known_at or load.at)
    return min(1.0, memory.correction + elapsed / _CORRECTION_SPAN)


def _next_pace(
    capacity: VariantCapacity,
    load: ServiceLoad,
    current: int,
    memory: DemandHistory,
    demand: _Demand,
) -> Pace:
    pace = memory.pace
    carried = _paced(capacity, pace).requests_per_second * max(1, load.serving)
    use = demand.rate / carried
    return next_pace(pace, load.ttft, use, missing=load.serving < current)


def _paced(capacity: VariantCapacity, pace: Pace) -> VariantCapacity:
    """Return the capacity that attained first tokens show."""
    return replace(
        capacity,
        requests_per_second=capacity.requests_per_second * pace.factor,
        fewer_requests_per_second=capacity.fewer_requests_per_second * pace.factor,
        concurrent=capacity.concurrent * pace.factor,
        prompts_per_second=capacity.prompts_per_second * pace.factor,
    )


def _burst(
    policy: ScalingPolicy, capacity: VariantCapacity, load: ServiceLoad, memory: DemandHistory
) -> int:
    """Return the replicas that the last minute needed beyond its rate; 0 for none."""
    if not load.arrival_rate:
        return 0
    replica_rate = capacity.requests_per_second * memory.correction
    usual = max(1, round_up(load.arrival_rate / replica_rate))
    needed = replicas_for_bursts(
        load.arrivals,
        capacity.prompts_per_second,
        capacity.queue_time,
        usual,
        policy.spec.max_replicas,
    )
    return needed if needed > usual else 0


def _assess(
    policy: ScalingPolicy,
    capacity: VariantCapacity,
    load: ServiceLoad,
    memory: DemandHistory,
    demand: _Demand,
    bursts: int,
) -> tuple[CapacityAssessment, int]:
    """Return the numbers of the decision, and the replicas that the backlog needs."""
    spec = policy.spec
    replica_rate = capacity.requests_per_second * memory.correction
    most = demand.rate if demand.most is None else demand.most
    headroom = memory.growth.headroom(capacity.lead)
    # A replica is removed once it is not needed for what Poisson arrivals vary by, either.
    noise = P95_DEVIATIONS * math.sqrt(most / RATE_SPAN.total_seconds())
    retained = replicas_for(most + noise, replica_rate, headroom)
    if retained < load.serving:
        fewer_rate = capacity.fewer_requests_per_second * memory.correction
        retained = min(load.serving, replicas_for(most + noise, fewer_rate, headroom))
    if spec.min_replicas > 1:
        # Those left after one is lost carry the load.
        retained = max(retained, round_up(most / replica_rate) + 1)
    waiting, backlog = load.known_waiting, 0
    if waiting > capacity.queue_time.total_seconds() * replica_rate * max(1, load.serving):
        rate = demand.rate + waiting / BACKLOG_SPAN.total_seconds()
        backlog = round_up(rate / replica_rate)
    needed = max(replicas_for(demand.rate, replica_rate, headroom), bursts)
    assessment = CapacityAssessment(
        arrival_rate=demand.rate,
        source=demand.source,
        replica_rate=replica_rate,
        bursts=bursts,
        needed=max(needed, backlog),
        retained=clamp(spec, max(retained, needed, backlog)),
        hold=hold_of(spec, capacity.lead),
        headroom=headroom,
        pace=memory.pace.factor,
        lead=capacity.lead,
        lengths=(capacity.input_tokens, capacity.output_tokens),
    )
    return assessment, backlog


def _with_recommendation(
    history: ScalingHistory, at: datetime, assessment: CapacityAssessment, current: int
) -> ScalingHistory:
    """Add what is retained to the window; an unknown past counts as the current number."""
    window = extend_window(history.down_window, at) or (TimestampedReplicas(at, current),)
    new = TimestampedReplicas(at, assessment.retained)
    return replace(history, down_window=push(window, new, assessment.hold, lowest=False))


def _decide(  # noqa: PLR0913, PLR0917 - the parts of one decision
    policy: ScalingPolicy,
    capacity: VariantCapacity,
    load: ServiceLoad,
    demand: _Demand,
    assessment: CapacityAssessment,
    backlog: int,
    current: int,
    history: ScalingHistory,
) -> Decided:
    """Add at once; remove what the window needs no more, and starting replicas without it."""
    memory = history.demand or DemandHistory()
    replicas_text, why = counted(current, "replica"), _why(capacity, load, assessment)
    needed = clamp(policy.spec, assessment.needed)
    if needed > current:
        reason = ScalingReason.DEMAND_ABOVE_CAPACITY
        if backlog == assessment.needed:
            reason = ScalingReason.BACKLOG_ABOVE_TARGET
        elif memory.correction < 1:
            reason = ScalingReason.REPLICAS_FULL
        more = f"{counted(needed, 'replica')} instead of {current}; {why}"
        return Decided(needed, reason, more)
    if not load.is_known and (demand.most is None or not _gap_is_over(load.at, memory)):
        since = format_duration(MAX_READING_GAP)
        return Decided(
            current,
            ScalingReason.FAILED_GET_METRICS,
            f"{replicas_text}; requests of a replica are unknown, so none is removed, and after "
            f"{since} the metrics that are left decide; check with tessera doctor that Prometheus "
            "answers",
        )
    most_retained = max((retained.replicas for retained in history.down_window), default=current)
    if most_retained < current:
        fewer = (
            f"{counted(most_retained, 'replica')} instead of {current}, enough for "
            f"{format_duration(assessment.hold)}; {why}"
        )
        return Decided(most_retained, ScalingReason.CAPACITY_ABOVE_DEMAND, fewer)
    recent = _retained_since(history.down_window, load.at - RATE_SPAN)
    unneeded = min(current - load.serving, current - recent)
    if unneeded > 0 and _has_run_for(history, load.at, RATE_SPAN):
        fewer = (
            f"{counted(current - unneeded, 'replica')} instead of {current}, as what starts is not "
            f"needed any more; {why}"
        )
        return Decided(current - unneeded, ScalingReason.STARTING_REPLICA_WITHDRAWN, fewer)
    if assessment.retained < current:
        return fewer_enough(history.down_window, load.at, assessment.hold, current)
    return _hold(policy, load, demand, assessment, current, why)


def _retained_since(window: tuple[TimestampedReplicas, ...], since: datetime) -> int:
    """Return the largest recommendation since then; each one stood until the next."""
    return max((retained.replicas for retained in window if retained.at >= since), default=0)


def _has_run_for(history: ScalingHistory, at: datetime, span: timedelta) -> bool:
    """Return whether the number has been in effect for so long."""
    return at - history.decisions[-1].at >= span


def _hold(
    policy: ScalingPolicy,
    load: ServiceLoad,
    demand: _Demand,
    assessment: CapacityAssessment,
    current: int,
    why: str,
) -> Decided:
    replicas_text = counted(current, "replica")
    if assessment.needed > current:
        limit = f"{policy.bounds_source}maxReplicas is {policy.spec.max_replicas}"
        message = f"{replicas_text}; {assessment.needed} needed, {limit}; {why}"
        return Decided(current, ScalingReason.TOO_MANY_REPLICAS, message)
    message = f"{replicas_text}; {why}"
    if not load.is_known:
        return Decided(current, ScalingReason.METRICS_PARTIAL, message)
    reason = ScalingReason.ESTIMATED_ARRIVALS if demand.estimated else ScalingReason.STEADY
    return Decided(current, reason, message)


def _why(capacity: VariantCapacity, load: ServiceLoad, assessment: CapacityAssessment) -> str:
    """Return the clause with which messages end: arrivals against the capacity of a replica."""
    slo = "" if capacity.meets_slo else ", which misses the SLO even with one request"
    bursts = f", bursts need {assessment.bursts}" if assessment.bursts else ""
    at_least = "at least " if load.waiting is None else ""
    waiting = f", {at_least}{load.known_waiting:.0f} waiting" if load.known_waiting else ""
    return (
        f"{assessment.arrival_rate:.2f} requests/s {assessment.source}, a replica carries "
        f"{assessment.replica_rate:.2f}/s{slo}{bursts}{waiting}"
    )
