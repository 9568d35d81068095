"""The input is not the file that was checked, or the work folder is gone."""

from typing import Any

from tessera.domain.status.batch import batch_status
from tests.batch_builders import (
    ROWS,
    a_batch_pod,
    a_progress_sample,
    a_report,
    later,
    looking_again,
    on_attempt,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import NOW

CHANGED = "/claim/in.jsonl changed after its check. Put the checked file back"


def _ended(number: int, state: str = "inputChanged", **fields: Any) -> Any:
    """Build the pod of an attempt that found this."""
    code = {"rowsMissing": 1, "completed": 0}.get(state, 3)
    report = a_report(number, state, **{"completed": 400, "message": CHANGED, **fields})
    return a_batch_pod(number, exit_code=code, ended=NOW, report=report)


def test_a_changed_input_is_compared_without_a_gpu_for_as_long_as_it_takes() -> None:
    situation = plan_and_carry_out(on_attempt(pods=(_ended(1),)))
    status = situation.batch.status
    assert (status.state, status.reason, status.done) == ("in_progress", "InputChanged", "400/1000")
    assert CHANGED in status.message
    for number in range(2, 40):
        situation = looking_again(situation, number)
        assert situation.batch.status.reason == "InputChanged"
        situation = plan_and_carry_out(later(situation, 5, pods=(_ended(number),)))
        assert (situation.batch.status.state, situation.batch.status.reason) == (
            "in_progress",
            "InputChanged",
        )
    assert situation.at.hour >= NOW.hour + 3, "the limit for failures is 2 hours"


def test_once_the_input_is_back_the_batch_goes_on_at_once_and_without_a_failure() -> None:
    situation = looking_again(plan_and_carry_out(on_attempt(pods=(_ended(1),))), 2)
    plan = plan_batch(later(situation, 5, pods=(_ended(2, "rowsMissing"),)))
    assert plan.create is not None
    assert plan.create.choice is not None
    assert plan.attempt is not None
    assert (plan.attempt.number, plan.attempt.consecutive_failures) == (3, 0)
    assert (plan.attempt.input_changed, plan.running.reason) == (False, "Starting")


def test_an_interruption_of_the_comparison_takes_no_gpu() -> None:
    situation = looking_again(plan_and_carry_out(on_attempt(pods=(_ended(1),))), 2)
    plan = plan_batch(later(situation, 5, pods=(a_batch_pod(2, terminating=True),)))
    assert plan.create is not None
    assert (plan.create.attempt, plan.create.choice) == (3, None)
    assert plan.running.reason == "InputChanged"


def test_a_published_batch_says_that_its_input_is_another_file_by_now() -> None:
    pod = _ended(1, "completed", completed=ROWS, inputChanged=True)
    plan = plan_batch(on_attempt(pods=(pod,)))
    assert plan.state == "completed"
    assert "spec.input changed since its check" in plan.complete.message
    pod = _ended(1, "completed", completed=ROWS, inputChanged="maybe")
    assert "changed" not in plan_batch(on_attempt(pods=(pod,))).complete.message


def test_a_running_attempt_says_that_another_file_has_the_name_of_its_input() -> None:
    sample = a_progress_sample(5, 40, inputChanged=True)
    plan = plan_batch(on_attempt(at=sample.at, progress_sample=sample))
    assert (plan.running.reason, plan.create) == ("OnSpot", None)
    assert "spec.input is another file since its check" in plan.running.message


def test_a_deleted_work_folder_ends_the_batch_with_no_row_done() -> None:
    known = {"progress": {"rows": ROWS, "completed": 400, "at": NOW}}
    message = "manifest.json is missing: the work folder was deleted"
    pod = _ended(1, "workMissing", completed=0, message=message)
    situation = on_attempt(pods=(pod,), status=known)
    status = batch_status(plan_batch(situation), NOW)
    assert (status.state, status.reason, status.done) == ("failed", "UserActionRequired", "0/1000")
    assert message in status.message
    assert "retained" not in status.message
