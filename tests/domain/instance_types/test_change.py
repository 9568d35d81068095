"""When a service changes its instance type, and what it says of that."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from tessera.domain.instance_types.change import (
    RunningType,
    TypeDecision,
    decide_type,
    move_nanos,
    saving_of,
)
from tessera.domain.instance_types.rank import TypeCost
from tessera.domain.money import Money
from tessera.domain.observed.load_history import SPAN, LoadHistory, LoadSpan
from tessera.domain.placement.candidates import HardwareChoice
from tests.domain.instance_types.types import (
    AT,
    CHAT,
    FOUR,
    ONE,
    REASONING,
    TWO,
    a_history,
    a_typed_spec,
    model_shape,
    type_choices,
)

START = timedelta(minutes=2)
DAY = timedelta(days=1)
SMALL = [choice for choice in type_choices() if choice.variant in {ONE, TWO}]


def decided(
    history: LoadHistory | None,
    running: str = ONE,
    choices: Sequence[HardwareChoice] = SMALL,
    **fields: Any,
) -> TypeDecision:
    current = RunningType(variant=running, start=START, **fields)
    return decide_type(a_typed_spec(), model_shape(), choices, history, current)


def changed_to(decision: TypeDecision) -> str | None:
    return decision.change_to.variant if decision.change_to is not None else None


def test_a_service_changes_to_what_its_recorded_days_call_for_and_back() -> None:
    forth = decided(a_history(REASONING, times=144))
    assert changed_to(forth) == TWO
    assert forth.message == (
        "h100-1gpu costs 825.60 USD a day for the load of 24 hours; h100-2gpu would cost "
        "660.48 USD: it would have saved 165.12 USD, more than the 1.49 USD of a move"
    )
    back = decided(a_history(CHAT, times=144), TWO, since=AT - DAY)
    assert changed_to(back) == ONE


def test_a_type_that_is_the_cheapest_stays_and_says_what_the_second_best_costs() -> None:
    history = a_history(*[REASONING] * 6, *[CHAT] * 138)
    decision = decided(history)
    assert changed_to(decision) is None
    assert decision.message == (
        "h100-1gpu costs 509.12 USD a day for the load of 24 hours, the least since "
        "2026-01-07 01:00 UTC; h100-2gpu would cost 660.48 USD"
    )


@pytest.mark.parametrize("history", [None, a_history(), a_history(REASONING, times=35)])
def test_nothing_is_decided_by_less_than_six_hours(history: LoadHistory | None) -> None:
    assert decided(history) == TypeDecision()


def test_a_change_waits_a_day_after_the_last_one_and_until_it_would_have_saved_the_move() -> None:
    history = a_history(REASONING, times=144)
    rested = decided(history, since=AT - DAY + SPAN)
    assert changed_to(rested) is None
    assert rested.message.endswith("and a change waits until 2026-01-08 00:10 UTC")
    recent = a_history(*[CHAT] * 142, *[replace(REASONING, rate=20.0)] * 3)
    waiting = decided(recent)
    assert changed_to(waiting) is None


def test_a_load_that_jumps_between_two_types_changes_none() -> None:
    history = a_history(*[CHAT] * 3, *[REASONING] * 3, times=60)
    assert changed_to(decided(history)) is None
    assert changed_to(decided(history, TWO)) in {None, ONE}


def test_each_move_costs_less_than_waiting_for_it_did_and_rests_a_day() -> None:
    rng = Random(5)  # noqa: S311 - not a secret
    load = list[LoadSpan]()
    while len(load) < 4 * 144:
        load += [rng.choice((CHAT, REASONING))] * rng.randint(3, 150)
    history = a_history(*load)
    running, moved = ONE, list[datetime]()
    for end in range(36, len(load), 24):
        spans = history.spans[:end]
        seen = replace(history, read_at=spans[-1].end, spans=spans)
        decision = decided(seen, running, since=moved[-1] if moved else None)
        if (variant := changed_to(decision)) is not None:
            costs = {cost.choice.variant: cost for cost in decision.ranked}
            move = move_nanos(a_typed_spec(), costs[running], costs[variant], seen, START)
            assert decision.saving is not None
            assert move < decision.saving.nanos
            running, moved = variant, [*moved, seen.read_at]
    assert len(moved) > 1
    assert all(later - earlier >= DAY for earlier, later in pairwise(moved))


def test_no_type_is_chosen_whose_one_lost_pod_takes_all_capacity() -> None:
    history = a_history(REASONING, times=144)
    decision = decided(history, choices=[each for each in type_choices() if each.variant != TWO])
    assert (decision.ranked[0].choice.variant, changed_to(decision)) == (FOUR, None)
    assert decision.message.endswith("but one lost replica would take all capacity at times")
    assert changed_to(decided(history, choices=type_choices())) == TWO


def test_a_type_that_misses_the_slo_is_left_at_once() -> None:
    documents = replace(CHAT, rate=1.0, input_tokens=4000, resident_tokens=4100)
    decision = decided(a_history(documents, times=36))
    assert [cost.misses_slo for cost in decision.ranked] == [False, True]
    assert changed_to(decision) == TWO


@pytest.mark.parametrize("running", [TWO, FOUR])
@pytest.mark.parametrize("load", [{"rate": 40.0}, {"rate": 3.0, "input_tokens": 30_000}])
def test_a_type_is_not_left_for_a_cheaper_one_where_both_miss_the_slo(
    running: str, load: dict[str, Any]
) -> None:
    history = a_history(replace(REASONING, **load), times=144)
    decision = decide_type(
        a_typed_spec(max_replicas=2),
        model_shape(),
        type_choices()[:3],
        history,
        RunningType(variant=running, start=START),
    )
    assert all(cost.misses_slo for cost in decision.ranked)
    assert (changed_to(decision), decision.ranked[0].choice.variant) == (None, ONE)
    assert decision.message.endswith("it stays, since every type misses spec.slo")


def test_engines_that_are_measured_slow_turn_the_choice_back() -> None:
    history = a_history(REASONING, times=144)
    assert changed_to(decided(history, TWO, since=AT - DAY, slowness={TWO: 2.0})) == ONE
    assert changed_to(decided(history, slowness={TWO: 2.0})) is None


def test_types_of_another_currency_and_pools_that_are_gone_decide_nothing() -> None:
    history = a_history(REASONING, times=144)
    small, large = SMALL
    in_euros = replace(large, offer=replace(large.offer, hourly=Money(1, "EUR")))
    assert decided(history, choices=[small, in_euros]) == decided(history, choices=[small])
    assert decided(history, choices=[small, in_euros]) == TypeDecision()
    assert decided(history, "vanished-1gpu") == TypeDecision()


def test_a_gap_counts_nothing_and_what_was_saved_before_a_loss_is_forgotten() -> None:
    history = a_history(CHAT, times=12)
    spans = history.spans
    with_gap = replace(history, spans=(*spans[:2], *spans[6:]))
    dear, cheap = (
        TypeCost(choice=SMALL[0], pods=pods, misses_slo=False)
        for pods in ((2, 2, 1, 3, 3, 3, 3, 3), (1, 1, 9, 1, 1, 1, 1, 1))
    )
    saving = saving_of(dear, cheap, with_gap, None)
    assert saving.since == spans[7].end - SPAN
    assert saving.nanos == 5 * (3 * SMALL[0].hourly.nanos // 6 - SMALL[0].hourly.nanos // 6)
    assert saving_of(dear, cheap, with_gap, AT).nanos == 0
