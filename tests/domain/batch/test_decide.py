"""What becomes of a batch: every transition, and what never happens whatever does."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.batch_inference import (
    MAX_FULL_POOLS,
    BatchInferenceStatus,
    UnavailablePool,
)
from tessera.api.ref import Ref
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.decide import apply_funding, planner_error_plan, propose_batch
from tessera.domain.batch.names import errors_path
from tessera.domain.batch.situation import Situation
from tessera.domain.hardware.spot_nodes import DISRUPTION_TAINTS
from tessera.domain.model.fetched import fetched_files
from tessera.domain.money import money
from tessera.domain.observed.batches import NodeHealth, VolumeClaim
from tessera.domain.observed.snapshot import ContainerExit
from tessera.domain.status.batch import batch_status
from tests.batch_builders import (
    MODEL_CLAIM,
    NODES,
    POOLS,
    ROWS,
    SPOT_NODE,
    STORED,
    a_batch,
    a_batch_pod,
    a_batch_spec,
    a_check_report,
    a_checked_situation,
    a_job,
    a_progress_sample,
    a_report,
    a_situation,
    carry_out,
    later,
    on_attempt,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import A100, H100, MEDIUM, NOW, SMALL, a_node, a_pool, a_spec, at

HOUR = 3600


def jobs_to_delete(batch_plan: BatchPlan) -> list[str]:
    """Jobs to delete."""
    return [ref.name for ref in batch_plan.delete]


def state_and_reasons(batch_plan: BatchPlan) -> tuple[str, str, str]:
    return (batch_plan.state, batch_plan.running.reason, batch_plan.complete.reason)


# The check


def test_the_input_is_checked_before_anything_is_spent() -> None:
    plan = propose_batch(a_situation())
    assert plan.create is not None
    assert (plan.create.name, plan.create.choice, plan.claim) == ("night-check", None, None)
    assert state_and_reasons(plan) == ("validating", "ValidationJobRunning", "Validating")


def test_a_valid_input_starts_the_first_attempt_in_the_same_cycle() -> None:
    pod = a_batch_pod(None, exit_code=0, ended=NOW, report=a_check_report())
    plan = plan_batch(plan_and_carry_out(a_situation(), pods=(pod,)))
    assert plan.check is not None
    assert plan.create is not None
    assert (plan.check.rows, plan.create.name, jobs_to_delete(plan)) == (
        ROWS,
        "night-a1",
        ["night-check"],
    )
    assert state_and_reasons(plan) == ("in_progress", "Starting", "InProgress")


def test_a_refused_input_ends_the_batch_with_its_lines_and_its_log() -> None:
    faults = [{"line": 3, "code": "bad", "message": "no custom_id", "param": None}]
    report = a_check_report(ok=False, errorCount=1, errors=faults, message="told")
    pod = a_batch_pod(None, exit_code=3, ended=NOW, report=report)
    plan = plan_batch(plan_and_carry_out(a_situation(), pods=(pod,)))
    assert state_and_reasons(plan) == ("failed", "Finished", "InvalidInput")
    assert "1 of 1000 rows invalid: line 3: no custom_id" in plan.complete.message
    assert jobs_to_delete(plan) == [], "the log of the check helps"


def test_an_empty_input_is_refused_without_a_count_of_rows() -> None:
    faults = [{"line": 1, "code": "empty_file", "message": "the file has no rows", "param": None}]
    report = a_check_report(ok=False, rows=0, errorCount=1, errors=faults)
    pod = a_batch_pod(None, exit_code=3, ended=NOW, report=report)
    plan = plan_batch(plan_and_carry_out(a_situation(), pods=(pod,)))
    assert "questions.jsonl: line 1: the file has no rows" in plan.complete.message


def test_a_check_that_may_pass_later_is_repeated_after_a_while() -> None:
    report = a_check_report(ok=False, message="the volume is full")
    pod = a_batch_pod(None, exit_code=1, ended=NOW, report=report)
    failed = plan_and_carry_out(a_situation(), pods=(pod,))
    soon, then = plan_batch(failed), plan_batch(later(failed, 30))
    assert (soon.running.reason, jobs_to_delete(soon), soon.create) == (
        "ValidationJobFailed",
        [],
        None,
    )
    assert "the volume is full" in soon.running.message
    assert jobs_to_delete(then) == ["night-check"]
    again = plan_batch(carry_out(later(failed, 30), then))
    assert again.create is not None
    assert again.create.name == "night-check"


@pytest.mark.parametrize(
    "pod",
    [
        a_batch_pod(None, terminating=True),
        a_batch_pod(None, disrupted=True),
        a_batch_pod(None, node="gone-0"),
    ],
)
def test_a_check_whose_pod_is_lost_is_repeated(pod: Any) -> None:
    assert jobs_to_delete(plan_batch(plan_and_carry_out(a_situation(), pods=(pod,)))) == [
        "night-check"
    ]


def test_a_check_that_cannot_start_says_so() -> None:
    pod = a_batch_pod(
        None, node=None, waiting_reason="ErrImagePull", container_message="no such image"
    )
    plan = plan_batch(plan_and_carry_out(a_situation(), pods=(pod,)))
    assert plan.running.reason == "ValidationJobFailed"
    assert "no such image" in plan.running.message
    assert jobs_to_delete(plan) == []


def test_a_pod_of_an_earlier_check_is_ignored() -> None:
    old = a_batch_pod(None, owner="uid-former", exit_code=3, ended=NOW)
    assert plan_batch(plan_and_carry_out(a_situation(), pods=(old,))).state == "validating"


# A notice comes in two ways; either may be seen first


def on_a_lost_node() -> Situation:
    return on_attempt(health={})


@pytest.mark.parametrize(
    ("situation", "says"),
    [
        (on_attempt(pod={"terminating": True}), "is being deleted"),
        (on_attempt(pod={"disrupted": True}), "DisruptionTarget"),
        (on_a_lost_node(), "node spot-0 no longer exists"),
        (on_attempt(health={SPOT_NODE: NodeHealth(ready=False)}), "node spot-0 is not ready"),
        *(
            (on_attempt(health={SPOT_NODE: NodeHealth(taints=frozenset({taint}))}), taint)
            for taint in sorted(DISRUPTION_TAINTS)
        ),
        (on_attempt(jobs=(a_job(1, failed=True),), pods=()), "its pod no longer exists"),
        (
            on_attempt(pod={"exit_code": 0, "report": a_report(state="stopped")}),
            "exit code 0: stopped",
        ),
        (on_attempt(pod={"exit_code": 1, "terminating": True}), "is being deleted"),
    ],
)
def test_a_notice_starts_the_next_attempt_at_once_and_ends_the_old_one(
    situation: Situation, says: str
) -> None:
    plan = plan_batch(situation)
    assert plan.create is not None
    assert plan.attempt is not None
    assert (plan.create.name, plan.attempt.number, jobs_to_delete(plan)) == (
        "night-a2",
        2,
        ["night-a1"],
    )
    assert says in plan.attempt.previous_outcome
    assert says in plan.running.message
    assert plan.attempt.consecutive_failures == 0


@pytest.mark.parametrize("taint", ["node.kubernetes.io/unschedulable", "nvidia.com/gpu"])
def test_a_cordon_alone_is_no_notice(taint: str) -> None:
    tainted = NodeHealth(taints=frozenset({taint}))
    assert plan_batch(on_attempt(health={SPOT_NODE: tainted})).create is None


def test_an_old_runner_that_goes_on_writing_holds_nothing_up() -> None:
    health = {SPOT_NODE: NodeHealth(ready=False), "a100-0": NodeHealth()}
    silent = on_attempt(health=health)
    moved = carry_out(silent, plan_batch(silent))
    # Its pod stays, since no kubelet confirms its end; its Job is gone.
    old = a_batch_pod(1, terminating=True)
    plan = plan_batch(later(moved, 30, pods=(old, a_batch_pod(2, node="a100-0"))))
    assert plan.attempt is not None
    assert (plan.attempt.number, plan.create, jobs_to_delete(plan)) == (2, None, [])


# Failures of an attempt's own


def failed_again(situation: Situation, number: int) -> Situation:
    """The attempt's runner ends with code 1 before any new row."""
    pod = a_batch_pod(number, exit_code=1, ended=situation.at, report=a_report(number))
    return replace(situation, pods=(pod,))


def test_failures_wait_twice_as_long_each_time_and_end_the_batch_after_two_hours() -> None:
    situation, pauses = plan_and_carry_out(a_checked_situation()), []
    for number in range(1, 100):
        situation = failed_again(situation, number)
        plan = plan_batch(situation)
        if plan.attempt is None or plan.attempt.retry_at is None or plan.state == "failed":
            break
        assert state_and_reasons(plan) == ("in_progress", "BackingOff", "InProgress")
        assert jobs_to_delete(plan) == [], "its log helps until the next one starts"
        pauses.append((plan.attempt.retry_at - situation.at).total_seconds())
        situation = carry_out(situation, plan, at=plan.attempt.retry_at)
        situation = plan_and_carry_out(situation)
    assert pauses == [10, 20, 40, 80, 160, *[300] * 23]
    assert state_and_reasons(plan_batch(situation)) == (
        "failed",
        "Finished",
        "BackoffLimitExceeded",
    )
    assert "29 attempts in a row" in plan_batch(situation).complete.message
    assert situation.at >= at(2 * HOUR)


def test_an_image_that_cannot_be_pulled_for_an_hour_ends_nothing() -> None:
    failed = {"number": 30, "consecutiveFailures": 29, "failingSince": at(-HOUR)}
    plan = plan_batch(on_attempt(number=30, attempt=failed, pod={"waiting_reason": "ErrImagePull"}))
    assert state_and_reasons(plan) == ("in_progress", "BackingOff", "InProgress")
    assert plan.attempt is not None
    assert plan.attempt.retry_at == at(300)


def test_few_attempts_end_nothing_however_long_they_took() -> None:
    failed = {"consecutiveFailures": 4, "failingSince": at(-9 * HOUR)}
    assert plan_batch(on_attempt(attempt=failed, pod={"exit_code": 1})).state == "in_progress"
    failed = {"consecutiveFailures": 5, "failingSince": at(-9 * HOUR)}
    assert plan_batch(on_attempt(attempt=failed, pod={"exit_code": 1})).state == "failed"


def test_attempts_that_are_lost_one_after_the_other_without_a_row_pause_too() -> None:
    pauses = []
    for attempt_fields in range(7):
        plan = plan_batch(
            on_attempt(
                attempt={"consecutiveInterruptions": attempt_fields}, pod={"terminating": True}
            )
        )
        assert plan.attempt is not None
        at_once = plan.create is not None
        pauses.append(0.0 if at_once else ((plan.attempt.retry_at or NOW) - NOW).total_seconds())
        assert plan.state == "in_progress"
    assert pauses == [0, 5, 10, 20, 40, 60, 60]
    fruitful = {"progress": {"rows": ROWS, "completed": 5, "at": NOW}}
    plan = plan_batch(
        on_attempt(
            attempt={"consecutiveInterruptions": 6}, pod={"terminating": True}, status=fruitful
        )
    )
    assert plan.create is not None
    assert plan.attempt is not None
    assert plan.attempt.consecutive_interruptions == 0


def test_a_failure_after_new_rows_restarts_the_count() -> None:
    report = a_report(state="failed", completed=10, outputTokens=100)
    pod = {"exit_code": 1, "report": report}
    plan = plan_batch(on_attempt(attempt={"consecutiveFailures": 5}, pod=pod))
    assert plan.attempt is not None
    assert (plan.attempt.consecutive_failures, plan.attempt.retry_at) == (0, at(5))
    assert plan.progress is not None
    assert plan.progress.completed == 10


@pytest.mark.parametrize(
    ("pod", "says"),
    [
        (
            {"exit_code": 137, "report": "not json", "container_message": "x"},
            "exit code 137: not json",
        ),
        ({"exit_code": 1, "report": "", "container_message": "Killed"}, "exit code 1: Killed"),
        ({"exit_code": 4, "report": a_report(state="fenced")}, "exit code 4: fenced"),
        ({"exit_code": 0, "report": ""}, "exit code 0"),
        (
            {"ended": NOW, "container_message": "UnexpectedAdmissionError"},
            "UnexpectedAdmissionError",
        ),
        (
            {"waiting_reason": "CrashLoopBackOff", "container_message": "CUDA error"},
            "CrashLoopBackOff: CUDA",
        ),
        (
            {"waiting_reason": "ImagePullBackOff", "container_message": "denied"},
            "ImagePullBackOff: denied",
        ),
    ],
)
def test_an_attempt_that_cannot_go_on_ends_with_its_termination_message(
    pod: dict[str, Any], says: str
) -> None:
    plan = plan_batch(on_attempt(pod=pod))
    assert (plan.running.reason, plan.create) == ("BackingOff", None)
    assert says in plan.running.message
    assert plan.attempt is not None
    assert plan.attempt.consecutive_failures == 1


def test_an_engine_that_crashes_in_circles_holds_no_gpu_meanwhile() -> None:
    plan = plan_batch(on_attempt(pod={"waiting_reason": "CrashLoopBackOff"}))
    assert jobs_to_delete(plan) == ["night-a1"]


def test_an_engine_that_does_not_come_up_is_not_waited_for_for_ever() -> None:
    slow = {"runner_since": None, "container_message": "MountVolume failed"}
    fields: dict[str, Any] = {"pod": slow, "attempt": {"runningSince": None}}
    assert plan_batch(on_attempt(**fields, at=at(2699))).running.reason == "Starting"
    plan = plan_batch(on_attempt(**fields, at=at(2700)))
    assert (plan.running.reason, jobs_to_delete(plan)) == ("BackingOff", ["night-a1"])
    assert "45 min" in plan.running.message
    assert "MountVolume failed" in plan.running.message


def test_a_runner_that_cannot_be_asked_is_at_work_all_the_same() -> None:
    up = {"runner_since": at(90)}
    plan = plan_batch(on_attempt(pod=up, attempt={"runningSince": None}, at=at(4000)))
    assert (plan.running.reason, plan.create) == ("OnSpot", None)


def test_what_a_newer_operator_wrote_does_not_hide_the_fence() -> None:
    known = on_attempt().batch.status.model_dump(by_alias=True, mode="json")
    known["attempt"]["later"] = known["later"] = 1
    assert BatchInferenceStatus.model_validate(known) == on_attempt().batch.status


def test_a_job_that_vanished_is_never_made_again_under_its_number() -> None:
    situation = on_attempt(jobs=(), pods=())
    plan = plan_batch(situation)
    assert (plan.running.reason, plan.create) == ("BackingOff", None)
    then = plan_batch(carry_out(later(situation, 0), plan, at=at(10)))
    assert then.create is not None
    assert then.create.name == "night-a2"


@pytest.mark.parametrize("failures", [5, 10])
def test_jobs_that_cannot_be_made_slow_down_and_never_end_the_batch(failures: int) -> None:
    before = {"consecutiveFailures": failures, "failingSince": at(-3 * HOUR)}
    plan = plan_batch(on_attempt(jobs=(), pods=(), attempt=before))
    assert plan.attempt is not None
    assert (plan.state, plan.attempt.consecutive_failures) == ("in_progress", failures + 1)


def test_a_claim_that_is_being_deleted_is_named_and_no_dearer_node_is_looked_for() -> None:
    claim = VolumeClaim(access_modes=("ReadWriteMany",), terminating=True)
    refused = "0/2 nodes are available: persistentvolumeclaim is being deleted"
    pod = {"node": None, "address": None, "unschedulable": refused}
    short = a_batch(a_batch_spec(deadline="1h"))
    pending = on_attempt(batch=short, claim=claim, pod=pod, attempt={"runningSince": None})
    for moment in (pending, later(pending, 600), later(pending, 1800)):
        plan = plan_batch(moment)
        assert (plan.accepted.reason, plan.running.reason) == ("ClaimTerminating", "NotAccepted")
        assert (plan.create, plan.choice) == (None, None)


def test_a_job_that_was_refused_says_what_the_api_server_said() -> None:
    refusal = 'jobs.batch "night-a1" is forbidden: exceeded quota: small'
    plan = plan_batch(on_attempt(jobs=(), pods=(), job_refusal=refusal))
    assert (plan.running.reason, plan.create) == ("BackingOff", None)
    assert plan.attempt is not None
    assert plan.attempt.termination_message == f"the API server refused its Job: {refusal}"
    assert refusal in plan.running.message


def test_a_pause_after_interruptions_does_not_delay_the_way_to_on_demand_hardware() -> None:
    short = a_batch(a_batch_spec(deadline="1h"))
    half = {"progress": {"rows": ROWS, "completed": 500, "speedRatio": "0.7", "at": NOW}}
    attempt_fields: dict[str, Any] = {
        "attempt": {"consecutiveInterruptions": 5, "doneBefore": 500},
        "pod": {"terminating": True},
        "batch": short,
        "status": half,
    }
    early, late = (
        plan_batch(on_attempt(**attempt_fields, at=at(600))),
        plan_batch(on_attempt(**attempt_fields, at=at(3300))),
    )
    assert (early.create, early.running.reason) == (None, "BackingOff")
    assert late.create is not None
    assert late.attempt is not None
    assert late.attempt.tier == "OnDemand"


def test_a_number_that_anything_ever_had_is_not_used_again() -> None:
    attempt_fields = a_checked_situation(jobs=(a_job(7),), pods=(a_batch_pod(9),))
    plan = plan_batch(attempt_fields)
    assert plan.create is not None
    assert (plan.create.attempt, jobs_to_delete(plan)) == (10, ["night-a7"])


# The end


def done_by(number: int, **fields: Any) -> Any:
    report = a_report(number, "completed", completed=990, failed=10, outputTokens=5)
    return a_batch_pod(number, exit_code=0, report=report, **fields)


def test_a_completed_run_completes_the_batch_for_good() -> None:
    situation = on_attempt(pods=(done_by(1),))
    plan = plan_batch(situation)
    assert state_and_reasons(plan) == ("completed", "Finished", "Completed")
    assert (
        "990 of 1000 rows answered in jobs/answers.jsonl on PersistentVolumeClaim/results"
        in plan.complete.message
    )
    assert "jobs/answers.errors.jsonl" in plan.complete.message
    then = carry_out(situation, plan)
    for moment in (then, later(then, 30 * HOUR), replace(then, pods=(), jobs=())):
        again = plan_batch(moment)
        assert state_and_reasons(again) == state_and_reasons(plan)
        assert again.complete == plan.complete
        assert again.create is None


def test_what_an_earlier_attempt_published_in_its_last_moment_counts() -> None:
    situation = on_attempt(number=2, pods=(done_by(1, terminating=True), a_batch_pod(2)))
    plan = plan_batch(situation)
    assert (plan.state, jobs_to_delete(plan)) == ("completed", ["night-a2"])


def test_a_report_that_names_another_attempt_completes_nothing() -> None:
    pod = a_batch_pod(1, exit_code=0, report=a_report(2, "completed", completed=ROWS))
    assert plan_batch(on_attempt(pods=(pod,))).state == "in_progress"


def test_a_file_in_the_way_ends_the_batch_and_says_where_its_rows_are() -> None:
    report = a_report(completed=400, outputTokens=1, message="/claim/x exists")
    plan = plan_batch(on_attempt(pod={"exit_code": 3, "report": report}))
    assert state_and_reasons(plan) == ("failed", "Finished", "UserActionRequired")
    for part in (
        "/claim/x exists",
        "400 of 1000",
        ".tessera/uid-night",
    ):
        assert part in plan.complete.message


def test_a_passed_deadline_ends_the_batch_and_keeps_its_rows() -> None:
    situation = on_attempt(
        at=at(24 * HOUR), status={"progress": {"rows": ROWS, "completed": 812, "at": NOW}}
    )
    plan = plan_batch(situation)
    assert state_and_reasons(plan) == ("expired", "Finished", "DeadlineExceeded")
    assert jobs_to_delete(plan) == ["night-a1"]
    for part in (
        "spec.deadline",
        "812 of 1000 rows",
        ".tessera/uid-night",
    ):
        assert part in plan.complete.message


def test_a_batch_that_is_publishing_at_its_deadline_may_do_so_for_a_minute() -> None:
    asking = a_progress_sample(ROWS, 24 * HOUR, state="publishing")
    soon = plan_batch(on_attempt(at=at(24 * HOUR), progress_sample=asking))
    assert state_and_reasons(soon)[0] == "finalizing"
    assert plan_batch(on_attempt(at=at(24 * HOUR + 60), progress_sample=asking)).state == "expired"


def test_a_batch_that_only_has_to_publish_still_looks_for_hardware() -> None:
    stuck = {"node": None, "unschedulable": "0/2"}
    done = {"progress": {"rows": ROWS, "completed": ROWS, "at": NOW}}
    fields: dict[str, Any] = {"pod": stuck, "attempt": {"runningSince": None}, "status": done}
    assert plan_batch(on_attempt(**fields, at=at(HOUR))).state == "in_progress"
    plan = plan_batch(on_attempt(**fields, at=at(24 * HOUR - 200)))
    assert plan.attempt is not None
    assert plan.attempt.tier == "OnDemand"


def test_an_input_that_nobody_could_check_expires_too() -> None:
    plan = plan_batch(plan_and_carry_out(a_situation(), at=at(24 * HOUR)))
    assert (plan.state, jobs_to_delete(plan)) == ("expired", ["night-check"])


# Suspended, unpaid, resumed


def test_a_suspended_batch_runs_nothing_and_goes_on_later() -> None:
    suspended = a_batch(a_batch_spec(suspend=True))
    situation = on_attempt(batch=suspended)
    plan = plan_batch(situation)
    assert state_and_reasons(plan) == ("in_progress", "Suspended", "InProgress")
    assert (jobs_to_delete(plan), plan.create) == (["night-a1"], None)
    rested = carry_out(situation, plan)
    assert plan_batch(rested).create is None
    resumed = replace(rested, batch=replace(rested.batch, spec=a_batch_spec()))
    again = plan_batch(resumed)
    assert again.create is not None
    assert again.create.name == "night-a2"


def test_a_suspended_check_ends_too() -> None:
    situation = plan_and_carry_out(a_situation())
    suspended = replace(situation.batch, spec=a_batch_spec(suspend=True))
    assert jobs_to_delete(plan_batch(replace(situation, batch=suspended))) == ["night-check"]


def test_without_money_the_attempt_is_let_go_and_none_starts() -> None:
    shortage = "budget team-a, spec.limits[0].amount: of 5.00 for the day 5.00 are spent"
    for situation in (on_attempt(), a_checked_situation(), on_attempt(pod={"terminating": True})):
        plan = plan_batch(situation, shortage)
        assert state_and_reasons(plan) == ("in_progress", "BudgetExhausted", "InProgress")
        assert (plan.create, plan.running.message, plan.choice) == (None, shortage, None)
        rested = carry_out(situation, plan)
        assert plan_batch(rested, shortage) == replace(plan, batch=rested.batch, delete=())
        assert plan_batch(rested).create is not None


def written_after(situation: Situation, seconds: float, shortage: str | None = None) -> bool:
    """Is there anything to write when nothing but time passed?"""
    then = later(situation, seconds)
    return batch_status(plan_batch(then, shortage), then.at) != situation.batch.status


def test_a_cycle_in_which_nothing_happens_writes_nothing() -> None:
    day, second = "of 5.00 for the day 5.00 are spent", "of 5.00 for the day 5.01 are spent"
    broke = carry_out(on_attempt(), plan_batch(on_attempt(), day))
    assert broke.batch.status.message == day
    assert not written_after(broke, 600, second)
    assert written_after(broke, 600)
    short = a_batch(a_batch_spec(deadline="1h"))
    none: dict[str, Any] = {"pools": POOLS[1:], "nodes": NODES[1:]}
    stuck = {"node": None, "bound": None, "runner_since": None, "unschedulable": "0/2"}
    idle: dict[str, Any] = {"pod": stuck, "attempt": {"runningSince": None}}
    for situation in (
        on_attempt(),
        on_attempt("non-spot", at=at(60)),
        on_attempt(batch=a_batch(a_batch_spec(spot={"policy": "Only"})), **idle, at=at(70)),
        on_attempt(batch=short, at=at(3200), **none),
        on_attempt(pod={"runner_since": None}, attempt={"runningSince": None}),
    ):
        assert not written_after(plan_and_carry_out(situation), 120), plan_batch(situation).running


def test_a_batch_that_waits_for_its_budget_has_the_figures_of_now() -> None:
    """Each is written again once it moved by more than a tenth."""
    text = "TenantBudget/team-a: day limit 20.00 USD, spent {} USD, committed {} USD"
    first = text.format("0.0617", "63.05")
    broke = carry_out(on_attempt(), plan_batch(on_attempt(), first))
    assert not written_after(broke, 60, text.format("0.0670", "62.90"))
    for second in (text.format("0.3641", "62.75"), text.format("0.0617", "50.00")):
        now = later(broke, 360)
        plan = plan_batch(now, second)
        assert batch_status(plan, now.at).message == second
        assert written_after(broke, 360, second)
    # Another limit, or another service that has most.
    assert written_after(broke, 360, f"{first} (the largest part for team-a/chat)")


def test_a_message_changes_with_progress_and_with_the_spec() -> None:
    situation = plan_and_carry_out(on_attempt())
    assert written_after(replace(situation, progress_sample=a_progress_sample(300, 40)), 40)
    edited = replace(situation.batch, generation=2)
    then = carry_out(later(situation, HOUR), plan_batch(later(situation, HOUR, batch=edited)))
    assert then.batch.status.message != situation.batch.status.message


def test_a_claim_on_the_budget_is_for_one_replica_of_the_chosen_hardware() -> None:
    new_claim, running_claim = (
        propose_batch(a_checked_situation()).claim,
        propose_batch(on_attempt()).claim,
    )
    assert new_claim is not None
    assert running_claim is not None
    assert (
        new_claim.min_replicas,
        new_claim.desired,
        new_claim.existing_pods,
        new_claim.continuing_extra,
    ) == (0, 1, 0, 0)
    assert (
        running_claim.min_replicas,
        running_claim.desired,
        running_claim.existing_pods,
        running_claim.continuing_extra,
    ) == (
        0,
        1,
        1,
        1,
    )
    hourly = money(POOLS[1].spec.prices[0].per_gpu_hour, "USD") if POOLS[1].spec else None
    assert hourly is not None
    assert new_claim.tariff.hourly(NOW.date()).nanos < hourly.nanos


def test_what_costs_nothing_claims_nothing() -> None:
    waiting = a_checked_situation(a_batch(a_batch_spec(suspend=True)))
    for situation in (a_situation(), waiting):
        plan = propose_batch(situation)
        assert plan.claim is None
        assert apply_funding(plan, "no money") == plan


# Where it runs


def test_the_deadline_moves_a_batch_off_spot_in_time() -> None:
    short = a_batch(a_batch_spec(deadline="1h"))
    half = {"progress": {"rows": ROWS, "completed": 500, "speedRatio": "0.7", "at": NOW}}
    fine = plan_batch(on_attempt(batch=short, at=at(3200), status=half))
    assert (fine.create, fine.running.reason) == (None, "OnSpot")
    plan = plan_batch(on_attempt(batch=short, at=at(3250), status=half))
    assert plan.create is not None
    assert plan.create.choice is not None
    assert (plan.create.choice.offer.tier, jobs_to_delete(plan)) == ("OnDemand", ["night-a1"])
    assert "spec.deadline" in plan.running.message
    assert plan.attempt is not None
    assert plan.attempt.previous_outcome == "attempt 1: replaced: DeadlineNear"


def test_spot_that_does_not_come_within_a_minute_is_waited_for_above_the_line_only() -> None:
    stuck = {"node": None, "unschedulable": "0/2 nodes are available"}
    attempt = {"runningSince": None}
    ahead = {"progress": {"rows": ROWS, "completed": 500, "at": NOW}}
    soon = plan_batch(on_attempt(pod=stuck, attempt=attempt, at=at(60)))
    late = plan_batch(on_attempt(pod=stuck, attempt=attempt, at=at(61)))
    above = plan_batch(on_attempt(pod=stuck, attempt=attempt, at=at(61), status=ahead))
    assert (soon.create, soon.running.reason) == (None, "WaitingForSpot")
    assert late.attempt is not None
    assert (late.attempt.tier, late.attempt.number) == ("OnDemand", 2)
    assert (above.create, above.running.reason) == (None, "WaitingForSpot")
    assert "0/2 nodes are available" in above.running.message


def test_a_batch_without_spot_never_speaks_of_the_way_back() -> None:
    never = a_batch(a_batch_spec(spot={"policy": "Never"}))
    unseen = plan_batch(on_attempt("non-spot", batch=never, views=()))
    assert (unseen.create, unseen.running.reason) == (None, "SpotDisabled")
    publishing = a_progress_sample(ROWS, 10, state="publishing")
    assert plan_batch(
        on_attempt("non-spot", batch=never, progress_sample=publishing)
    ).running.reason == ("SpotDisabled")


def test_a_batch_returns_to_spot_when_it_is_clearly_ahead() -> None:
    ahead = {"progress": {"rows": ROWS, "completed": 500, "at": NOW}}
    plan = plan_batch(on_attempt("non-spot", at=at(HOUR), status=ahead))
    assert plan.attempt is not None
    assert (plan.attempt.tier, plan.attempt.number) == ("Spot", 2)
    full = {("spot", "nvidia.com/mig-1g.10gb"): 7}
    stays = plan_batch(on_attempt("non-spot", at=at(HOUR), status=ahead, used_devices=full))
    assert (stays.create, stays.running.reason) == (None, "NotYetAhead")


def test_on_demand_hardware_that_is_taken_leaves_a_batch_where_it_works() -> None:
    short = a_batch(a_batch_spec(deadline="1h"))
    full = {("a100", "nvidia.com/mig-1g.10gb"): 7}
    plan = plan_batch(
        on_attempt(
            batch=short,
            at=at(3300),
            progress_sample=a_progress_sample(500, 3300),
            used_devices=full,
        )
    )
    assert (plan.create, jobs_to_delete(plan)) == (None, [])


def test_on_demand_hardware_that_does_not_come_gives_way_to_spot_for_ten_minutes() -> None:
    stuck = {"node": None, "unschedulable": "0/2 nodes are available"}
    situation = on_attempt("non-spot", pod=stuck, attempt={"runningSince": None}, at=at(61))
    plan = plan_batch(situation)
    assert plan.attempt is not None
    assert (plan.attempt.tier, plan.attempt.unavailable_pools) == (
        "Spot",
        (UnavailablePool(pool="a100", at=at(61)),),
    )
    on_spot = carry_out(situation, plan, pods=(a_batch_pod(2, node=None),))
    for seconds, tier in ((70, "Spot"), (599, "Spot"), (600, "OnDemand")):
        then = plan_batch(later(on_spot, seconds))
        assert then.attempt is not None
        assert then.attempt.tier == tier


def test_a_status_names_the_latest_full_pools_only() -> None:
    stuck = {"node": None, "unschedulable": "0/2 nodes are available"}
    earlier = [{"pool": f"full-{number}", "at": at(number)} for number in range(MAX_FULL_POOLS)]
    attempt = {"runningSince": None, "unavailablePools": earlier}
    plan = plan_batch(on_attempt("non-spot", pod=stuck, attempt=attempt, at=at(61)))
    assert plan.attempt is not None
    names = {entry.pool for entry in plan.attempt.unavailable_pools}
    assert len(names) == MAX_FULL_POOLS
    assert "a100" in names
    assert "full-0" not in names


def twin_pools(policy: str) -> dict[str, Any]:
    """Two pools of the only tier that the policy allows."""
    tier = "Spot" if policy == "Only" else "OnDemand"
    return {
        "batch": a_batch(a_batch_spec(spot={"policy": policy})),
        "pools": (a_pool("one", "0.80", tier=tier), a_pool("two", "0.90", tier=tier)),
        "nodes": (a_node("one", {"1g.10gb": 7}), a_node("two", {"1g.10gb": 7})),
    }


def unbound(number: int, seconds: float) -> dict[str, Any]:
    """The pod of an attempt finds no node, so many seconds from now."""
    pod = a_batch_pod(number, node=None, created=at(seconds - 61), unschedulable="0/2")
    return {"at": at(seconds), "pods": (pod,)}


def pool_of(batch_plan: BatchPlan) -> str:
    assert batch_plan.attempt is not None
    return batch_plan.attempt.pool


@pytest.mark.parametrize("policy", ["Only", "Never"])
def test_a_full_pool_gives_way_to_the_other_for_ten_minutes(policy: str) -> None:
    first = plan_and_carry_out(a_checked_situation(**twin_pools(policy)))
    assert pool_of(plan_batch(first)) == "one"
    waiting = replace(first, **unbound(1, 60))
    assert plan_batch(waiting).create is None
    second = replace(first, **unbound(1, 61))
    plan = plan_batch(second)
    assert (pool_of(plan), jobs_to_delete(plan)) == ("two", ["night-a1"])
    moved = carry_out(second, plan)
    both = plan_batch(replace(moved, **unbound(2, 122)))
    assert (pool_of(both), both.create) == ("two", None), "none is left, so it waits there"
    moved = carry_out(replace(moved, **unbound(2, 122)), both)
    assert plan_batch(replace(moved, **unbound(2, 660))).create is None
    assert pool_of(plan_batch(replace(moved, **unbound(2, 661)))) == "one"


def test_a_batch_waits_for_a_node_of_a_template_as_long_as_one_takes_to_start() -> None:
    twins = twin_pools("Only")
    template = {"product": A100, "gpus": 1, "migLayout": {"1g.10gb": 7}, "maxNodes": 2}
    twins["pools"] = (
        a_pool("one", "0.80", tier="Spot", nodeTemplate=template | {"expectedStart": "90s"}),
        twins["pools"][1],
    )
    first = plan_and_carry_out(a_checked_situation(**twins))
    assert pool_of(plan_batch(replace(first, **unbound(1, 150)))) == "one"
    assert pool_of(plan_batch(replace(first, **unbound(1, 151)))) == "two"


def test_a_full_spot_pool_gives_way_to_the_other_before_on_demand_hardware() -> None:
    twins = twin_pools("Only") | {"batch": a_batch()}
    twins["pools"] = (*twins["pools"], POOLS[0])
    twins["nodes"] = (*twins["nodes"], NODES[0])
    first = plan_and_carry_out(a_checked_situation(**twins))
    second = plan_batch(replace(first, **unbound(1, 61)))
    moved = carry_out(replace(first, **unbound(1, 61)), second)
    third = plan_batch(replace(moved, **unbound(2, 122)))
    assert (pool_of(second), pool_of(third)) == ("two", "a100")


def test_an_attempt_that_runs_stays_although_its_pool_was_full_before() -> None:
    first = plan_and_carry_out(a_checked_situation(**twin_pools("Never")))
    full = {"unavailablePools": [{"pool": "one", "at": at(0)}]}
    known = first.batch.status.model_dump(by_alias=True, mode="json")
    known["attempt"] |= full
    status = BatchInferenceStatus.model_validate(known)
    first = replace(first, batch=replace(first.batch, status=status))
    plan = plan_batch(later(first, 100, pods=(a_batch_pod(1, node="one-0"),)))
    assert (pool_of(plan), plan.create) == ("one", None)


def test_an_unbound_attempt_does_not_outlive_its_pool() -> None:
    first = plan_and_carry_out(a_checked_situation(**twin_pools("Never")))
    rest = a_checked_situation(**twin_pools("Never") | {"pools": twin_pools("Never")["pools"][1:]})
    bound = replace(first, views=rest.views, pods=(a_batch_pod(1, node="one-0"),))
    assert plan_batch(bound).create is None, "it runs, and its hardware is not to be judged now"
    plan = plan_batch(replace(first, views=rest.views, **unbound(1, 5)))
    assert pool_of(plan) == "two"
    none = plan_batch(replace(first, views=(), **unbound(1, 5)))
    assert (none.running.reason, jobs_to_delete(none)) == ("NoPool", ["night-a1"])


@pytest.mark.parametrize(("policy", "tier"), [("Only", "Spot"), ("Never", "OnDemand")])
def test_a_changed_policy_moves_the_batch(policy: str, tier: str) -> None:
    batch = a_batch(a_batch_spec(spot={"policy": policy}))
    capacity_class = "non-spot" if policy == "Only" else "spot"
    plan = plan_batch(on_attempt(capacity_class, batch=batch))
    assert plan.attempt is not None
    assert (plan.attempt.number, plan.attempt.tier) == (2, tier)


def test_a_pool_that_is_not_allowed_any_more_is_left() -> None:
    batch = a_batch(a_batch_spec(placement={"pools": ["a100"]}, spot={"policy": "Preferred"}))
    plan = plan_batch(on_attempt(batch=batch, at=at(HOUR)))
    assert plan.attempt is not None
    assert (plan.attempt.number, plan.attempt.pool) == (2, "a100")


def test_a_pool_that_cannot_be_seen_for_a_moment_is_no_reason_to_leave_it() -> None:
    plan = plan_batch(on_attempt(views=()))
    assert (plan.create, jobs_to_delete(plan), plan.running.reason) == (None, [], "OnSpot")


def test_hardware_is_chosen_by_the_price_of_a_token() -> None:
    pools = (a_pool("slow", "1.00", tier="Spot"), a_pool("fast", "1.50", tier="Spot"))
    nodes = (a_node("slow", {"1g.10gb": 7}), a_node("fast", whole=1, product=H100))
    plan = plan_batch(a_checked_situation(pools=pools, nodes=nodes))
    assert plan.choice is not None
    assert plan.choice.offer.pool == "fast"


def test_a_short_deadline_takes_the_hardware_that_makes_it() -> None:
    pools = (a_pool("cheap", "0.10", tier="OnDemand"), a_pool("fast", "9.00", tier="OnDemand"))
    nodes = (a_node("cheap", {"1g.10gb": 7}), a_node("fast", whole=1, product=H100))
    fields: dict[str, Any] = {"pools": pools, "nodes": nodes}
    checked = {"check": {"rows": 50_000, "url": "/v1/completions", "inputTokens": 1}}
    rows = {**checked, "progress": {"rows": 50_000, "at": NOW}}
    for deadline, pool in (("24h", "cheap"), ("1h", "fast")):
        batch = a_batch(a_batch_spec(deadline=deadline, spot={"policy": "Never"}))
        plan = plan_batch(a_checked_situation(batch, status=rows, **fields))
        assert plan.choice is not None
        assert plan.choice.offer.pool == pool


def test_only_pools_whose_nodes_a_cloud_marks_ask_for_the_mark() -> None:
    plain = plan_batch(a_checked_situation())
    marked = (
        *NODES[:1],
        a_node("spot", {"1g.10gb": 7}, labels={"karpenter.sh/capacity-type": "spot"}),
    )
    cloud = plan_batch(a_checked_situation(nodes=marked))
    assert plain.create is not None
    assert cloud.create is not None
    assert (plain.create.spot_affinity, cloud.create.spot_affinity) == (False, True)


def test_a_service_lends_its_model_and_nothing_else() -> None:
    service = a_spec(SMALL, context={"maxModelLen": 4096}, model={"servedName": "small"})
    batch = a_batch(a_batch_spec(model=None, service="chat"))
    plan = plan_batch(a_checked_situation(batch, services={"chat": service}))
    assert plan.create is not None
    assert plan.create.choice is not None
    assert (plan.create.source.model, plan.create.choice.fit.max_model_len) == ("small", 4096)
    assert plan.create.choice.fit.limits.max_num_seqs > 44, "limits follow from throughput"


def test_all_rows_are_answered_with_what_the_service_had_at_the_check() -> None:
    was = a_spec(SMALL, context={"maxModelLen": 4096}, model={"revision": "a" * 40})
    batch = a_batch(a_batch_spec(model=None, service="chat"))
    checked = plan_batch(a_checked_situation(batch, services={"chat": was}))
    assert checked.check is not None
    assert checked.accepted.message == "the spec is valid"
    rolled = a_spec(MEDIUM, context={"maxModelLen": 8192}, engine={"version": "0.26.0"})
    situation = a_checked_situation(
        batch, services={"chat": rolled}, status={"check": checked.check.model_dump(by_alias=True)}
    )
    plan = plan_batch(situation)
    assert plan.create is not None
    assert plan.create.choice is not None
    spec = plan.create.source.spec
    assert (spec.model.uri, spec.model.revision) == (SMALL, "a" * 40)
    assert plan.create.choice.fit.max_model_len == 4096
    assert plan.check == checked.check
    assert (
        "InferenceService/chat has another spec.model, spec.context, spec.engine since the check: "
        f"all rows are answered by {SMALL} at {'a' * 40}"
    ) in plan.accepted.message


def test_a_service_lends_its_cache_which_changes_no_answer() -> None:
    was = a_spec(model={**STORED, "cache": {"storageClassName": "nfs"}})
    batch = a_batch(a_batch_spec(model=None, service="chat"))
    checked = plan_batch(a_checked_situation(batch, services={"chat": was}))
    assert checked.check is not None
    (files,) = fetched_files(was)
    assert checked.attempt is not None
    assert checked.attempt.claims == (files.claim_name,)
    moved = a_spec(model={**STORED, "cache": {"storageClassName": "efs"}})
    situation = a_checked_situation(
        batch, services={"chat": moved}, status={"check": checked.check.model_dump(by_alias=True)}
    )
    plan = plan_batch(situation)
    assert plan.attempt is not None
    assert plan.attempt.claims == (files.claim_name,), "one batch stays on one claim"
    assert plan.accepted.message == "the spec is valid"


def test_a_batch_asks_for_no_less_than_the_claim_of_its_files_has() -> None:
    volume = VolumeClaim(access_modes=("ReadWriteMany",), gib=40)
    sizes = []
    for volumes in ({}, {MODEL_CLAIM: volume}):
        plan = plan_batch(a_checked_situation(a_batch(a_batch_spec(model=STORED)), volumes=volumes))
        assert plan.create is not None
        (claim,) = plan.create.claims
        assert claim.ref == MODEL_CLAIM
        sizes.append(claim.gib)
    assert sizes == [1, 40]


def test_prompts_that_are_only_read_find_hardware_too() -> None:
    context = {"maxModelLen": 65536, "typicalInputTokens": 60000, "typicalOutputTokens": 1}
    batch = a_batch(a_batch_spec(context=context))
    nodes = (a_node("a100", {"3g.40gb": 2}), a_node("spot", {"3g.40gb": 2}))
    assert plan_batch(a_checked_situation(batch, nodes=nodes)).create is not None


def test_a_download_that_failed_says_why_the_attempt_ended() -> None:
    report = {"phase": "fetch", "ok": False, "message": "the store denied access: let them read"}
    ended = {
        "runner_since": None,
        "ended": NOW,
        "last_exit": ContainerExit(code=3, log_tail=json.dumps(report)),
    }
    plan = plan_batch(on_attempt("non-spot", pod=ended, attempt={"runningSince": None}))
    assert plan.running.reason == "BackingOff"
    assert (
        "exit code 3 of a container beside the runner: the store denied access"
        in plan.running.message
    )


# Progress


def test_the_runner_is_asked_while_it_has_an_address() -> None:
    plan = plan_batch(on_attempt())
    assert plan.progress_target is not None
    assert (
        plan.progress_target.attempt,
        plan.progress_target.pod.name,
        plan.progress_target.address,
    ) == (1, "night-a1-x", "127.10.0.9")
    assert plan_batch(on_attempt(pod={"node": None, "address": None})).progress_target is None
    assert plan_batch(on_attempt(pod={"terminating": True})).progress_target is None


def test_a_pod_of_another_owner_is_neither_asked_nor_believed() -> None:
    """Anybody in the namespace can put the labels of an attempt onto a pod."""
    forged = a_batch_pod(
        1, ref=Ref("team-a", "zzz"), owner="", address="10.0.0.1", created=at(5), exit_code=3
    )
    plan = plan_batch(on_attempt(pods=(a_batch_pod(1), forged)))
    assert plan.progress_target is not None
    assert (plan.progress_target.address, plan.state) == ("127.10.0.9", "in_progress")
    alone = plan_batch(on_attempt(pods=(forged,)))
    assert (alone.progress_target, alone.state) == (None, "in_progress")


def test_progress_is_written_every_half_minute_and_never_goes_back() -> None:
    situation = on_attempt(progress_sample=a_progress_sample(100, 10))
    first = plan_batch(situation)
    assert first.progress is not None
    assert first.progress.done == 100
    situation = carry_out(situation, first)
    for seconds, done, reported in (
        (20, 200, 100),
        (40, 300, 300),
        (80, 50, 300),
        (81, ROWS, ROWS),
    ):
        plan = plan_batch(
            later(situation, seconds, progress_sample=a_progress_sample(done, seconds))
        )
        assert plan.progress is not None
        assert plan.progress.done == reported
        situation = carry_out(situation, plan)


def test_an_answer_of_another_attempt_is_no_progress() -> None:
    plan = plan_batch(on_attempt(number=2, progress_sample=a_progress_sample(500, 10, attempt=1)))
    assert plan.progress is not None
    assert plan.progress.done == 0


def test_the_measured_pace_decides_when_the_rest_takes_all_the_time() -> None:
    batch = a_batch(a_batch_spec(deadline="1h"))
    fast, slow = a_progress_sample(900, 1800), a_progress_sample(90, 1800)
    quick = plan_batch(on_attempt(batch=batch, at=at(1800), progress_sample=fast))
    late = plan_batch(on_attempt(batch=batch, at=at(1800), progress_sample=slow))
    assert (quick.create, quick.running.reason) == (None, "OnSpot")
    assert late.attempt is not None
    assert late.attempt.tier == "OnDemand"
    assert quick.progress is not None
    assert late.progress is not None
    assert quick.progress.speed_ratio is not None
    assert late.progress.speed_ratio is not None
    assert quick.progress.speed_ratio > late.progress.speed_ratio


def test_a_start_is_measured_by_the_first_sight_of_work() -> None:
    begun = on_attempt(attempt={"runningSince": None}, progress_sample=a_progress_sample(5, 47))
    plan = plan_batch(begun)
    assert plan.attempt is not None
    assert plan.progress is not None
    assert (plan.attempt.running_since, plan.progress.startup_seconds) == (at(47), 47)
    loading = on_attempt(
        attempt={"runningSince": None}, progress_sample=a_progress_sample(0, 47, state="replaying")
    )
    replaying = plan_batch(loading).attempt
    assert replaying is not None
    assert replaying.running_since is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"phase": "run"}', '{"attempt": -1}'])
def test_what_a_container_leaves_behind_is_not_trusted(text: str) -> None:
    assert plan_batch(on_attempt(pod={"exit_code": 1, "report": text})).state == "in_progress"
    pod = a_batch_pod(None, exit_code=0, ended=NOW, report=text)
    assert plan_batch(plan_and_carry_out(a_situation(), pods=(pod,))).state == "validating"


# What cannot be decided


def test_a_batch_whose_planning_raised_is_left_as_it_is() -> None:
    situation = on_attempt()
    plan = planner_error_plan(situation, KeyError("x"))
    assert (plan.accepted.reason, plan.create, plan.delete) == ("PlannerError", None, ())
    assert "KeyError" in plan.accepted.message
    assert plan.attempt == situation.batch.status.attempt


def test_what_runs_goes_on_while_the_spec_cannot_be_carried_out() -> None:
    for situation in (on_attempt(claim=None), on_attempt(batch=a_batch(problem="spec.x: no"))):
        plan = plan_batch(situation)
        assert (plan.running.reason, plan.create, plan.delete) == ("NotAccepted", None, ())
        assert plan.attempt is not None
        assert plan.attempt.finished_at is None


def test_a_batch_that_is_not_accepted_loses_its_attempt_like_any_other() -> None:
    plan = plan_batch(on_attempt(claim=None, pod={"terminating": True}))
    assert (jobs_to_delete(plan), plan.create) == (["night-a1"], None)
    assert plan_batch(on_attempt(claim=None, pods=(done_by(1),))).state == "completed"


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("answers.jsonl", "answers.errors.jsonl"),
        ("a.b/answers", "a.b/answers.errors.jsonl"),
        ("x/y.tar.jsonl", "x/y.tar.errors.jsonl"),
    ],
)
def test_errors_go_beside_the_output(output: str, errors: str) -> None:
    assert errors_path(a_batch_spec(output=output)) == errors
    assert errors_path(a_batch_spec(output=output, errors="own.jsonl")) == "own.jsonl"
