"""Jobs whose pods the cluster refuses: the reason has the cluster's words."""

from tessera.domain.batch.situation import Situation
from tessera.domain.observed.batches import PodRefusal
from tests.batch_builders import a_job, a_situation, later, on_attempt, plan_batch
from tests.builders import NOW

QUOTA = 'Error creating: pods "night-x" is forbidden: exceeded quota: small, limited: pods=0'


def _refused(situation: Situation, message: str | None = QUOTA) -> Situation:
    refusals = {job.uid: PodRefusal(NOW, message) for job in situation.jobs}
    return later(situation, 20, pod_refusals=refusals)


def test_a_check_without_a_pod_has_the_words_of_the_quota() -> None:
    situation = _refused(a_situation(jobs=(a_job(None, created=NOW),)))
    plan = plan_batch(situation)
    assert plan.podless_job == situation.jobs[0]
    assert (plan.running.reason, plan.create, plan.delete) == ("FailedCreate", None, ())
    assert "spec.input" in plan.running.message
    assert f"Job/night-check has no pod: {QUOTA}" in plan.running.message


def test_an_attempt_without_a_pod_has_the_words_of_the_quota_and_waits_for_no_hardware() -> None:
    situation = _refused(on_attempt(jobs=(a_job(1, created=NOW),), pods=()))
    for moment in (situation, later(situation, 600)):
        plan = plan_batch(moment)
        assert (plan.running.reason, plan.create, plan.delete) == ("FailedCreate", None, ())
        assert f"attempt 1: Job/night-a1 has no pod: {QUOTA}" in plan.running.message


def test_only_a_job_that_is_old_enough_and_has_no_pod_is_asked_for_its_events() -> None:
    young = on_attempt(jobs=(a_job(1, created=NOW),), pods=())
    assert plan_batch(later(young, 14)).podless_job is None
    assert plan_batch(later(young, 15)).podless_job == young.jobs[0]
    assert plan_batch(later(on_attempt(jobs=(a_job(1, created=NOW),)), 60)).podless_job is None


def test_without_an_event_nothing_is_claimed() -> None:
    situation = on_attempt(jobs=(a_job(1, created=NOW),), pods=(), attempt={"runningSince": None})
    assert plan_batch(_refused(situation, None)).running.reason == "Starting"
