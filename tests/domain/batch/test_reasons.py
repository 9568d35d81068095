"""Every reason that refuses a batch has a case that shows it, with a message that helps.

A message helps when it holds the path of the field and a number or a command.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pytest

from enum_texts import member_texts
from tessera.api.batch_reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.api.reasons import StatusReason
from tessera.domain.batch.situation import Situation
from tessera.domain.observed.batches import Batch, NodeHealth, PodRefusal, VolumeClaim
from tessera.domain.observed.snapshot import Ref
from tessera.domain.service.preparation.jobs import ModelJobOutcome, ModelJobStatus
from tessera.domain.status.batch import batch_status
from tests.batch_builders import (
    MODEL_CLAIM,
    NODES,
    POOLS,
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
    on_attempt,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import H100, LARGE, MEDIUM, NOW, SMALL, a_node, a_pool, a_spec, at

BATCH_CONDITIONS = (BatchAccepted, BatchRunning, BatchComplete)
EUROS = [{"from": date(2026, 1, 1), "perGPUHour": "3", "currency": "EUR"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCase:
    """What a batch meets, and what its condition must say."""

    reason: StatusReason
    situation: Situation
    field: str
    says: tuple[str, ...]
    shortage: str | None = None


def batch(**spec: Any) -> Batch:
    return a_batch(a_batch_spec(**spec))


SHAPE_JOB = ModelJobStatus(name="night-shape-1", namespace="team-a")
TERMINATING = VolumeClaim(access_modes=("ReadWriteMany",), terminating=True)


def of_model(uri: str, **spec: Any) -> Situation:
    return a_situation(batch(model={"uri": uri}, **spec))


def refused_check(**fields: Any) -> Situation:
    report = a_check_report(ok=False, **fields)
    pod = a_batch_pod(None, exit_code=3, ended=NOW, report=report)
    return plan_and_carry_out(a_situation(), pods=(pod,))


def failed_check() -> Situation:
    report = a_check_report(ok=False, message="cannot write /claim/jobs: the volume is full")
    pod = a_batch_pod(None, exit_code=1, ended=NOW, report=report)
    return plan_and_carry_out(a_situation(), pods=(pod,))


FAULTS = [
    {"line": 2, "code": "invalid_json_line", "message": "not JSON", "param": None},
    {"line": 9, "code": "duplicate_custom_id", "message": "custom_id a again", "param": None},
]
UNBOUND: Mapping[str, Any] = {
    "node": None,
    "address": None,
    "unschedulable": "0/2 nodes are available: 2 Insufficient nvidia.com/mig-1g.10gb.",
}

CASES = [
    BatchCase(
        reason=BatchAccepted.INVALID_SPEC,
        situation=a_situation(
            a_batch(problem="spec.claimName: Field required (kubectl explain x)")
        ),
        field="spec.claimName",
        says=("kubectl explain",),
    ),
    BatchCase(
        reason=BatchAccepted.INVALID_SPEC,
        situation=a_situation(batch(model=None)),
        field="spec.model",
        says=("spec.service", "exactly one"),
    ),
    BatchCase(
        reason=BatchAccepted.INVALID_NAME,
        situation=a_situation(replace(a_batch(), ref=Ref("team-a", "n" * 70))),
        field="metadata.name",
        says=("70 characters", "63"),
    ),
    BatchCase(
        reason=BatchAccepted.OUTPUT_CONFLICT,
        situation=a_situation(conflict=("jobs/answers.jsonl", Ref("team-a", "evening"))),
        field="spec.output",
        says=("BatchInference/evening", "jobs/answers.jsonl", "another path"),
    ),
    BatchCase(
        reason=BatchAccepted.SERVICE_NOT_FOUND,
        situation=a_situation(batch(model=None, service="chat")),
        field="spec.service",
        says=("InferenceService/chat does not exist", "kubectl get tsvc -n team-a"),
    ),
    BatchCase(
        reason=BatchAccepted.SERVICE_NOT_FOUND,
        situation=a_situation(batch(model=None, service="chat"), services={"chat": None}),
        field="spec.service",
        says=("InferenceService/chat has an invalid spec",),
    ),
    BatchCase(
        reason=BatchAccepted.READING_MODEL,
        situation=replace(of_model("hf://acme/own-model"), shape_job=SHAPE_JOB),
        field="spec.model.shape",
        says=(
            "Job night-shape-1 reads the config.json of hf://acme/own-model",
            "create another BatchInference with the shape there",
            "kubectl logs -n team-a job/night-shape-1",
        ),
    ),
    BatchCase(
        reason=BatchAccepted.UNKNOWN_MODEL,
        situation=replace(
            of_model("hf://acme/own-model"),
            shape_job=replace(
                SHAPE_JOB, outcome=ModelJobOutcome.MODEL_REJECTED, report="vocab_size is missing"
            ),
        ),
        field="spec.model.shape",
        says=("vocab_size is missing", "kvHeads", "correct it in another BatchInference"),
    ),
    BatchCase(
        reason=BatchAccepted.UNKNOWN_MODEL,
        situation=a_situation(
            batch(model=None, service="chat"), services={"chat": a_spec("hf://acme/own-model")}
        ),
        field="spec.service",
        says=("InferenceService/chat: spec.model.shape", "hf://acme/own-model"),
    ),
    BatchCase(
        reason=BatchAccepted.ADAPTER_NAME_CONFLICT,
        situation=a_situation(
            batch(
                model={
                    "uri": "hf://Qwen/Qwen3-8B",
                    "servedName": "sql",
                    "adapters": [{"name": "sql", "uri": "hf://acme/sql"}],
                }
            )
        ),
        field="spec.model.adapters[0].name",
        says=("sql", "spec.model.servedName", "rename"),
    ),
    BatchCase(
        reason=BatchAccepted.CONTEXT_TOO_LONG,
        situation=of_model("hf://Qwen/Qwen3-8B", context={"maxModelLen": 65536}),
        field="spec.context.maxModelLen",
        says=("65536", "40960"),
    ),
    BatchCase(
        reason=BatchAccepted.INVALID_ENGINE_OPTION,
        situation=of_model(SMALL, engine={"expertParallel": True}),
        field="spec.engine.expertParallel",
        says=(SMALL, "remove it"),
    ),
    BatchCase(
        reason=BatchAccepted.PRECISION_MISMATCH,
        situation=of_model(
            "hf://Qwen/Qwen3-8B-FP8", precision={"variants": [{"precision": "fp8"}]}
        ),
        field="spec.precision.variants[0].precision",
        says=("quantized to fp8 already", "remove fp8"),
    ),
    BatchCase(
        reason=BatchAccepted.RUNNER_MISMATCH,
        situation=a_situation(
            batch(
                model={
                    "uri": "hf://acme/reranker",
                    "shape": {
                        "parameters": 567_755_777,
                        "layers": 24,
                        "attentionHeads": 16,
                        "kvHeads": 16,
                        "headDim": 64,
                        "maxPositionEmbeddings": 8192,
                        "pooling": "Score",
                        "encoderOnly": True,
                    },
                }
            )
        ),
        field="spec.engine.runner",
        says=("returns no embeddings", "use an InferenceService and its /rerank"),
    ),
    BatchCase(
        reason=BatchAccepted.RESERVED_FLAG,
        situation=of_model(SMALL, engine={"extraArgs": ["--max-num-seqs=100"]}),
        field="spec.engine.extraArgs",
        says=("--max-num-seqs", "set by spec.engine.maxNumSeqs"),
    ),
    BatchCase(
        reason=BatchAccepted.RESERVED_POD_TEMPLATE_FIELD,
        situation=a_situation(
            batch(model=None, service="chat"),
            services={
                "chat": a_spec(SMALL, podTemplate={"env": [{"name": "HOME", "value": "/data"}]})
            },
        ),
        field="spec.podTemplate.env[0]",
        says=("spec.service: InferenceService/chat", "remove HOME", "set by Tessera"),
    ),
    BatchCase(
        reason=BatchAccepted.INVALID_FLAG,
        situation=of_model(SMALL, engine={"extraArgs": ["--max-logprobs=x"]}),
        field="spec.engine.extraArgs",
        says=("--max-logprobs", "0.32.0"),
    ),
    BatchCase(
        reason=BatchAccepted.LOADER_MISMATCH,
        situation=of_model(SMALL, engine={"loader": {"type": "Dummy", "concurrency": 8}}),
        field="spec.engine.loader.concurrency",
        says=("Dummy", "RunaiStreamer or Tensorizer"),
    ),
    BatchCase(
        reason=BatchAccepted.POOL_NOT_FOUND,
        situation=of_model(SMALL, placement={"pools": ["spot", "b200"]}),
        field="spec.placement.pools[1]",
        says=("b200", "kubectl get acceleratorpools"),
    ),
    BatchCase(
        reason=BatchAccepted.CLAIM_NOT_FOUND,
        situation=a_situation(claim=None),
        field="spec.claimName",
        says=("results", "kubectl get pvc", "ReadWriteMany"),
    ),
    BatchCase(
        reason=BatchAccepted.CLAIM_TERMINATING,
        situation=a_situation(claim=TERMINATING),
        field="spec.claimName",
        says=("PersistentVolumeClaim/results is being deleted", "kubectl get pvc results"),
    ),
    BatchCase(
        reason=BatchAccepted.CLAIM_NOT_READ_WRITE_MANY,
        situation=a_situation(
            claim=VolumeClaim(access_modes=("ReadWriteOnce",), storage_class="gp3")
        ),
        field="spec.claimName",
        says=("ReadWriteOnce", "gp3", "ReadWriteMany", "kubectl get storageclass"),
    ),
    BatchCase(
        reason=BatchRunning.NOT_ACCEPTED,
        situation=a_situation(claim=None),
        field="Accepted",
        says=("no attempt starts",),
    ),
    BatchCase(
        reason=BatchRunning.VALIDATION_JOB_RUNNING,
        situation=a_situation(),
        field="spec.input",
        says=("jobs/questions.jsonl on results", "kubectl logs job/night-check"),
    ),
    BatchCase(
        reason=BatchRunning.VALIDATION_JOB_FAILED,
        situation=failed_check(),
        field="spec.input",
        says=("the volume is full", "30 s"),
    ),
    BatchCase(
        reason=BatchRunning.VALIDATION_JOB_FAILED,
        situation=plan_and_carry_out(
            a_situation(),
            pods=(a_batch_pod(None, waiting_reason="ErrImagePull", container_message="denied"),),
        ),
        field="spec.input",
        says=("ErrImagePull: denied", "kubectl describe pod night-check-x"),
    ),
    BatchCase(
        reason=BatchRunning.STARTING,
        situation=a_checked_situation(),
        field="status.attempt",
        says=("attempt 1", "spot-1g-10gb", "kubectl describe job night-a1"),
    ),
    BatchCase(
        reason=BatchRunning.WAITING_FOR_SPOT,
        situation=on_attempt(pod=UNBOUND, attempt={"runningSince": None}),
        field="spec.placement.pools",
        says=("no node for attempt 1 on spot-1g-10gb", "0/2 nodes are available"),
    ),
    BatchCase(
        reason=BatchRunning.WAITING_FOR_SPOT,
        situation=a_checked_situation(nodes=NODES[:1]),
        field="spec.spot.policy",
        says=("waiting for spot capacity", "0 of 1000 rows"),
    ),
    BatchCase(
        reason=BatchRunning.UNSCHEDULABLE,
        situation=on_attempt("non-spot", pod=UNBOUND, attempt={"runningSince": None}),
        field="spec.placement.pools",
        says=("no node for attempt 1 on a100-1g-10gb", "0/2 nodes are available"),
    ),
    BatchCase(
        reason=BatchRunning.BACKING_OFF,
        situation=on_attempt(pod={"exit_code": 1, "report": a_report(message="engine is away")}),
        field="status.attempt",
        says=("attempt 1 on spot-1g-10gb", "exit code 1: engine is away", "12:00:10Z"),
    ),
    BatchCase(
        reason=BatchRunning.INPUT_CHANGED,
        situation=on_attempt(
            pod={
                "exit_code": 3,
                "report": a_report(state="inputChanged", message="it has 9 bytes, and had 7"),
            }
        ),
        field="spec.input",
        says=("attempt 1 ended: exit code 3: it has 9 bytes", "12:00:10Z without a GPU"),
    ),
    BatchCase(
        reason=BatchRunning.SUSPENDED,
        situation=on_attempt(batch=batch(suspend=True)),
        field="spec.suspend",
        says=("2026-11-21T12:00Z",),
    ),
    BatchCase(
        reason=BatchRunning.BUDGET_EXHAUSTED,
        situation=on_attempt(),
        shortage="budget team-a, spec.limits[0].amount: of 5.00 for the day 5.00 are spent",
        field="spec.limits[0].amount",
        says=("5.00",),
    ),
    BatchCase(
        reason=BatchRunning.NO_POOL,
        situation=a_checked_situation(pools=(), nodes=()),
        field="spec.placement.pools",
        says=("kubectl get acceleratorpools", "0"),
    ),
    BatchCase(
        reason=BatchRunning.NO_POOL,
        situation=a_checked_situation(
            batch(spot={"policy": "Only"}), pools=POOLS[:1], nodes=NODES[:1]
        ),
        field="spec.spot.policy",
        says=("spec.spot.policy is Only", "1 pool", "a100 is OnDemand"),
    ),
    BatchCase(
        reason=BatchRunning.NO_HARDWARE,
        situation=a_checked_situation(nodes=()),
        field="spec.placement.pools",
        says=("kubectl get nodes -l pool=spot",),
    ),
    BatchCase(
        reason=BatchRunning.MIXED_CURRENCIES,
        situation=a_checked_situation(
            batch(spot={"policy": "Never"}),
            pools=(POOLS[0], a_pool("h100", prices=EUROS)),
            nodes=(NODES[0], a_node("h100", whole=1, product=H100)),
        ),
        field="spec.placement.pools",
        says=("2 currencies (EUR, USD)",),
    ),
    BatchCase(
        reason=BatchRunning.TOO_LARGE,
        situation=a_checked_situation(batch(model={"uri": LARGE})),
        field="spec.model.uri",
        says=("9728 MiB", "devices of"),
    ),
    BatchCase(
        reason=BatchRunning.TOO_LARGE,
        situation=a_checked_situation(
            batch(model={"uri": MEDIUM}), nodes=(a_node("spot", {"2g.20gb": 3}),)
        ),
        field="spec.model.uri",
        says=("spec.context.maxModelLen of at most 7616",),
    ),
    BatchCase(
        reason=BatchRunning.FINISHED,
        situation=on_attempt(at=at(86400)),
        field="status.state",
        says=("expired", "0 attempts"),
    ),
    BatchCase(
        reason=BatchComplete.VALIDATING,
        situation=a_situation(),
        field="spec.input",
        says=("jobs/questions.jsonl on results", "0 rows"),
    ),
    BatchCase(
        reason=BatchComplete.IN_PROGRESS,
        situation=on_attempt(progress_sample=a_progress_sample(400, 40, failed=3)),
        field="status.progress",
        says=("400 of 1000 rows done, 3 of them failed",),
    ),
    BatchCase(
        reason=BatchComplete.FINALIZING,
        situation=on_attempt(progress_sample=a_progress_sample(1000, 40, state="publishing")),
        field="status.progress",
        says=("1000 of 1000 rows done", "jobs/answers.jsonl"),
    ),
    BatchCase(
        reason=BatchComplete.INVALID_INPUT,
        situation=refused_check(errorCount=12, errors=FAULTS, message="the input has 12 faults"),
        field="spec.input",
        says=("12 of 1000 rows", "line 2: not JSON; line 9: custom_id a again", "kubectl logs"),
    ),
    BatchCase(
        reason=BatchComplete.INVALID_INPUT,
        situation=refused_check(
            errorCount=50, errors=[{**FAULTS[0], "line": 1, "lines": "1-48 and 2 more"}]
        ),
        field="spec.input",
        says=("50 of 1000 rows invalid: lines 1-48 and 2 more: not JSON; see kubectl logs",),
    ),
    BatchCase(
        reason=BatchComplete.INVALID_INPUT,
        situation=refused_check(message="cannot read the input: it does not exist; create it"),
        field="spec.input",
        says=("does not exist; create it", "kubectl logs -n team-a night-check-x", "0 tokens"),
    ),
    BatchCase(
        reason=BatchComplete.USER_ACTION_REQUIRED,
        situation=on_attempt(
            pod={"exit_code": 3, "report": a_report(message="read-only; use another claim")}
        ),
        field="spec.output",
        says=(
            "attempt 1",
            "read-only; use another claim",
            ".tessera/uid-night",
        ),
    ),
    BatchCase(
        reason=BatchComplete.ROWS_REFUSED,
        situation=on_attempt(
            pod={
                "exit_code": 3,
                "report": a_report(state="rowsRefused", message="404: no model gpt-4o", failed=20),
            }
        ),
        field="spec.input",
        says=("attempt 1", "404: no model gpt-4o", "20 of 1000 rows done"),
    ),
    BatchCase(
        reason=BatchComplete.ALL_ROWS_FAILED,
        situation=on_attempt(
            pod={"exit_code": 0, "report": a_report(state="completed", failed=1000)}
        ),
        field="spec.output",
        says=("0 of 1000 rows answered", "1000 failed, see jobs/answers.errors.jsonl"),
    ),
    BatchCase(
        reason=BatchComplete.BACKOFF_LIMIT_EXCEEDED,
        situation=on_attempt(
            attempt={"consecutiveFailures": 5, "failingSince": at(-7200)},
            pod={"exit_code": 1, "report": a_report(message="CUDA error")},
        ),
        field="status.attempt",
        says=("6 attempts", "CUDA error", ".tessera/uid-night"),
    ),
    BatchCase(
        reason=BatchComplete.DEADLINE_EXCEEDED,
        situation=on_attempt(at=at(86400)),
        field="spec.deadline",
        says=(
            "2026-11-21T12:00:00Z",
            "0 of 1000 rows",
            ".tessera/uid-night",
        ),
    ),
    BatchCase(
        reason=BatchRunning.MODEL_CLAIM_TERMINATING,
        situation=a_checked_situation(batch(model=STORED), volumes={MODEL_CLAIM: TERMINATING}),
        field=f"PersistentVolumeClaim/{MODEL_CLAIM.name}",
        says=("being deleted", f"kubectl describe pvc -n team-a {MODEL_CLAIM.name}"),
    ),
    BatchCase(
        reason=BatchRunning.TERMINATING,
        situation=on_attempt(batch=a_batch(deleting=True)),
        field="metadata.finalizers",
        says=("BatchInference/night is being deleted", "0 attempts run"),
    ),
    BatchCase(
        reason=BatchRunning.FAILED_CREATE,
        situation=a_situation(
            jobs=(a_job(None, created=at(-15)),),
            pod_refusals={"uid-night-check": PodRefusal(NOW, "exceeded quota: small")},
        ),
        field="spec.input",
        says=("Job/night-check has no pod: exceeded quota: small",),
    ),
    BatchCase(
        reason=BatchRunning.STALLED,
        situation=on_attempt(progress_sample=a_progress_sample(5, idleSeconds=180)),
        field="status.attempt",
        says=(
            "no row and no byte of attempt 1 moved since 11:57:00Z",
            "its runner ends it after 15 min, and the operator after 20",
            "kubectl logs job/night-a1",
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_a_blocked_batch_says_where_and_what_to_do(case: BatchCase) -> None:
    plan = plan_batch(case.situation, case.shortage)
    messages = {
        condition.reason: condition.message
        for condition in batch_status(plan, case.situation.at).conditions
    }
    assert case.reason in messages, messages
    message = messages[case.reason]
    assert case.field in message
    for part in case.says:
        assert part in message
    if case.field != "Accepted":
        assert re.search(r"\d|kubectl \w+", message)


def test_every_reason_that_refuses_has_a_case() -> None:
    shown = {case.reason for case in CASES}
    refusing = {reason for kind in BATCH_CONDITIONS for reason in kind if not reason.is_true}
    # Shown by tests of their own: no manifest alone makes them.
    assert refusing - shown == {BatchAccepted.PLANNER_ERROR, BatchRunning.APPLY_FAILED}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_the_deciding_reason_stands_in_the_table_of_kubectl_get(case: BatchCase) -> None:
    status = batch_status(plan_batch(case.situation, case.shortage), case.situation.at)
    messages = {condition.reason: condition.message for condition in status.conditions}
    assert messages[status.reason].partition(". This ends")[0] == status.message
    assert status.state == "completed" or status.reason not in ("Valid", "InProgress")


def test_a_problem_with_the_api_server_comes_first() -> None:
    situation = on_attempt(health={SPOT_NODE: NodeHealth()})
    status = batch_status(plan_batch(situation), NOW, "jobs team-a/night-a1: 403 quota")
    assert status.message.startswith("jobs team-a/night-a1: 403 quota; ")


def test_reasons_are_single_words_with_a_meaning() -> None:
    for kind in BATCH_CONDITIONS:
        for reason in kind:
            assert re.fullmatch(r"[A-Z][A-Za-z]+", reason)
            assert member_texts(kind)[reason.name].endswith(".")
    assert BatchAccepted.VALID.is_true
    assert not BatchRunning.STARTING.is_true
    assert BatchComplete.COMPLETED.is_true
