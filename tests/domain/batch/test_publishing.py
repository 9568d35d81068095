"""All rows are done and their results are not published yet."""

from typing import Any

import pytest

from tessera.api.batch_reasons import BatchComplete, BatchRunning
from tessera.api.template_version import PodTemplateVersion
from tessera.domain.batch.situation import Situation
from tessera.resources.batch_job import batch_job_manifest
from tessera.resources.runner import RunnerImage
from tests.batch_builders import (
    ROWS,
    a_batch_pod,
    a_report,
    carry_out,
    later,
    on_attempt,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import NOW, at

FOLDER = "cannot publish /claim/failed/left.jsonl: it does not exist; create it"


def _unpublished(number: int = 1, **fields: Any) -> Situation:
    """Describe an attempt that answered all rows and could not publish them."""
    report = a_report(number, completed=ROWS - 1, failed=1, message=FOLDER)
    return on_attempt(number=number, pod={"exit_code": 1, "ended": NOW, "report": report}, **fields)


def test_rows_that_are_paid_are_published_without_a_gpu_and_without_a_budget() -> None:
    situation = plan_and_carry_out(_unpublished())
    status = situation.batch.status
    assert (status.state, status.reason) == ("in_progress", BatchRunning.BACKING_OFF)
    assert FOLDER in status.message
    plan = plan_batch(later(situation, 60), shortage="none is left")
    assert plan.create is not None
    assert (plan.create.attempt, plan.create.choice, plan.choice) == (2, None, None)
    assert plan.running.reason is BatchRunning.PUBLISHING
    assert plan.attempt is not None
    assert (plan.attempt.variant, plan.attempt.pool) == ("", "")
    spec = situation.batch.spec
    assert spec is not None
    job = batch_job_manifest(
        situation.batch, spec, plan.create, RunnerImage("r"), PodTemplateVersion()
    )
    pod = job.body["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    (runner,) = pod["containers"]
    assert not [word for word in runner["args"] if word.startswith("--engine")]
    assert "nodeSelector" not in pod
    assert "nvidia.com" not in str(pod)


def _publishing(situation: Situation, number: int) -> Situation:
    """Start the attempt without a GPU, and its pod."""
    situation = carry_out(later(situation, 600), plan_batch(later(situation, 600)))
    pod = a_batch_pod(number, node=None, created=situation.at)
    return carry_out(situation, plan_batch(situation), pods=(pod,))


def test_the_attempt_without_a_gpu_is_continued_until_it_has_published() -> None:
    situation = _publishing(plan_and_carry_out(_unpublished()), 2)
    status = situation.batch.status
    assert (status.state, status.attempt and status.attempt.number) == ("finalizing", 2)
    plan = plan_batch(later(situation, 30))
    assert (plan.create, plan.delete, plan.running.reason) == ((None, (), BatchRunning.PUBLISHING))
    report = a_report(2, "completed", completed=ROWS - 1, failed=1)
    (pod,) = situation.pods
    pod = a_batch_pod(2, node=None, created=pod.created, exit_code=0, report=report)
    ended = plan_batch(later(situation, 60, pods=(pod,)))
    assert (ended.state, ended.complete.reason) == ("completed", BatchComplete.COMPLETED)


def test_publishing_is_tried_until_the_deadline_however_often_it_failed() -> None:
    failing = {"consecutiveFailures": 40, "failingSince": at(-20_000), "doneBefore": ROWS}
    done = {"rows": ROWS, "completed": ROWS - 1, "failed": 1, "at": NOW}
    plan = plan_batch(_unpublished(7, attempt=failing, status={"progress": done}))
    assert (plan.state, plan.running.reason) == ("in_progress", BatchRunning.BACKING_OFF)


def test_rows_that_the_volume_lost_are_answered_by_an_attempt_with_an_engine() -> None:
    situation = _publishing(plan_and_carry_out(_unpublished()), 2)
    report = a_report(2, "rowsMissing", completed=ROWS - 8, message="lost the answers of 8 rows")
    pod = a_batch_pod(2, node=None, exit_code=1, ended=situation.at, report=report)
    plan = plan_batch(later(situation, 5, pods=(pod,)))
    assert plan.progress is not None
    assert plan.progress.done == ROWS - 8
    assert plan.create is not None
    assert plan.create.attempt == 3
    assert plan.create.choice is not None


@pytest.mark.parametrize("figures", [{}, {"failed": ROWS}, {"completed": -1, "failed": -1}])
def test_a_batch_without_an_answer_is_never_completed(figures: dict[str, int]) -> None:
    report = a_report(1, "completed", **figures)
    plan = plan_batch(on_attempt(pod={"exit_code": 0, "report": report}))
    assert (plan.state, plan.complete.reason) == ("failed", BatchComplete.ALL_ROWS_FAILED)


def test_a_figure_beyond_all_bounds_does_not_begin_a_published_batch_again() -> None:
    report = a_report(1, "completed", completed=ROWS, resentTokens=2**63 + 1800)
    plan = plan_batch(on_attempt(pod={"exit_code": 0, "report": report}))
    assert (plan.state, plan.create) == ("completed", None)
    assert plan.progress is not None
    assert (plan.progress.completed, plan.progress.resent_tokens) == (ROWS, 2**53)
