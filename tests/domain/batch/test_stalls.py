"""Attempts in which no row and no byte moves: named, then replaced on another node."""

from datetime import timedelta
from typing import Any

from enum_texts import member_texts
from tessera.api.batch_reasons import BatchRunning
from tessera.domain.batch.attempt_state import STALL_TIMEOUT
from tessera.domain.batch.situation import Situation
from tessera.domain.observed.runner_reports import STALL_SECONDS
from tests.batch_builders import (
    SPOT_NODE,
    a_batch_pod,
    a_job,
    a_progress_sample,
    a_situation,
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


def test_a_new_leader_names_and_replaces_a_runner_that_answered_only_the_one_before() -> None:
    situation = on_attempt(unanswered_since=NOW)
    reasons = [plan_batch(later(situation, 60 * minutes)).running.reason for minutes in (1, 2, 20)]
    assert reasons == ["OnSpot", "Stalled", "BackingOff"]
    unreached = on_attempt(unanswered_since=NOW, attempt={"runningSince": None})
    assert plan_batch(later(unreached, 3600)).running.reason == "OnSpot"
    answered = later(situation, 3600, progress_sample=a_progress_sample(5, 3600))
    assert plan_batch(answered).running.reason == "OnSpot"


def _on_check(seconds: float, answered: float, **fields: Any) -> Situation:
    """A check that began at `NOW` and answers at `answered` seconds."""
    sample = a_progress_sample(0, answered, **{"attempt": 0, **fields})
    situation = a_situation(jobs=(a_job(None),), pods=(a_batch_pod(None),), progress_sample=sample)
    return later(situation, seconds)


def test_a_check_in_which_nothing_moves_is_named_and_then_replaced() -> None:
    for minutes, reason, deleted in (
        (1, "ValidationJobRunning", 0),
        (2, "Stalled", 0),
        (20, "Stalled", 1),
    ):
        seconds = minutes * MINUTE
        hanging = _on_check(seconds, seconds, idleSeconds=seconds)
        for situation in (hanging, _on_check(seconds, 0)):
            plan = plan_batch(situation)
            assert (plan.running.reason, len(plan.delete)) == (reason, deleted), minutes
    assert "no row of Job/night-check moved since 12:00:00Z" in plan.running.message
    plan = plan_batch(_on_check(3600, 3600))
    assert (plan.running.reason, plan.delete) == ("ValidationJobRunning", ())


def test_a_check_that_has_not_started_names_the_pod_whose_events_say_why() -> None:
    pod = a_batch_pod(None, runner_since=None)
    plan = plan_batch(later(a_situation(jobs=(a_job(None),), pods=(pod,)), 600))
    assert plan.running.message.endswith("starts; see kubectl describe pod night-check-x")


def test_a_check_is_asked_and_not_judged_by_what_another_one_answered() -> None:
    target = plan_batch(_on_check(0, 0)).progress_target
    assert target is not None
    assert (target.attempt, target.address) == (0, "127.10.0.9")
    assert plan_batch(_on_check(3600, -1)).running.reason == "ValidationJobRunning"
    assert plan_batch(_on_check(3600, 0, attempt=1)).running.reason == "ValidationJobRunning"


def test_only_an_attempt_that_failed_makes_the_next_one_prefer_another_node() -> None:
    plan = plan_batch(on_attempt(pod={"disrupted": True}))
    assert plan.create is not None
    assert (plan.create.attempt, plan.create.avoided_node) == (2, "")
    failed = plan_and_carry_out(on_attempt(pod={"exit_code": 1, "ended": NOW}))
    plan = plan_batch(later(failed, MINUTE))
    assert plan.create is not None
    assert (plan.create.attempt, plan.create.avoided_node) == (2, SPOT_NODE)


def test_the_reason_has_the_times_that_are_kept() -> None:
    runner, operator = STALL_SECONDS // 60, STALL_TIMEOUT // timedelta(minutes=1)
    meaning = member_texts(BatchRunning)["STALLED"]
    assert f"after {runner} minutes; what is left after {operator} the operator" in meaning
