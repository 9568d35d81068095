"""What keeps a pod from running is said alike for each kind of pod that Tessera has."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.observed.batches import PodRefusal
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import ObservedService, Snapshot
from tessera.domain.status.service import service_status
from tests.batch_builders import a_batch_pod, a_job, a_situation, on_attempt, plan_batch
from tests.builders import NOW, a_model_job, a_pod, a_service, a_snapshot, a_workload, at, plan_of
from tests.domain.batch import test_unknown_models as batches
from tests.domain.service import test_model_files as models
from tests.domain.service import test_precisions as precisions

QUOTA = 'pods "x-1" is forbidden: exceeded quota: compute, limited: limits.cpu=0'
UNSET = 'pods "x-1" is forbidden: failed quota: compute: must specify limits.cpu for: model-job'
ABOVE = 'pods "x-1" is forbidden: maximum memory usage per Container is 64Mi, but limit is 2Gi'
BELOW = (
    'Pod "x-1" is invalid: spec.containers[0].resources.requests: Invalid value: "500m": must be '
    "less than or equal to cpu limit of 10m"
)
TAINT = (
    "1 node had untolerated taint sku=gpu:NoSchedule; add it to spec.tolerations of "
    "AcceleratorPool/a100, or remove it"
)
PULL = "pull access denied for mirror.example.org/x"


class Outcome(NamedTuple):
    """What became of a pod: refused by the API server, or its fields."""

    refusal: str | None = None
    pod: Mapping[str, Any] = {}


OUTCOMES = {
    QUOTA: Outcome(refusal=QUOTA),
    f"{UNSET}; a LimitRange of the namespace with defaults": Outcome(refusal=UNSET),
    f"{ABOVE}; it is that of a LimitRange of the namespace": Outcome(refusal=ABOVE),
    f"{BELOW}; a LimitRange of the namespace sets a default": Outcome(refusal=BELOW),
    TAINT: Outcome(pod={"unschedulable": TAINT}),
    PULL: Outcome(pod={"waiting_reason": "ImagePullBackOff", "container_message": PULL}),
}
PENDING: Mapping[str, Any] = {"ready_since": None, "containers_ready": False, "serving": None}


def conditions(snapshot: Snapshot) -> str:
    plan = plan_of(snapshot)
    (service_plan,) = plan.service_plans.values()
    status = service_status(snapshot, service_plan, None, None)
    return "\n".join(f"{each.reason}: {each.message}" for each in status.conditions)


def of_job(parts: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return a model's Job whose pod has the outcome."""
    jobs: tuple[ObservedModelJob, ...] = parts["model_jobs"]
    if outcome.refusal is None:
        return parts | {"pods": tuple(replace(pod, **outcome.pod) for pod in parts["pods"])}
    return {"model_jobs": tuple(replace(job, refusal=outcome.refusal) for job in jobs)}


def engine(outcome: Outcome) -> str:
    pods = (a_pod("chat-0", **{**PENDING, **outcome.pod}),) if outcome.pod else ()
    workload = a_workload(1, replica_failure=outcome.refusal, rollout_complete=False)
    return conditions(a_snapshot(a_service(), workloads=(workload,), pods=pods))


def job_of(task: str, service: ObservedService, **fields: Any) -> Callable[[Outcome], str]:
    return lambda outcome: conditions(
        a_snapshot(service, **fields, **of_job(a_model_job(task, service), outcome))
    )


def precision(outcome: Outcome) -> str:
    service = replace(precisions.a_70b(), created=at(-5))
    return conditions(precisions.fleet(service, **of_job(precisions.read(service), outcome)))


def batch_shape(outcome: Outcome) -> str:
    plan = batches.planned(**of_job(batches.a_shape_job(), outcome))
    return f"{plan.accepted.reason}: {plan.accepted.message}"


def running(plan: BatchPlan) -> str:
    return f"{plan.running.reason}: {plan.running.message}"


def check(outcome: Outcome) -> str:
    job = a_job(None, created=at(-60))
    refusals = {job.uid: PodRefusal(NOW, outcome.refusal)} if outcome.refusal else {}
    pods = (a_batch_pod(None, None, **outcome.pod),) if outcome.pod else ()
    return running(plan_batch(a_situation(jobs=(job,), pods=pods, pod_refusals=refusals)))


def attempt(outcome: Outcome) -> str:
    job = a_job(1, created=at(-60))
    refusals = {job.uid: PodRefusal(NOW, outcome.refusal)} if outcome.refusal else {}
    pods = (a_batch_pod(1, None, **outcome.pod),) if outcome.pod else ()
    status = {"runningSince": None}
    situation = on_attempt(jobs=(job,), pods=pods, pod_refusals=refusals, attempt=status)
    return running(plan_batch(situation))


KINDS: dict[str, Callable[[Outcome], str]] = {
    "engine": engine,
    "shape": job_of("shape", models.an_own_model()),
    "draft": job_of("draft", models.a_drafted_service()),
    "precision": precision,
    "fetch": job_of("fetch", models.a_cached_service(), claims=models.bound_claim()),
    "shape of a batch": batch_shape,
    "check": check,
    "attempt": attempt,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "words", OUTCOMES, ids=["quota", "no limit", "above", "below", "taint", "image"]
)
def test_what_keeps_a_pod_from_running_is_said_of_each_kind(kind: str, words: str) -> None:
    outcome = OUTCOMES[words]
    text = KINDS[kind](outcome)
    assert words in text
    if outcome.refusal is not None:
        reasons = {line.partition(":")[0] for line in text.splitlines() if words in line}
        # Other conditions of a service repeat the message of the first that is False.
        assert reasons - {"NotPlaced", "NoReplicaReady"} <= {"FailedCreate", "QuotaExceeded"}
        # There is no pod, so no log, and nothing comes to those who wait.
        assert "kubectl logs" not in text
        assert "Wait," not in text
