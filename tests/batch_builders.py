"""Batches for tests, with defaults, and their state after a decision is carried out."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tessera.api.batch_inference import BatchInferenceSpec, BatchInferenceStatus
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.decide import apply_funding, propose_batch
from tessera.domain.batch.names import job_name
from tessera.domain.batch.situation import Situation
from tessera.domain.hardware.pools import discover
from tessera.domain.model.fetched import fetched_files
from tessera.domain.observed.batches import (
    Batch,
    BatchJob,
    NodeHealth,
    ProgressSample,
    VolumeClaim,
)
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import BatchPod, Node, Pool, Ref
from tessera.domain.status.batch import batch_status
from tests.builders import NOW, SMALL, a_node, a_pool, a_spec, at

NIGHT = Ref("team-a", "night")
SPOT_NODE, ON_DEMAND_NODE = "spot-0", "a100-0"
POOLS = (a_pool("a100", "2.00", tier="OnDemand"), a_pool("spot", "0.80", tier="Spot"))
NODES = (a_node("a100", {"1g.10gb": 7}), a_node("spot", {"1g.10gb": 7}))
ROWS = 1000
# A model in a bucket, and the claim that it is downloaded to.
STORED: dict[str, Any] = {
    "uri": "s3://models/small",
    "shape": {
        "parameters": 100_000_000,
        "layers": 12,
        "attentionHeads": 12,
        "kvHeads": 4,
        "headDim": 64,
        "maxPositionEmbeddings": 8192,
    },
}
MODEL_CLAIM = Ref("team-a", fetched_files(a_spec(model=STORED))[0].claim_name)


def a_batch_spec(**fields: Any) -> BatchInferenceSpec:
    """Build a spec as in a manifest; `model` and `service` may be None."""
    values = {
        "claimName": "results",
        "input": "jobs/questions.jsonl",
        "output": "jobs/answers.jsonl",
        "model": {"uri": SMALL},
        **fields,
    }
    return BatchInferenceSpec.model_validate({k: v for k, v in values.items() if v is not None})


def a_batch(spec: BatchInferenceSpec | None = None, **fields: Any) -> Batch:
    """Build a batch that was created just now."""
    return Batch(
        **{
            "ref": NIGHT,
            "uid": "uid-night",
            "generation": 1,
            "created": NOW,
            "spec": a_batch_spec() if spec is None and "problem" not in fields else spec,
            **fields,
        }
    )


def a_situation(batch: Batch | None = None, **fields: Any) -> Situation:
    """Build an on-demand and a spot pool of seven slices each, ready nodes, and a shared claim."""
    pools: tuple[Pool, ...] = fields.pop("pools", POOLS)
    nodes: tuple[Node, ...] = fields.pop("nodes", NODES)
    well = {node.name: NodeHealth(labels=node.labels) for node in nodes}
    return Situation(
        **{
            "at": NOW,
            "batch": batch or a_batch(),
            "views": discover(pools, nodes, NOW.date()),
            "nodes": fields.pop("health", well),
            "claim": VolumeClaim(access_modes=("ReadWriteMany",), storage_class="nfs"),
            **fields,
        }
    )


def a_checked_situation(batch: Batch | None = None, **fields: Any) -> Situation:
    """Build a batch with 1,000 valid rows, before its first attempt."""
    batch = batch or a_batch()
    status_fields = {
        "state": "in_progress",
        "check": {"rows": ROWS, "url": "/v1/chat/completions", "inputTokens": 50_000},
        "progress": {"rows": ROWS, "at": NOW},
        **fields.pop("status", {}),
    }
    status = BatchInferenceStatus.model_validate(status_fields)
    return a_situation(replace(batch, status=status), **fields)


def plan_batch(situation: Situation, shortage: str | None = None) -> BatchPlan:
    """Plan a batch of a tenant within its budget, unless there is a shortage."""
    return apply_funding(propose_batch(situation), shortage)


def carry_out(situation: Situation, batch_plan: BatchPlan, **fields: Any) -> Situation:
    """Return the situation after the plan was written: the serialized status, and the Jobs."""
    status = batch_status(batch_plan, situation.at)
    wire = json.loads(status.model_dump_json(by_alias=True, exclude_none=True))
    batch = replace(situation.batch, status=BatchInferenceStatus.model_validate(wire))
    jobs = [job for job in situation.jobs if job.ref not in batch_plan.delete]
    deleted_attempts = {job.attempt for job in situation.jobs if job.ref in batch_plan.delete}
    if batch_plan.create is not None:
        jobs.append(a_job(batch_plan.create.attempt))
    pods = tuple(pod for pod in situation.pods if pod.attempt not in deleted_attempts)
    return replace(situation, **{"batch": batch, "jobs": tuple(jobs), "pods": pods, **fields})


def plan_and_carry_out(situation: Situation, **fields: Any) -> Situation:
    """Plan and carry out once."""
    return carry_out(situation, plan_batch(situation), **fields)


def looking_again(situation: Situation, number: int) -> Situation:
    """Start the next attempt as soon as its backoff allows, with its pod: it has no GPU."""
    due = later(situation, 300)
    started = carry_out(due, plan_batch(due, shortage="none is left"))
    attempt = started.batch.status.attempt
    assert attempt is not None
    assert (attempt.number, attempt.variant) == (number, "")
    return plan_and_carry_out(started, pods=(a_batch_pod(number, node=None),))


def a_job(attempt: int | None = 1, **fields: Any) -> BatchJob:
    name = job_name(NIGHT.name, attempt)
    return BatchJob(
        **{
            "ref": Ref(NIGHT.namespace, name),
            "batch": NIGHT,
            "batch_uid": "uid-night",
            "attempt": attempt,
            "uid": f"uid-{name}",
            **fields,
        }
    )


def a_batch_pod(attempt: int | None = 1, node: str | None = SPOT_NODE, **fields: Any) -> BatchPod:
    """Build a pod that has just started, by default on the spot node."""
    name = job_name(NIGHT.name, attempt)
    return BatchPod(
        **{
            "ref": Ref(NIGHT.namespace, f"{name}-x"),
            "uid": "",
            "service": Ref(NIGHT.namespace, ""),
            "batch": NIGHT,
            "attempt": attempt,
            "created": NOW,
            "owner": f"uid-{name}",
            "node": node,
            "bound": NOW if node else None,
            "runner_since": NOW if node else None,
            "address": "127.10.0.9" if node else None,
            **fields,
        }
    )


def a_report(attempt: int = 1, state: str = "failed", **fields: Any) -> str:
    """Encode the report of a runner."""
    report = {"phase": "run", "attempt": attempt, "state": state, "rows": ROWS, "message": state}
    return json.dumps({**report, **fields})


def a_check_report(*, ok: bool = True, **fields: Any) -> str:
    report = {"phase": "check", "ok": ok, "rows": ROWS, "url": "/v1/chat/completions"}
    return json.dumps({**report, "inputTokens": 50_000, **fields})


def a_progress_sample(done: int = 0, seconds: float = 0, **fields: Any) -> ProgressSample:
    """Build the progress of a running attempt, `seconds` from now."""
    progress = {"attempt": 1, "state": "running", "rows": ROWS, "done": done, **fields}
    progress.setdefault("outputTokens", done * 200)
    return ProgressSample(at(seconds), RunnerProgress.model_validate(progress))


def on_attempt(way: str = "spot", number: int = 1, **fields: Any) -> Situation:
    """Build a batch with a running attempt on `spot` or `non-spot` hardware, its pod and Job."""
    spot = way == "spot"
    pod_fields = fields.pop("pod", {})
    attempt = {
        "number": number,
        "tier": "Spot" if spot else "OnDemand",
        "pool": "spot" if spot else "a100",
        "variant": f"{'spot' if spot else 'a100'}-1g-10gb",
        "job": job_name(NIGHT.name, number),
        "startedAt": NOW,
        "runningSince": NOW,
        **fields.pop("attempt", {}),
    }
    status = {"attempt": attempt, **fields.pop("status", {})}
    node = SPOT_NODE if spot else ON_DEMAND_NODE
    pod = a_batch_pod(number, **{"node": node, **pod_fields})
    return a_checked_situation(
        **{"status": status, "jobs": (a_job(number),), "pods": (pod,), **fields}
    )


def later(situation: Situation, seconds: float, **fields: Any) -> Situation:
    return replace(situation, at=situation.at + timedelta(seconds=seconds), **fields)
