"""Requests that overflow to another target add replicas until the next one costs more."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.money import NANO, Money
from tessera.domain.observed.demand import ArrivedTokens
from tessera.domain.scaling.break_even import COOLDOWN, MIN_SAVING, saved_by, within_break_even
from tessera.domain.scaling.decisions import changed, current_replicas
from tessera.domain.scaling.state import (
    Decided,
    OverflowHistory,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ScaleTarget
from tests.builders import NOW, at

SCALING = ScalingSpec.model_validate({"minReplicas": 1, "maxReplicas": 20})
TARGET = ScaleTarget(spec=SCALING, queue_target=4, max_num_seqs=30)
HOURLY = Money(3 * NANO, "USD")
# A replica carries a request per second, and starts within two minutes.
START_SECONDS = 120
STEP_SECONDS = 20


class Played(NamedTuple):
    """What was decided, and the loads that it was decided by."""

    decisions: Sequence[ScaleDecision]
    loads: Sequence[ServiceLoad]

    @property
    def numbers(self) -> list[int]:
        return [decision.replicas for decision in self.decisions]


def a_load(
    seconds: float, rate: float, serving: int, *, dollars: float = 1.0, waited: int = 0
) -> ServiceLoad:
    """Build the load of a minute whose requests, all of routes, overflow where replicas are full.

    An hour of one request per second costs so much elsewhere.
    """
    overflowed = round(60 * max(0.0, rate - serving))
    return ServiceLoad(
        at=at(seconds),
        replicas=serving,
        ready=serving,
        serving=serving,
        waiting=0.0,
        running=0.0,
        activity=0.9,
        arrival_rate=rate,
        arrivals=(*[0] * 59, round(60 * rate)),
        arrived_tokens=ArrivedTokens(
            waited=waited,
            overflowed=overflowed,
            overflow_nanos=round(overflowed * dollars * NANO / 3600),
            routed=round(60 * rate),
        ),
    )


def play(
    rate_at: Callable[[int], float],
    seconds: int,
    *,
    dollars: float,
    waited_at: Callable[[int], int] = lambda _: 0,
    hourly: Money = HOURLY,
) -> Played:
    """Play a policy that adds and removes replicas at once, with what overflows weighed."""
    history = ScalingHistory(decisions=(TimestampedReplicas(at(-7200), 1),))
    decisions, loads, ready_at = list[ScaleDecision](), list[ServiceLoad](), [-7200]
    for second in range(0, seconds, STEP_SECONDS):
        serving = max(1, sum(ready <= second for ready in ready_at))
        rate = rate_at(second)
        load = a_load(second, rate, serving, dollars=dollars, waited=waited_at(second))
        current = current_replicas(load, history)
        wanted = TARGET.clamp(math.ceil(rate - 1e-9))
        decided = Decided(wanted, ScalingReason.DEMAND_ABOVE_CAPACITY, "")
        policy = changed(decided, load.at, current, history)
        decision = within_break_even(policy, TARGET, load, history, hourly)
        history = decision.history
        ready_at = ready_at[: decision.replicas]
        ready_at += [second + START_SECONDS] * (decision.replicas - len(ready_at))
        decisions.append(decision)
        loads.append(load)
    return Played(decisions, loads)


@pytest.mark.parametrize(
    ("rate", "dollars", "replicas"),
    [
        (1.5, 2.0, 1),  # it saves 1.00 USD of 3.00 USD
        (1.5, 7.0, 2),  # 3.50 USD of 3.00 USD
        (2.5, 5.0, 2),  # the second saves 5.00 USD, the third 2.50 USD
        (2.5, 7.0, 3),
        (3.0, 2.9, 3),  # what costs hardly more than it saves, and runs already, stays
        (3.0, 2.5, 1),
        (0.5, 9.0, 1),
    ],
)
def test_replicas_stay_that_cost_no_more_than_what_would_overflow(
    rate: float, dollars: float, replicas: int
) -> None:
    played = play(lambda _: rate, 3600, dollars=dollars)
    assert set(played.numbers[-60:]) == {replicas}


def test_a_replica_that_saves_too_little_goes_after_the_cooldown_and_says_why() -> None:
    played = play(lambda _: 1.5, 3600, dollars=2.0)
    first = played.numbers.index(1)
    removal = played.decisions[first]
    assert (removal.reason, played.loads[first].at) == (ScalingReason.OVERFLOW_CHEAPER, at(600))
    assert removal.message == (
        "1 replica; 1 more would save 1.00 USD per hour of what requests cost that overflow to "
        "other targets of their routes, and costs 3.00 USD per hour"
    )
    # From then on none is added.
    assert {decision.reason for decision in played.decisions[first:]} == {removal.reason}


def test_what_is_known_of_an_earlier_overflow_adds_no_replica_that_costs_more() -> None:
    played = play(lambda second: 1.5 if second % 7200 < 3600 else 0.9, 14400, dollars=2.0)
    assert set(played.numbers[3600 // STEP_SECONDS :]) == {1}


def test_what_waits_without_another_target_gets_replicas_at_any_price() -> None:
    waits_from = 1800
    played = play(
        lambda _: 1.5, 3600, dollars=2.0, waited_at=lambda second: int(second >= waits_from)
    )
    assert played.numbers[waits_from // STEP_SECONDS - 1] == 1
    assert set(played.numbers[waits_from // STEP_SECONDS :]) == {2}


def test_hardware_that_is_paid_anyway_serves_what_would_overflow() -> None:
    assert play(lambda _: 1.1, 1800, dollars=0.1, hourly=Money(0, "USD")).numbers[-1] == 2


def test_before_anything_overflowed_the_policy_decides() -> None:
    history = ScalingHistory(decisions=(TimestampedReplicas(at(-7200), 1),))
    load = a_load(0, rate=0.9, serving=1)
    policy = changed(Decided(4, ScalingReason.DEMAND_ABOVE_CAPACITY, ""), NOW, 1, history)
    assert within_break_even(policy, TARGET, load, history, HOURLY) is policy


RATES = st.lists(st.floats(0.1, 8.0), min_size=1, max_size=6)


@given(RATES, st.floats(0.1, 20.0))
def test_a_replica_comes_and_goes_at_most_once_in_the_cooldown(
    rates: list[float], dollars: float
) -> None:
    played = play(lambda second: rates[second // 300 % len(rates)], 5400, dollars=dollars)
    changes = [
        (load.at, after.replicas - before.replicas, after.reason)
        for load, before, after in zip(
            played.loads[1:], played.decisions, played.decisions[1:], strict=False
        )
        if after.replicas != before.replicas
    ]
    for (before, difference, reason), (after, next_difference, next_reason) in pairwise(changes):
        is_removed = ScalingReason.OVERFLOW_CHEAPER in {reason, next_reason}
        if is_removed and (difference > 0) != (next_difference > 0):
            assert after - before >= COOLDOWN


@given(st.floats(1.05, 8.0), st.floats(0.1, 20.0))
def test_of_a_steady_load_no_replica_stays_that_costs_too_much_or_is_missing_that_saves_enough(
    rate: float, dollars: float
) -> None:
    played = play(lambda _: rate, 3600, dollars=dollars)
    last, overflow = played.numbers[-1], played.decisions[-1].history.overflow
    assert overflow is not None
    assert overflow.replica_rate == pytest.approx(1, rel=0.02)
    known = OverflowHistory(
        serving=1, since=NOW, replica_rate=1, request_nanos=dollars * NANO / 3600
    )
    tolerance = 0.03 * dollars * NANO
    if last > 1:
        assert saved_by(last, rate, known) >= HOURLY.nanos / (1 + MIN_SAVING) - tolerance
    if last < math.ceil(rate - 1e-9):
        assert saved_by(last + 1, rate, known) <= HOURLY.nanos * (1 + MIN_SAVING) + tolerance


@given(RATES)
def test_without_a_report_of_what_overflows_nothing_changes(rates: list[float]) -> None:
    history = ScalingHistory(decisions=(TimestampedReplicas(at(-7200), 1),))
    for second in range(0, 300 * len(rates), STEP_SECONDS):
        rate = rates[second // 300]
        load = replace(a_load(second, rate, serving=1), arrived_tokens=ArrivedTokens())
        decided = Decided(math.ceil(rate), ScalingReason.DEMAND_ABOVE_CAPACITY, "")
        policy = changed(decided, load.at, current_replicas(load, history), history)
        assert within_break_even(policy, TARGET, load, history, HOURLY) is policy
        history = policy.history
