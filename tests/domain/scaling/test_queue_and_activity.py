"""The autoscaler, minutes in microseconds."""

import itertools
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.domain.scaling.decisions import desired_replicas
from tessera.domain.scaling.policies.queue_and_activity import (
    decide,
    recommended_replicas,
    restore,
)
from tessera.domain.scaling.state import (
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import HEADROOM, ScaleTarget
from tests.builders import at

MAX_NUM_SEQS = 30


def policy(
    queue_target: float = 50, max_num_seqs: int = MAX_NUM_SEQS, **fields: Any
) -> ScaleTarget:
    return ScaleTarget(
        spec=ScalingSpec.model_validate({"policy": "QueueAndActivity", **fields}),
        queue_target=queue_target,
        max_num_seqs=max_num_seqs,
    )


def load(
    seconds: float,
    waiting: float | None = 0,
    activity: float | None = 0,
    replicas: int = 2,
    ready: int | None = None,
    running: float | None = 0,
) -> ServiceLoad:
    return ServiceLoad(
        at=at(seconds),
        replicas=replicas,
        ready=replicas if ready is None else ready,
        waiting=waiting,
        running=running,
        activity=activity,
    )


def play(
    spec: ScaleTarget, loads: list[ServiceLoad], memory: ScalingHistory | None = None
) -> list[ScaleDecision]:
    """Every decision over a course of loads, with the memory passed on."""
    decisions = []
    memory = memory or ScalingHistory()
    for service_load in loads:
        decisions.append(decide(spec, service_load, memory))
        memory = decisions[-1].history
    return decisions


def steady(replicas: int, seconds: float = 0) -> ScalingHistory:
    return ScalingHistory(decisions=(TimestampedReplicas(at(seconds - 1000), replicas),))


def test_an_activity_that_contradicts_running_requests_decides_nothing_and_is_named() -> None:
    for activity, reason in [
        (0.0, "InconsistentMetrics"),
        (0.5, "Steady"),
        (None, "MetricsPartial"),
    ]:
        idle = 2 if activity == 0 else 0
        busy = replace(load(0, waiting=3, running=40, activity=activity), idle_replicas=idle)
        decision = decide(policy(), busy, steady(2))
        assert (decision.replicas, decision.reason) == (2, reason)
        named = "activity below 3% on 2 replicas with running requests for 5 minutes is no reading"
        assert (named in decision.message) == bool(idle)


@pytest.mark.parametrize(
    ("total", "target", "replicas"), [(320, 50, 7), (4 * 90, 75, 5), (0, 5, 0)]
)
def test_the_bare_formula_is_that_of_the_hpa(total: float, target: float, replicas: int) -> None:
    assert desired_replicas(total, target) == replicas


def test_a_queue_raises_only_after_it_lasted_the_whole_window() -> None:
    loads = [load(second, waiting=200) for second in range(0, 70, 5)]
    decisions = play(policy(), loads)
    assert [(decision.replicas, decision.reason) for decision in decisions[:12]] == [
        (2, "ScaleUpStabilized")
    ] * 12
    assert (decisions[12].replicas, decisions[12].reason) == (4, "QueueAboveTarget")
    assert {decision.change_at for decision in decisions[:12]} == {at(60)}
    assert decisions[3].message.endswith("desired 4, added at 12:01:00 UTC if it stays so")


def test_one_short_queue_in_the_window_lets_a_spike_pass() -> None:
    loads = [load(second, waiting=0 if second == 30 else 400) for second in range(0, 90, 5)]
    assert {decision.replicas for decision in play(policy(), loads)} == {2}


def test_a_target_below_1_adds_at_most_one_replica_for_each_waiting_request() -> None:
    spec = policy(queue_target=0.25, minReplicas=1, scaleUp={"pods": 10})
    counts = [recommended_replicas(spec, load(0, waiting, replicas=2), 2) for waiting in range(4)]
    assert counts == [1, 3, 4, 5]


def test_a_period_adds_at_most_its_pods() -> None:
    loads = [load(second, waiting=4000, activity=1) for second in range(0, 320, 5)]
    replicas = [decision.replicas for decision in play(policy(), loads)]
    assert (replicas[12], replicas[35], replicas[36], replicas[60]) == (4, 4, 6, 8)


def test_a_spike_beyond_the_limit_says_what_was_desired() -> None:
    loads = [load(second, waiting=400, activity=1) for second in range(0, 70, 5)]
    decision = play(policy(), loads)[12]
    assert (decision.replicas, decision.reason) == (4, "QueueAboveTarget")
    assert "desired 8, limited to 4" in decision.message


def test_a_lull_removes_only_after_the_whole_window() -> None:
    loads = [load(second, replicas=4) for second in range(0, 310, 10)]
    decisions = play(policy(), loads, steady(4))
    assert {(decision.replicas, decision.reason) for decision in decisions[:30]} == {
        (4, "ScaleDownStabilized")
    }
    assert (decisions[30].replicas, decisions[30].reason) == (2, "LoadBelowTarget")


def test_a_busy_moment_in_the_window_keeps_the_replicas() -> None:
    loads = [
        load(second, replicas=4, waiting=200 if second == 200 else 0)
        for second in range(0, 490, 10)
    ]
    decisions = play(policy(), loads, steady(4))
    assert {decision.replicas for decision in decisions[:49]} == {4}


@pytest.mark.parametrize("activity", [0.99, None])
def test_a_few_streams_keep_no_replicas_however_active_they_are(activity: float | None) -> None:
    loads = [load(second, activity=activity, running=2, replicas=4) for second in range(0, 310, 10)]
    decisions = play(policy(), loads, steady(4))
    assert {decision.reason for decision in decisions[:30]} == {"ScaleDownStabilized"}
    assert (decisions[30].replicas, decisions[30].reason) == (2, "LoadBelowTarget")
    assert "2 running (at most 30 per replica)" in decisions[30].message


@pytest.mark.parametrize(("running", "waiting", "left"), [(45, 0, 3), (46, 0, 4), (40, 6, 4)])
def test_replicas_stay_whose_requests_the_others_cannot_run_with_headroom(
    running: int, waiting: int, left: int
) -> None:
    loads = [
        load(second, waiting, 0.1, running=running, replicas=4) for second in range(0, 610, 10)
    ]
    assert play(policy(), loads, steady(4))[-1].replicas == left


@pytest.mark.parametrize("activity", [0.99, None])
def test_activity_without_a_queue_raises_nothing(activity: float | None) -> None:
    loads = [
        load(second, activity=activity, running=60, replicas=3) for second in range(0, 600, 10)
    ]
    reason = "MetricsPartial" if activity is None else "Steady"
    decisions = play(policy(), loads, steady(3))
    assert {(decision.replicas, decision.reason) for decision in decisions} == {(3, reason)}


def test_activity_raises_while_something_waits() -> None:
    loads = [load(second, waiting=1, activity=0.99, replicas=3) for second in range(0, 70, 5)]
    decisions = play(policy(), loads, steady(3))
    assert (decisions[12].replicas, decisions[12].reason) == (4, "ActivityAboveTargetWithQueue")


@pytest.mark.parametrize(("waiting", "running"), [(None, None), (None, 2), (0, None)])
def test_while_requests_are_unknown_nothing_is_removed(
    waiting: float | None, running: float | None
) -> None:
    loads = [load(second, waiting, running=running, replicas=4) for second in range(0, 900, 10)]
    decisions = play(policy(), loads, steady(4))
    assert {(decision.replicas, decision.reason) for decision in decisions} == {
        (4, "FailedGetMetrics")
    }
    assert "after 5 minutes without readings" in decisions[-1].message
    assert "tessera doctor" in decisions[-1].message


def test_the_queue_alone_may_raise_and_says_that_activity_is_missing() -> None:
    loads = [load(second, waiting=150, activity=None) for second in range(0, 70, 5)]
    decision = play(policy(), loads)[12]
    assert (decision.replicas, decision.reason) == (3, "QueueAboveTarget")
    assert "activity unknown" in decision.message


def test_what_is_known_to_wait_raises_although_one_replica_has_no_reading() -> None:
    loads = [
        replace(load(second, waiting=None, running=None, activity=None), known_waiting=200)
        for second in range(0, 70, 5)
    ]
    decisions = play(policy(), [replace(load, serving=2) for load in loads])
    assert {(decision.replicas, decision.reason) for decision in decisions[:12]} == {
        (2, "ScaleUpStabilized")
    }
    assert (decisions[12].replicas, decisions[12].reason) == (4, "QueueAboveTarget")
    assert "at least 200 waiting" in decisions[12].message
    starting = play(policy(max_num_seqs=400), loads)
    assert {(decision.replicas, decision.reason) for decision in starting} == {
        (2, "FailedGetMetrics")
    }


def test_what_is_known_to_wait_allows_no_reduction() -> None:
    loads = [
        replace(load(second, waiting=None, running=None, replicas=4), known_waiting=2, serving=4)
        for second in range(0, 1200, 10)
    ]
    assert {decision.replicas for decision in play(policy(), loads, steady(4))} == {4}


def with_gap(loads: list[ServiceLoad], begin: float, end: float) -> list[ServiceLoad]:
    """The same loads, of which those of the gap were not read."""
    return [
        replace(load, waiting=None, running=None, activity=None)
        if at(begin) <= load.at < at(end)
        else load
        for load in loads
    ]


@pytest.mark.parametrize("missed", [*range(5, 300, 50), 295])
def test_a_missed_reading_neither_restarts_the_quiet_nor_drops_a_raise(missed: int) -> None:
    quiet = [load(second, replicas=4) for second in range(0, 310, 5)]
    decisions = play(policy(), with_gap(quiet, missed, missed + 5), steady(4))
    assert [decision.replicas for decision in decisions[-2:]] == [2, 2]
    busy = [load(second, waiting=200) for second in range(0, 70, 5)]
    decisions = play(policy(), with_gap(busy, missed / 5, missed / 5 + 5))
    assert decisions[-1].replicas == 4


@pytest.mark.parametrize(("minutes", "quiet_ends"), [(4, 400), (6, 860)])
def test_five_minutes_without_readings_begin_the_quiet_again(minutes: int, quiet_ends: int) -> None:
    loads = [load(second, replicas=4) for second in range(0, 1000, 10)]
    gap_end = 200 + 60 * minutes
    decisions = play(policy(), with_gap(loads, 200, gap_end), steady(4))
    removed_at = next(
        load.at for load, decision in zip(loads, decisions, strict=True) if decision.replicas == 2
    )
    assert removed_at == at(max(gap_end, quiet_ends))


def test_a_long_gap_drops_no_raise() -> None:
    loads = [load(second, waiting=200) for second in range(0, 700, 10)]
    decisions = play(policy(), with_gap(loads, 50, 650))
    assert [decision.replicas for decision in decisions[64:66]] == [2, 4]


def test_a_gap_after_a_busy_reading_is_not_quiet() -> None:
    loads = [load(second, waiting=200 if second < 30 else 0) for second in range(0, 300, 10)]
    spec = policy(scaleDown={"stabilizationWindow": "20s"}, minReplicas=1)
    decisions = play(spec, with_gap(loads, 20, 200), steady(4))
    assert [decision.replicas for decision in decisions[20:23]] == [4, 4, 1]


@pytest.mark.parametrize("waiting", [91, 100, 109])
def test_within_the_tolerance_nothing_moves(waiting: float) -> None:
    loads = [load(second, waiting=waiting, activity=0.75) for second in range(0, 130, 5)]
    assert {decision.replicas for decision in play(policy(), loads)} == {2}


@pytest.mark.parametrize(("ready", "replicas"), [(1, 3), (3, 5)])
def test_a_queue_that_starting_replicas_will_run_orders_no_more_of_them(
    ready: int, replicas: int
) -> None:
    loads = [
        load(second, waiting=30, running=30, ready=1 if second <= 60 else ready)
        for second in range(0, 600, 10)
    ]
    decisions = play(policy(4, minReplicas=1), loads, steady(1))
    assert max(decision.replicas for decision in decisions) == replicas


def test_starting_replicas_count_as_idle_when_more_are_desired() -> None:
    loads = [load(second, waiting=1, activity=1.0, ready=2) for second in range(0, 70, 5)]
    assert play(policy(), loads, steady(4))[-1].replicas == 4


def test_more_than_the_maximum_says_so() -> None:
    loads = [load(second, waiting=5000, activity=1, replicas=8) for second in range(0, 70, 5)]
    decision = play(policy(), loads, steady(8))[-1]
    assert (decision.replicas, decision.reason) == (8, "TooManyReplicas")
    assert "spec.scaling.maxReplicas is 8" in decision.message


@pytest.mark.parametrize(("replicas", "bounded"), [(1, 2), (20, 8)])
def test_a_number_outside_the_bounds_moves_to_them_at_once(replicas: int, bounded: int) -> None:
    decision = decide(policy(), load(0, replicas=replicas), steady(replicas))
    assert (decision.replicas, decision.reason) == (bounded, "BoundsChanged")


def test_a_restart_without_history_restarts_both_windows() -> None:
    up = play(policy(), [load(second, waiting=400) for second in range(0, 60, 5)])
    down = play(policy(), [load(second, replicas=6) for second in range(0, 300, 10)])
    assert {decision.replicas for decision in up} == {2}
    assert {decision.replicas for decision in down} == {6}


def test_a_recalled_past_lets_a_restarted_operator_go_on() -> None:
    past = [load(second, waiting=200) for second in range(0, 60, 5)]
    remembered = restore(policy(), past, steady(2))
    decision = decide(policy(), load(60, waiting=200), remembered)
    assert (decision.replicas, decision.reason) == (4, "QueueAboveTarget")


def test_the_step_limit_survives_a_restart_by_what_was_written_down() -> None:
    written = ScalingHistory(
        decisions=(TimestampedReplicas(at(-60), 2), TimestampedReplicas(at(-10), 4))
    )
    past = [load(second, waiting=4000, activity=1) for second in range(-60, 0, 5)]
    decision = decide(policy(), load(0, waiting=4000, activity=1), restore(policy(), past, written))
    assert (decision.replicas, decision.reason) == (4, "ScaleUpLimit")


loads = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.one_of(st.none(), st.integers(0, 2000)),
        st.one_of(st.none(), st.floats(0, 1)),
    ),
    min_size=1,
    max_size=60,
)


@given(course=loads)
def test_no_decision_leaves_bounds_or_step(
    course: list[tuple[int, int | None, float | None]],
) -> None:
    spec, memory, second = policy(), ScalingHistory(), 0
    history = [(at(-10_000), 2)]
    for pause, waiting, activity in course:
        second += pause
        decision = decide(spec, load(second, waiting, activity, replicas=2), memory)
        assert 2 <= decision.replicas <= 8
        period_ago = at(second) - timedelta(seconds=120)
        before = max(
            [count for moment, count in history if moment >= period_ago]
            + [[count for moment, count in history if moment <= period_ago][-1]]
        )
        assert decision.replicas <= max(history[-1][1], before + 2)
        history.append((at(second), decision.replicas))
        memory = decision.history
        assert len(memory.decisions) <= 16


@given(course=loads, more=st.integers(1, 500))
def test_a_longer_queue_never_means_fewer_replicas(
    course: list[tuple[int, int | None, float | None]], more: int
) -> None:
    spec = policy()
    second, less_memory, more_memory = 0, ScalingHistory(), ScalingHistory()
    for pause, waiting, activity in course:
        second += pause
        heavier = None if waiting is None else waiting + more
        less = decide(spec, load(second, waiting, activity), less_memory)
        greater = decide(spec, load(second, heavier, activity), more_memory)
        assert greater.replicas >= less.replicas
        less_memory, more_memory = less.history, greater.history


@given(
    clients=st.integers(0, 600),
    max_num_seqs=st.integers(2, 64),
    start=st.integers(1, 12),
    queue_target=st.sampled_from([0.1, 0.7, 4, 16, 50]),
    active=st.booleans(),
    imbalance=st.floats(0, 1 / HEADROOM - 1),
)
def test_a_steady_load_converges_within_an_hour_and_never_flaps(
    clients: int, max_num_seqs: int, start: int, queue_target: float, active: bool, imbalance: float
) -> None:
    """Clients that send their next request after each answer, unevenly spread."""
    spec = policy(queue_target, max_num_seqs, minReplicas=1, maxReplicas=12)
    memory, replicas, course = steady(start), start, [start]
    for second in range(0, 3600, 10):
        share = min(clients, clients / replicas * (1 + imbalance))
        hot = min(share, max_num_seqs)
        others = min(clients - share, max_num_seqs * (replicas - 1))
        waiting, running = math.floor(clients - hot - others), math.ceil(hot + others)
        activity = float(clients > 0) if active else None
        decision = decide(spec, load(second, waiting, activity, replicas, running=running), memory)
        if decision.replicas < replicas:
            assert running <= decision.replicas * max_num_seqs * HEADROOM or running == 0
        memory, replicas = decision.history, decision.replicas
        course.append(replicas)
    changes = [after - before for before, after in itertools.pairwise(course) if after != before]
    rises = [change > 0 for change in changes]
    assert rises == sorted(rises, reverse=True)  # nothing is added after a reduction
    assert len(set(course[-60:])) == 1


def test_replicas_of_a_unit_that_are_not_pods_are_named_so() -> None:
    unequal = replace(policy(queue_target=4, minReplicas=1, maxReplicas=3), largest_share=8.6)
    equal = policy(queue_target=4, minReplicas=1, maxReplicas=25)
    for target, text in ((unequal, "25 replicas of the smallest variant"), (equal, "25 replicas")):
        steady_text = decide(target, load(0, running=400, replicas=25), steady(25)).message
        fewer = decide(target, load(0, replicas=25), steady(25)).message
        assert (steady_text.split(", ")[3], fewer.split("; ")[0]) == (text, text)
