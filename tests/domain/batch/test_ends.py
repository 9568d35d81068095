"""How batches end that are deleted or expire, and what goes on afterwards."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.batch_inference import BatchState
from tessera.domain.observed.snapshot import Ref
from tests.batch_builders import (
    NIGHT,
    a_batch,
    a_batch_spec,
    a_checked_situation,
    a_job,
    a_situation,
    later,
    on_attempt,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import NOW


def test_a_batch_that_a_finalizer_keeps_stops_its_attempt_and_starts_no_other() -> None:
    situation = on_attempt(batch=a_batch(deleting=True))
    plan = plan_batch(situation)
    assert plan.delete == tuple(job.ref for job in situation.jobs)
    assert (plan.running.reason, plan.create) == ("Terminating", None)
    situation = plan_and_carry_out(situation)
    plan = plan_batch(later(situation, 3600))
    assert (plan.create, plan.active) == (None, False)


@pytest.mark.parametrize("fields", [{}, {"problem": "spec: cannot be parsed"}])
def test_a_check_ends_with_the_deletion_of_its_batch(fields: dict[str, Any]) -> None:
    situation = a_situation(a_batch(deleting=True, **fields), jobs=(a_job(None),))
    plan = plan_batch(situation)
    assert (plan.delete, plan.create) == ((a_job(None).ref,), None)


def test_a_batch_whose_last_row_is_published_is_complete_even_while_it_is_deleted() -> None:
    report = '{"phase":"run","attempt":1,"state":"completed","rows":1000,"completed":1000}'
    pod = {"exit_code": 0, "ended": NOW, "report": report}
    plan = plan_batch(on_attempt(batch=a_batch(deleting=True), pod=pod))
    assert (plan.state, plan.complete.reason) == ("completed", "Completed")


def test_an_expired_batch_goes_on_with_its_rows_when_its_deadline_is_raised() -> None:
    situation = on_attempt(batch=a_batch(a_batch_spec(deadline="1h")))
    situation = plan_and_carry_out(later(situation, 3600))
    assert situation.batch.status.state == "expired"
    assert plan_batch(later(situation, 60)).create is None
    raised = replace(situation.batch, generation=2, spec=a_batch_spec(deadline="3h"))
    plan = plan_batch(replace(situation, batch=raised))
    assert (plan.state, plan.complete.reason) == ("in_progress", "InProgress")
    assert plan.create is not None
    assert plan.create.attempt == 2
    assert plan.progress == situation.batch.status.progress


def test_an_expired_batch_goes_on_when_the_time_comes_back_before_its_deadline() -> None:
    situation = on_attempt(batch=a_batch(a_batch_spec(deadline="1h")))
    situation = plan_and_carry_out(later(situation, 3600))
    plan = plan_batch(later(situation, -3000))
    assert (plan.state, plan.create is not None) == ("in_progress", True)


def test_an_expired_batch_stays_so_while_another_writes_its_files() -> None:
    situation = on_attempt(batch=a_batch(a_batch_spec(deadline="1h")))
    situation = plan_and_carry_out(later(situation, 3600))
    raised = replace(situation.batch, spec=a_batch_spec(deadline="3h"))
    conflict = ("jobs/answers.jsonl", Ref(NIGHT.namespace, "morning"))
    plan = plan_batch(replace(situation, batch=raised, conflict=conflict))
    assert (plan.state, plan.create) == ("expired", None)


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_a_later_deadline_changes_nothing_for_a_batch_that_ended_otherwise(
    state: BatchState,
) -> None:
    plan = plan_batch(a_checked_situation(status={"state": state}))
    assert (plan.state, plan.create) == (state, None)
