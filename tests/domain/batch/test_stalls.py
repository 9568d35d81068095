"""Attempts in which no row and no byte moves: named, then replaced on another node."""

from tests.batch_builders import (
    SPOT_NODE,
    a_progress_sample,
    later,
    on_attempt,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import NOW

MINUTE = 60


def test_a_runner_that_says_that_nothing_moves_is_named_and_then_replaced_elsewhere() -> None:
    for minutes, reason in ((1, "OnSpot"), (2, "Stalled"), (19, "Stalled")):
        seconds = minutes * MINUTE
        sample = a_progress_sample(5, seconds, idleSeconds=seconds)
        plan = plan_batch(later(on_attempt(), seconds, progress_sample=sample))
        assert (plan.running.reason, plan.delete) == (reason, ())
    sample = a_progress_sample(5, 20 * MINUTE, idleSeconds=20 * MINUTE)
    situation = later(on_attempt(), 20 * MINUTE, progress_sample=sample)
    plan = plan_batch(situation)
    assert plan.attempt is not None
    assert plan.attempt.failed_node == SPOT_NODE
    assert "no row and no byte moved for 20 min (since 12:00:00Z)" in plan.running.message
    assert plan.delete == (situation.jobs[0].ref,)
    following = plan_batch(later(plan_and_carry_out(situation), MINUTE, progress_sample=None))
    assert following.create is not None
    assert (following.create.attempt, following.create.avoided_node) == (2, SPOT_NODE)


def test_a_runner_that_no_longer_answers_is_stalled_since_its_last_answer() -> None:
    situation = on_attempt(progress_sample=a_progress_sample(5))
    reasons = [plan_batch(later(situation, 60 * minutes)).running.reason for minutes in (1, 2, 20)]
    assert reasons == ["OnSpot", "Stalled", "BackingOff"]


def test_a_runner_that_never_answered_may_be_out_of_reach_and_goes_on() -> None:
    assert plan_batch(later(on_attempt(), 3600)).running.reason == "OnSpot"
    other = a_progress_sample(5, attempt=7)
    assert plan_batch(later(on_attempt(progress_sample=other), 3600)).running.reason == "OnSpot"


def test_a_runner_that_publishes_large_files_is_only_judged_by_its_answers() -> None:
    sample = a_progress_sample(1000, 3600, state="publishing", idleSeconds=3600)
    situation = later(on_attempt(), 3600, progress_sample=sample)
    assert plan_batch(situation).running.reason == "OnSpot"
    assert plan_batch(later(situation, 120)).running.reason == "Stalled"


def test_only_an_attempt_that_failed_makes_the_next_one_prefer_another_node() -> None:
    plan = plan_batch(on_attempt(pod={"disrupted": True}))
    assert plan.create is not None
    assert (plan.create.attempt, plan.create.avoided_node) == (2, "")
    failed = plan_and_carry_out(on_attempt(pod={"exit_code": 1, "ended": NOW}))
    plan = plan_batch(later(failed, MINUTE))
    assert plan.create is not None
    assert (plan.create.attempt, plan.create.avoided_node) == (2, SPOT_NODE)
