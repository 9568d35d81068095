"""Which pods, Jobs and answers of a snapshot belong to which batch."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.batch_inference import BatchInferenceStatus
from tessera.api.batch_reasons import BatchAccepted, BatchRunning
from tessera.domain.batch.batches import propose_batches, situation_of
from tessera.domain.batch.names import job_name
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.config import Config
from tessera.domain.hardware.pools import discover
from tessera.domain.observed.batches import Batch, VolumeClaim
from tessera.domain.observed.snapshot import BatchPod, Ref, Snapshot
from tessera.domain.service.preparation.claims import ClaimUsers
from tessera.resources import children
from tests.batch_builders import (
    NIGHT,
    NODES,
    POOLS,
    a_batch,
    a_batch_pod,
    a_batch_spec,
    a_check_report,
    a_job,
    a_progress_sample,
    a_situation,
    carry_out,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import NOW, at, plan_of

CLAIMS = {Ref("team-a", "results"): VolumeClaim(access_modes=("ReadWriteMany",))}
ATTEMPT = {
    "number": 1,
    "tier": "Spot",
    "pool": "spot",
    "variant": "spot-1g-10gb",
    "job": "night-a1",
    "startedAt": NOW,
    "finishedAt": NOW,
}


def a_pod(uid: str = "uid-night", attempt: int | None = 1, **run: Any) -> BatchPod:
    """A pod of the batch with this uid, bound and running."""
    name = job_name(NIGHT.name, attempt)
    return BatchPod(
        ref=Ref(NIGHT.namespace, f"{name}-x"),
        uid=f"uid-{name}-x",
        service=Ref(NIGHT.namespace, ""),
        variant="spot-1g-10gb",
        template="",
        created=NOW,
        bound=NOW,
        batch=NIGHT,
        batch_uid=uid,
        attempt=attempt,
        owner=f"uid-{name}",
        **run,
    )


def a_fleet(**fields: Any) -> Snapshot:
    return Snapshot(
        **{
            "at": NOW,
            "pools": POOLS,
            "nodes": NODES,
            "batches": (a_batch(),),
            "claims": CLAIMS,
            **fields,
        }
    )


def test_pods_jobs_and_answers_are_those_of_the_same_uid() -> None:
    own, replaced = (
        a_fleet(
            pods=(a_pod(uid),),
            batch_jobs=(a_job(1, batch_uid=uid),),
            runner_answers={uid: a_progress_sample(5)},
        )
        for uid in ("uid-night", "uid-former")
    )
    situation = situation_of(own, NIGHT)
    assert (len(situation.pods), len(situation.jobs), situation.progress_sample) == (
        1,
        1,
        a_progress_sample(5),
    )
    replaced_situation = situation_of(replaced, NIGHT)
    assert (
        replaced_situation.pods,
        replaced_situation.jobs,
        replaced_situation.progress_sample,
    ) == ((), (), None)


@pytest.mark.parametrize(
    ("older", "conflict"),
    [
        ({}, "jobs/answers.jsonl"),
        ({"output": "jobs/answers.errors.jsonl"}, "jobs/answers.errors.jsonl"),
        ({"output": "a.jsonl", "errors": "jobs/answers.jsonl"}, "jobs/answers.jsonl"),
        ({"output": "a.jsonl"}, None),
        ({"claimName": "other"}, None),
    ],
)
def test_of_two_batches_that_write_one_file_the_older_one_runs(
    older: dict[str, Any], conflict: str | None
) -> None:
    first = replace(
        a_batch(a_batch_spec(**older)), ref=Ref("team-a", "zero"), uid="uid-zero", created=at(-60)
    )
    fleet = a_fleet(batches=(a_batch(), first))
    proposals = propose_batches(
        fleet, discover(POOLS, NODES, NOW.date()), Counter(), GrantForecast(()), {}, ClaimUsers()
    )
    plan = proposals[NIGHT].plan
    assert proposals[first.ref].plan.create is not None or "claimName" in older
    if conflict is None:
        assert plan.create is not None
    else:
        assert (plan.accepted.reason, plan.create) == (BatchAccepted.OUTPUT_CONFLICT, None)
        assert conflict in plan.accepted.message


def _linked(**status: Any) -> Batch:
    """Build an older batch that writes the same file through a linked folder."""
    spec = a_batch_spec(output="linked/answers.jsonl")
    ref, created = Ref("team-a", "zero"), at(-60)
    files = ["jobs/answers.jsonl", "jobs/answers.errors.jsonl"]
    check = {"rows": 5, "url": "/v1/completions", "inputTokens": 9, "files": files}
    fields = {"check": check, "progress": {"rows": 5, "at": NOW}, "state": "in_progress", **status}
    status_object = BatchInferenceStatus.model_validate(fields)
    return replace(a_batch(spec), ref=ref, uid="uid-zero", created=created, status=status_object)


def test_of_two_batches_that_write_one_file_through_a_link_the_older_one_runs() -> None:
    fleet = a_fleet(batches=(a_batch(), _linked()))
    assert situation_of(fleet, Ref("team-a", "zero")).conflict is None
    assert situation_of(fleet, NIGHT).conflict == ("jobs/answers.jsonl", Ref("team-a", "zero"))


def test_a_batch_whose_link_leads_to_the_file_of_one_that_runs_starts_no_attempt() -> None:
    running = BatchInferenceStatus.model_validate({"state": "in_progress", "attempt": ATTEMPT})
    fleet = a_fleet(batches=(replace(a_batch(), status=running), _linked()))
    assert situation_of(fleet, NIGHT).conflict is None
    plan = plan_batch(situation_of(fleet, Ref("team-a", "zero")))
    assert (plan.accepted.reason, plan.create) == (BatchAccepted.OUTPUT_CONFLICT, None)
    assert plan.accepted.message.startswith("spec.output: BatchInference/night came first")
    assert "jobs/answers.jsonl (where its link leads)" in plan.accepted.message


def test_a_check_that_found_links_is_recorded_before_an_attempt_starts() -> None:
    files = ["real/answers.jsonl", "real/answers.errors.jsonl"]
    pod = a_batch_pod(None, exit_code=0, ended=NOW, report=a_check_report(files=files))
    situation = plan_and_carry_out(a_situation(), pods=(pod,))
    plan = plan_batch(situation)
    assert plan.check is not None
    assert (plan.check.files, plan.create) == (tuple(files), None)
    assert plan_batch(carry_out(situation, plan)).create is not None


def test_of_two_batches_of_the_same_second_the_first_by_name_runs() -> None:
    other = replace(a_batch(), ref=Ref("team-a", "zero"), uid="uid-zero")
    fleet = a_fleet(batches=(other, a_batch()))
    assert situation_of(fleet, NIGHT).conflict is None
    assert situation_of(fleet, other.ref).conflict == ("jobs/answers.jsonl", NIGHT)


@pytest.mark.parametrize("other", [Ref("team-b", "zero"), Ref("team-a", "done")])
def test_neither_another_namespace_nor_a_finished_batch_holds_a_file(other: Ref) -> None:
    holder = a_completed_batch() if other.name == "done" else a_batch()
    fleet = a_fleet(batches=(a_batch(), replace(holder, ref=other, uid="other", created=at(-60))))
    assert situation_of(fleet, NIGHT).conflict is None


def a_completed_batch(**fields: Any) -> Batch:
    status = {"state": "completed", "done": "5/5", "attempt": ATTEMPT}
    return a_batch(status=BatchInferenceStatus.model_validate(status), **fields)


@pytest.mark.parametrize(
    ("state", "ended", "outdated"),
    [
        ("completed", timedelta(hours=1), True),
        ("expired", timedelta(hours=1), True),
        ("failed", timedelta(minutes=59), False),
        ("in_progress", timedelta(hours=1), False),
    ],
)
def test_a_batch_is_deleted_its_ttl_after_its_end(
    state: str, ended: timedelta, outdated: bool
) -> None:
    status = {"state": state, "attempt": {**ATTEMPT, "finishedAt": NOW - ended}}
    batch = a_batch(
        a_batch_spec(ttlAfterFinished="1h", deadline="1m"),
        status=BatchInferenceStatus.model_validate(status),
        created=NOW - timedelta(days=1),
    )
    assert plan_of(a_fleet(batches=(batch,))).outdated_batches == ((batch,) if outdated else ())


def test_a_completed_batch_reads_nothing_of_the_fleet() -> None:
    fleet = a_fleet(
        batches=(a_completed_batch(),), batch_jobs=(a_job(1), a_job(2)), pods=(a_pod(exit_code=0),)
    )
    views = discover(fleet.pools, fleet.nodes, NOW.date())
    proposals = propose_batches(fleet, views, Counter(), GrantForecast(()), {}, ClaimUsers())
    proposal = proposals[NIGHT]
    assert (proposal.situation.views, proposal.situation.nodes, proposal.situation.services) == (
        (),
        {},
        {},
    )
    plan = plan_of(fleet).batches[NIGHT]
    assert (plan.state, [ref.name for ref in plan.delete]) == ("completed", ["night-a2"])


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({}, False),
        ({"pods": (a_pod(),), "batch_jobs": (a_job(),)}, True),
        ({"pods": (replace(a_pod(exit_code=0), ended=NOW),), "batch_jobs": (a_job(),)}, False),
    ],
)
def test_a_batch_that_is_over_needs_shared_objects_only_for_its_last_pods(
    fields: dict[str, Any], shares: bool
) -> None:
    decision = plan_of(a_fleet(batches=(a_completed_batch(),), **fields))
    manifests = {
        owner.namespace: owner.manifests(
            operator_namespace="tessera-system",
            ingress_namespaces=("tessera-system",),
            monitor_labels={},
        )
        for owner in children.namespace_owners(decision.service_plans, decision.active_batches)
    }
    assert bool(manifests) is shares


def test_shared_objects_belong_to_batches_that_are_not_over() -> None:
    new = Ref("team-a", "next")
    decision = plan_of(a_fleet(batches=(a_completed_batch(), a_batch(ref=new, uid="uid-next"))))
    (shared,) = children.namespace_owners(decision.service_plans, decision.active_batches)
    manifests = shared.manifests(
        operator_namespace="x", ingress_namespaces=("x",), monitor_labels={}
    )
    for manifest in manifests:
        owners = manifest.body["metadata"]["ownerReferences"]
        assert [owner["name"] for owner in owners] == ["next"]


def test_a_batch_that_was_made_again_begins_with_its_own_check() -> None:
    previous = a_fleet(
        pods=(
            a_pod(
                "uid-former",
                report='{"phase": "run", "attempt": 1, "state": "completed"}',
                exit_code=0,
            ),
        ),
        batch_jobs=(a_job(1, batch_uid="uid-former"),),
    )
    plan = plan_of(previous).batches[NIGHT]
    assert (plan.state, plan.attempt, plan.delete) == ("validating", None, ())
    assert plan.create is not None
    assert plan.create.name == "night-check"


def checked_batch() -> Batch:
    progress = {"rows": 10, "at": NOW}
    check = {"rows": 10, "url": "/v1/chat/completions", "inputTokens": 500}
    status = {"state": "in_progress", "check": check, "progress": progress}
    return a_batch(status=BatchInferenceStatus.model_validate(status))


def test_a_batch_without_a_budget_waits_where_one_is_required() -> None:
    fleet = a_fleet(batches=(checked_batch(),))
    decision = plan_of(fleet, Config(require_budget=True)).batches[NIGHT]
    assert decision.running.reason is BatchRunning.BUDGET_EXHAUSTED
    assert "requireBudget" in decision.running.message
    assert decision.attempt is None
    assert plan_of(fleet).batches[NIGHT].attempt is not None


def test_a_batch_does_not_run_in_a_pool_that_does_not_list_its_namespace() -> None:
    pools = tuple(
        replace(pool, spec=pool.spec.model_copy(update={"namespaces": ("team-b",)}))
        for pool in POOLS
        if pool.spec is not None
    )
    decision = plan_of(a_fleet(batches=(checked_batch(),), pools=pools)).batches[NIGHT]
    assert decision.running.reason is BatchRunning.NO_POOL
    assert "does not list team-a" in decision.running.message
    assert decision.attempt is None
