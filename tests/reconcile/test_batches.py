"""Whole cycles of batches against an in-memory cluster."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.domain.observed.snapshot import Ref
from tessera.ports import ClusterObject
from tessera.resources.api_resources import JOBS, PODS
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.batch_builders import MODEL_CLAIM, STORED
from tests.cases import full
from tests.memory_operator import MemoryOperator, add_batch, add_pool_and_node
from tests.reconcile.test_precision_files import run_job

NIGHT = ObjectKey("batchinferences", "team-a", "night")
ATTEMPT = ObjectKey("jobs", "team-a", "night-a1")
POD = ObjectKey("pods", "team-a", "night-a1-x")
CHECK = ObjectKey("jobs", "team-a", "night-check")
ACCOUNT = ObjectKey("serviceaccounts", "team-a", "tessera-batch")
MODEL_FILES = ObjectKey("persistentvolumeclaims", MODEL_CLAIM.namespace, MODEL_CLAIM.name)


@pytest.fixture
async def operator() -> MemoryOperator:
    """Return an operator with a batch whose first attempt runs."""
    memory_operator = MemoryOperator()
    add_pool_and_node(memory_operator)
    await _start(memory_operator, add_batch(memory_operator))
    memory_operator.cluster.put(PODS, _pod_of(memory_operator, ATTEMPT))
    await memory_operator.reconcile()
    assert memory_operator.body(NIGHT)["status"]["attempt"]["number"] == 1
    return memory_operator


async def _start(operator: MemoryOperator, batch: ObjectKey) -> None:
    """Let the input of a new batch be valid, so that its first attempt starts."""
    await operator.reconcile()
    check = {"rows": 10, "url": "/v1/completions", "inputTokens": 5}
    progress = {"rows": 10, "at": "2026-11-20T12:00:00Z"}
    operator.body(batch)["status"] |= {"check": check, "progress": progress}
    operator.cluster.touch(batch)
    await operator.reconcile()


def _pod_of(operator: MemoryOperator, job: ObjectKey) -> dict[str, Any]:
    owner = operator.body(job)["metadata"]
    controller = {"kind": "Job", "name": job.name, "uid": owner["uid"], "controller": True}
    meta = {
        "name": f"{job.name}-x",
        "namespace": job.namespace,
        "labels": owner["labels"],
        "ownerReferences": [controller],
        "creationTimestamp": "2026-11-20T12:00:00Z",
    }
    return {"metadata": meta, "spec": {"nodeName": "a100-0"}, "status": {"phase": "Running"}}


async def test_an_attempt_in_the_status_gets_its_job_though_a_newer_plan_is_due(
    operator: MemoryOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, decisions = operator.cluster.apply, list[asyncio.Task[object]]()

    async def apply_and_wake(
        manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        observed = await apply(manifest, subresource=subresource)
        if manifest.key == NIGHT:
            decisions.append(asyncio.create_task(operator.decide()))
            await asyncio.sleep(0)
        return observed

    monkeypatch.setattr(operator.cluster, "apply", apply_and_wake)
    operator.body(POD)["metadata"]["deletionTimestamp"] = "2026-11-20T12:00:30Z"
    operator.cluster.touch(POD)
    await operator.decide()
    await operator.applier.queue.drain()
    assert decisions
    await asyncio.gather(*decisions)
    await operator.applier.queue.drain()
    assert operator.body(NIGHT)["status"]["attempt"]["number"] == 2
    assert ObjectKey("jobs", "team-a", "night-a2") in operator.cluster.objects
    assert ATTEMPT not in operator.cluster.objects


async def test_a_job_that_outlives_its_batch_is_ended_and_its_account_stays_until_then(
    operator: MemoryOperator,
) -> None:
    operator.cluster.discard(NIGHT)
    operator.cluster.refusals[NIGHT] = "get batchinferences team-a/night: 503"
    await operator.reconcile()
    assert {ATTEMPT, ACCOUNT} <= operator.cluster.objects.keys()
    del operator.cluster.refusals[NIGHT]
    await operator.reconcile()
    assert ATTEMPT not in operator.cluster.objects
    await operator.reconcile()
    assert ACCOUNT not in operator.cluster.objects


async def test_a_job_is_ended_when_its_batch_was_made_anew(operator: MemoryOperator) -> None:
    operator.cluster.discard(NIGHT)
    add_batch(operator)
    await operator.reconcile()
    assert ATTEMPT not in operator.cluster.objects


async def test_a_job_whose_batch_is_only_missing_in_the_list_goes_on(
    operator: MemoryOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = operator.body(NIGHT)["metadata"]["uid"]

    async def read_uid(kind: object, ref: Ref) -> str:
        del kind, ref
        return str(uid)

    monkeypatch.setattr(operator.cluster, "read_uid", read_uid)
    operator.cluster.discard(NIGHT)
    for _ in range(3):
        await operator.reconcile()
    assert {ATTEMPT, ACCOUNT} <= operator.cluster.objects.keys()


async def test_a_batch_that_a_finalizer_keeps_stops_within_a_cycle(
    operator: MemoryOperator,
) -> None:
    operator.body(NIGHT)["metadata"] |= {
        "deletionTimestamp": "2026-11-20T12:00:30Z",
        "finalizers": ["example.org/keep"],
    }
    operator.cluster.touch(NIGHT)
    await operator.reconcile()
    assert ATTEMPT not in operator.cluster.objects
    status = operator.body(NIGHT)["status"]
    assert (status["reason"], status["attempt"]["number"]) == ("Terminating", 1)
    operator.cluster.discard(POD)
    for _ in range(2):
        operator.at += timedelta(minutes=10)
        await operator.reconcile()
    assert not {ATTEMPT, ACCOUNT} & operator.cluster.objects.keys()
    assert (await operator.reconcile()).writes == 0


async def test_a_model_that_nobody_knows_is_read_by_a_job_of_the_batch() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    add_batch(operator, model={"uri": "hf://acme/own"})
    await operator.reconcile()
    (key,) = [key for key in operator.cluster.objects if key.plural == JOBS.plural]
    body = operator.body(key)
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("BatchInference", "night")
    # Where the identity of the pod opens a bucket, it is that of batches.
    assert body["spec"]["template"]["spec"]["serviceAccountName"] == ACCOUNT.name
    assert ACCOUNT in operator.cluster.objects
    assert operator.body(NIGHT)["status"]["reason"] == "ReadingModel"
    assert run_job(operator, {"ok": True, "shape": STORED["shape"]}) == "hf://acme/own"
    await operator.reconcile()
    assert operator.body(NIGHT)["status"]["model"]["source"] == "config.json of hf://acme/own"
    assert CHECK in operator.cluster.objects
    await operator.reconcile()
    assert key not in operator.cluster.objects
    assert (await operator.reconcile()).writes == 0


async def test_a_read_that_is_refused_is_reported_and_tried_again() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.cluster.refusals[ACCOUNT] = "serviceaccounts: exceeded quota"
    add_batch(operator, model={"uri": "hf://acme/own"})
    for _ in range(2):
        await operator.reconcile()
    assert not [key for key in operator.cluster.objects if key.plural == JOBS.plural]
    assert operator.body(NIGHT)["status"]["message"].startswith("serviceaccounts: exceeded quota")
    operator.cluster.refusals.clear()
    await operator.reconcile()
    assert [key for key in operator.cluster.objects if key.plural == JOBS.plural]


def _owners(operator: MemoryOperator) -> list[tuple[str, str]]:
    references = operator.body(MODEL_FILES)["metadata"]["ownerReferences"]
    return [(reference["kind"], reference["name"]) for reference in references]


async def test_a_claim_with_model_files_belongs_to_the_services_and_batches_that_use_it() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    await _start(operator, add_batch(operator, model=STORED))
    assert _owners(operator) == [("BatchInference", "night")]
    assert ATTEMPT in operator.cluster.objects
    await _start(operator, add_batch(operator, "other", STORED))
    assert _owners(operator) == [("BatchInference", "night"), ("BatchInference", "other")]
    # A service may have the name of a batch.
    operator.serve("night", model=STORED)
    for _ in range(3):
        await operator.reconcile()
    batches = [("BatchInference", "night"), ("BatchInference", "other")]
    assert _owners(operator) == [("InferenceService", "night"), *batches]
    assert (await operator.reconcile()).writes == 0
    for _, name in batches:
        operator.body(NIGHT._replace(name=name))["status"]["state"] = "completed"
        operator.cluster.touch(NIGHT._replace(name=name))
    await operator.reconcile()
    assert _owners(operator) == [("InferenceService", "night")]


async def test_a_batch_that_ended_alone_keeps_its_files_for_the_next() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    await _start(operator, add_batch(operator, model=STORED))
    operator.body(NIGHT)["status"]["state"] = "completed"
    operator.cluster.touch(NIGHT)
    await operator.reconcile()
    assert _owners(operator) == [("BatchInference", "night")]
    await _start(operator, add_batch(operator, "other", STORED))
    assert _owners(operator) == [("BatchInference", "other")]


async def test_no_attempt_starts_without_the_claim_of_its_model_files() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.cluster.refusals[MODEL_FILES] = "persistentvolumeclaims: exceeded quota"
    await _start(operator, add_batch(operator, model=STORED))
    assert ATTEMPT not in operator.cluster.objects
    await operator.reconcile()
    assert "exceeded quota" in operator.body(NIGHT)["status"]["message"]


async def test_the_events_of_a_job_without_a_pod_explain_it_at_most_twice_a_minute() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    add_batch(operator)
    await operator.reconcile()
    check = operator.body(CHECK)
    check["metadata"]["creationTimestamp"] = operator.at.isoformat()
    operator.cluster.touch(CHECK)
    operator.cluster.pod_refusals[check["metadata"]["uid"]] = "exceeded quota: small"
    for _ in range(50):
        operator.at += timedelta(seconds=1)
        await operator.reconcile()
        await asyncio.sleep(0)
    status = operator.body(NIGHT)["status"]
    assert status["reason"] == "FailedCreate"
    assert "Job/night-check has no pod: exceeded quota: small" in status["message"]
    assert operator.cluster.event_queries == [check["metadata"]["uid"]] * 2
    operator.cluster.put(PODS, _pod_of(operator, CHECK))
    await operator.reconcile()
    assert operator.body(NIGHT)["status"]["reason"] == "ValidationJobRunning"
    assert operator.observations.answers.pod_refusals == {}


async def test_an_ended_batch_is_decided_and_written_once(operator: MemoryOperator) -> None:
    operator.body(NIGHT)["status"]["state"] = "completed"
    operator.cluster.touch(NIGHT)
    operator.cluster.discard(POD)
    plans = [(await operator.reconcile()).plan.batches for _ in range(4)]
    night = Ref("team-a", "night")
    assert len({id(batches[night]) for batches in plans[2:]}) == 1
    operator.body(NIGHT)["status"]["conditions"] = []
    operator.cluster.touch(NIGHT)
    await operator.reconcile()
    assert operator.body(NIGHT)["status"]["conditions"]


async def test_a_finished_batch_is_deleted_after_its_ttl(operator: MemoryOperator) -> None:
    body = operator.body(NIGHT)
    body["status"] |= {"state": "failed"}
    body["status"]["attempt"]["finishedAt"] = "2026-11-20T12:00:00Z"
    operator.cluster.touch(NIGHT)
    await operator.reconcile()
    assert NIGHT in operator.cluster.objects
    operator.at += timedelta(hours=721)
    await operator.reconcile()
    assert NIGHT not in operator.cluster.objects


@pytest.mark.parametrize(
    ("count", "state"),
    [(1, "completed"), (12, "failed"), *full((10_000, "failed"))],
)
async def test_batches_whose_ttl_passes_while_nobody_leads_are_deleted_by_the_next_leader(
    operator: MemoryOperator, count: int, state: str
) -> None:
    names = [f"old-{index}" for index in range(count)]
    attempt = operator.body(NIGHT)["status"]["attempt"]
    ended = {"state": state, "attempt": {**attempt, "finishedAt": "2026-11-20T12:00:00Z"}}
    for name in names:
        spec = {**operator.body(NIGHT)["spec"], "output": f"{name}.jsonl"}
        meta = {**operator.body(NIGHT)["metadata"], "name": name, "uid": f"uid-{name}"}
        body = {"metadata": meta, "spec": {**spec, "ttlAfterFinished": "60s"}, "status": ended}
        operator.cluster.put(BATCH_INFERENCES, body)
    operator.restart()
    operator.at += timedelta(seconds=62)
    await operator.reconcile()
    left = {key.name for key in operator.cluster.objects if key.plural == "batchinferences"}
    assert left == {"night"}


async def test_a_batch_with_a_ttl_of_zero_is_deleted_when_it_ends(operator: MemoryOperator) -> None:
    body = operator.body(NIGHT)
    body["spec"]["ttlAfterFinished"] = "0s"
    body["status"] |= {"state": "completed"}
    body["status"]["attempt"]["finishedAt"] = "2026-11-20T12:00:00Z"
    operator.cluster.touch(NIGHT)
    await operator.reconcile()
    assert NIGHT not in operator.cluster.objects
