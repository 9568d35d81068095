"""Requests that overflow to another target add replicas until that costs less than the next one.

What a replica carried when requests last overflowed, and what they cost at the other target, say
what each replica saves. One is added that saves enough more than it costs, and the last one goes
once it costs as much more than it saves; for a while after a change the number stays.
"""

from dataclasses import replace
from datetime import timedelta

from tessera.api.reasons import ScalingReason
from tessera.domain.money import Money
from tessera.domain.observed.demand import ARRIVALS_SPAN
from tessera.domain.scaling.decisions import changed, current_replicas
from tessera.domain.scaling.state import (
    Decided,
    OverflowHistory,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
)
from tessera.domain.scaling.target import ScaleTarget

MIN_SAVING = 0.1
COOLDOWN = timedelta(minutes=10)


def within_break_even(
    decision: ScaleDecision,
    target: ScaleTarget,
    load: ServiceLoad,
    history: ScalingHistory,
    hourly: Money,
) -> ScaleDecision:
    """Return the decision without replicas that cost more than the requests that overflow.

    `history` is the one before, and `hourly` the price of a replica; 0 of what is paid anyway. What
    has no other target gets replicas at any price, and more while it waits.
    """
    overflow, rate = _next_overflow(history.overflow, load), load.arrival_rate
    if overflow != decision.history.overflow:
        decision = replace(decision, history=replace(decision.history, overflow=overflow))
    current, wanted = current_replicas(load, history), decision.replicas
    floor = max(1, target.spec.floor)
    if overflow is None or rate is None or not (overflow.replica_rate and hourly.nanos):
        return decision
    least = max(floor, _needed(wanted, load))
    if wanted > current >= floor:
        most = current if _was_removed(history, load) else wanted
        lowest = max(current, least)
        replicas = _worth(most, lowest, rate, overflow, hourly.nanos * (1 + MIN_SAVING))
        own = decision.history
        own = replace(own, decisions=own.decisions[:-1], change=history.change)
    elif wanted == current > least and _is_settled(history, load):
        replicas = _worth(current, least, rate, overflow, hourly.nanos / (1 + MIN_SAVING))
        own = decision.history
    else:
        return decision
    if replicas == wanted:
        return decision
    if replicas > current:
        decided = Decided(replicas, decision.reason, decision.message)
    else:
        saved = Money(round(saved_by(replicas + 1, rate, overflow)), hourly.currency)
        decided = Decided(
            replicas,
            ScalingReason.OVERFLOW_CHEAPER,
            f"{target.counted(replicas)}; 1 more would save {saved} per hour of what requests "
            f"cost that overflow to other targets of their routes, and costs {hourly} per hour",
        )
    return replace(changed(decided, load.at, current, own), assessment=decision.assessment)


def saved_by(number: int, rate: float, overflow: OverflowHistory) -> float:
    """Return the nano-units per hour that requests would cost elsewhere without the last replica
    of this number."""
    carried = min(max(rate - (number - 1) * overflow.replica_rate, 0.0), overflow.replica_rate)
    return carried * 3600 * overflow.request_nanos


def _worth(
    most: int, lowest: int, rate: float, overflow: OverflowHistory, hourly_nanos: float
) -> int:
    """Return the largest number of which the last replica saves so much; at least the lowest."""
    numbers = range(most, lowest, -1)
    return next(
        (each for each in numbers if saved_by(each, rate, overflow) >= hourly_nanos), lowest
    )


def _needed(wanted: int, load: ServiceLoad) -> int:
    """Return the replicas, of so many for all requests, for those that have no other target."""
    came = sum(load.arrivals)
    return -(-wanted * max(0, came - load.arrived_tokens.routed) // max(1, came))


def _was_removed(history: ScalingHistory, load: ServiceLoad) -> bool:
    """Return whether a replica was removed just now since it saved too little."""
    change = history.change
    removed = change is not None and change.reason is ScalingReason.OVERFLOW_CHEAPER
    return removed and not _is_settled(history, load)


def _is_settled(history: ScalingHistory, load: ServiceLoad) -> bool:
    """Return whether the number has stayed for the cooldown."""
    return bool(history.decisions) and load.at - history.decisions[-1].at >= COOLDOWN


def _next_overflow(overflow: OverflowHistory | None, load: ServiceLoad) -> OverflowHistory | None:
    """Return what the last minute showed, where as many replicas were ready for all of it."""
    tokens, came = load.arrived_tokens, sum(load.arrivals)
    if tokens.waited:
        return None
    if not tokens.overflowed or not load.arrival_rate or not load.serving:
        return overflow
    if overflow is None:
        return OverflowHistory(serving=load.serving, since=load.at)
    if overflow.serving != load.serving:
        return replace(overflow, serving=load.serving, since=load.at)
    carried = load.arrival_rate * (1 - tokens.overflowed / max(came, tokens.overflowed))
    if load.at - overflow.since < ARRIVALS_SPAN or not carried:
        return overflow
    return replace(
        overflow,
        replica_rate=carried / load.serving,
        request_nanos=tokens.overflow_nanos / tokens.overflowed,
    )
