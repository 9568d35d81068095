"""What a recorded load costs on each instance type of a pool."""

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

import pytest

from tessera.api.inference_service import ScalingSchedule
from tessera.domain.instance_types.load_classes import load_classes
from tessera.domain.observed.load_history import LoadSpan
from tessera.domain.schedules import bounds_at
from tests.domain.instance_types.types import (
    AT,
    CHAT,
    EIGHT,
    FOUR,
    ONE,
    REASONING,
    TWO,
    a_history,
    a_typed_spec,
    ranked,
)


@pytest.mark.parametrize(
    ("span", "pods"),
    [
        (CHAT, [(ONE, 3), (TWO, 2), (FOUR, 1), (EIGHT, 1)]),
        (REASONING, [(TWO, 2), (FOUR, 1), (ONE, 5), (EIGHT, 1)]),
    ],
)
def test_long_answers_call_for_two_gpus_and_short_ones_for_one(
    span: LoadSpan, pods: list[tuple[str, int]]
) -> None:
    costs = ranked(a_history(span))
    assert [(cost.choice.variant, cost.pods[0]) for cost in costs] == pods


def test_a_day_costs_the_mean_of_its_pods() -> None:
    quiet = replace(CHAT, rate=0.0)
    cheapest = ranked(a_history(CHAT, quiet))[0]
    assert (cheapest.choice.variant, cheapest.pods) == (ONE, (3, 1))
    # 2 pods of 6.88 USD an hour on average.
    assert str(cheapest.daily) == "330.24 USD"


def test_the_one_more_that_covers_a_loss_and_the_floor_of_quiet_spans_count() -> None:
    costs = ranked(a_history(CHAT, replace(CHAT, rate=0.0)), a_typed_spec(min_replicas=2))
    assert {cost.choice.variant: cost.pods for cost in costs} == {
        ONE: (4, 2),
        TWO: (3, 2),
        FOUR: (2, 2),
        EIGHT: (2, 2),
    }


def test_each_span_has_the_bounds_that_schedules_set_at_its_time() -> None:
    schedules = (
        ScalingSchedule(cron="0 8 * * *", time_zone="UTC", min_replicas=6),
        ScalingSchedule(cron="0 20 * * *", time_zone="UTC", min_replicas=1, max_replicas=2),
    )
    spec = a_typed_spec(schedules=schedules, max_replicas=8)
    # The spans begin at midnight. By night 2 replicas are allowed of the 3 that one GPU needs.
    by_type = {each.choice.variant: each.pods for each in ranked(a_history(CHAT, times=144), spec)}
    assert by_type[ONE] == (2,) * 48 + (6,) * 72 + (2,) * 24
    assert by_type[EIGHT] == (1,) * 48 + (6,) * 72 + (1,) * 24


def test_schedules_of_every_minute_cost_no_more_than_those_of_days(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[datetime]()

    def counting(_schedule: ScalingSchedule, at: datetime) -> datetime:
        asked.append(at)
        return at + timedelta(minutes=1)

    monkeypatch.setattr("tessera.domain.schedules._next_time", counting)
    scaling = a_typed_spec(schedules=(ScalingSchedule(cron="* * * * *", min_replicas=3),)).scaling
    moments = [AT + number * timedelta(minutes=10) for number in range(1008)]
    assert set(bounds_at(scaling, moments)) == {(3, 48)}
    assert len(asked) < 64


def test_a_type_on_which_prompts_are_late_by_themselves_ranks_last() -> None:
    documents = replace(CHAT, rate=2.0, input_tokens=9000, resident_tokens=9100)
    costs = ranked(a_history(documents))
    assert (costs[0].choice.variant, costs[0].misses_slo) == (EIGHT, False)
    assert all(cost.misses_slo for cost in costs[1:])
    # One span of a day says too little.
    costs = ranked(a_history(documents, *[CHAT] * 143))
    assert not any(cost.misses_slo for cost in costs)


def test_a_type_that_max_replicas_keeps_below_the_load_ranks_last() -> None:
    costs = ranked(a_history(CHAT), a_typed_spec(max_replicas=2))
    assert (costs[0].choice.variant, costs[-1].choice.variant) == (TWO, ONE)
    assert [cost.misses_slo for cost in costs] == [False, False, False, True]


def test_a_measured_slowness_makes_a_type_dearer_and_those_of_more_gpus_that_are_not_measured() -> (
    None
):
    load = a_history(REASONING)

    def pods(slowness: dict[str, float]) -> dict[str, int]:
        costs = ranked(load, slowness=slowness)
        return {cost.choice.variant: cost.pods[0] for cost in costs}

    assert pods({TWO: 2.0}) == {ONE: 5, TWO: 4, FOUR: 2, EIGHT: 1}
    assert pods({ONE: 2.0}) == {ONE: 9, TWO: 4, FOUR: 2, EIGHT: 1}
    assert pods({ONE: 2.0, TWO: 1.0})[TWO] == 2
    assert ranked(load, slowness={TWO: 2.0})[0].choice.variant == ONE


def test_a_week_of_loads_is_ranked_by_a_few_classes_that_need_nearly_the_same_pods() -> None:
    rng = Random(1)  # noqa: S311 - not a secret
    days = [
        replace(CHAT, rate=CHAT.rate * rng.lognormvariate(0, 0.4), output_tokens=tokens)
        for tokens in (210 * rng.lognormvariate(0, 0.2) for _ in range(1008))
    ]
    assert len(load_classes(days)) <= 64
    assert len(load_classes(days[:36])) == 36
    classes = ranked(a_history(*days))[0]
    each = [ranked(a_history(span))[0].pods[0] for span in days[:40]]
    assert sum(classes.pods[:40]) == pytest.approx(sum(each), rel=0.05)
