"""Batches whose own model is neither in the spec nor in the catalog: a Job reads its shape."""

import json
from dataclasses import replace
from typing import Any

from tessera.api.batch_inference import BatchInferenceStatus
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.model.names import model_job_name
from tessera.domain.observed.batches import Batch, VolumeClaim
from tessera.domain.observed.model_jobs import ModelJobRun, ObservedModelJob
from tessera.domain.observed.runner_reports import REFUSED_EXIT_CODE
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.status.batch import batch_status
from tests.batch_builders import NIGHT, NODES, POOLS, STORED, a_batch, a_batch_spec
from tests.builders import NOW, a_pod, a_service, a_spec, at, plan_of

OWN = "hf://acme/own"
READ = {"ok": True, "shape": STORED["shape"], "commit": "c0ffee"}


def an_own_batch(**spec: Any) -> Batch:
    return a_batch(a_batch_spec(**{"model": {"uri": OWN}, **spec}))


def a_shape_job(report: dict[str, Any] | None = None, code: int | None = None) -> dict[str, Any]:
    """The Job that reads the model of the batch, and its pod, as fields of a snapshot."""
    spec = an_own_batch().spec
    assert spec is not None
    assert spec.model is not None
    ref = Ref("team-a", model_job_name(NIGHT.name, "uid-night", "shape", spec.model))
    text = json.dumps({"phase": "shape", **report}) if report is not None else ""
    no_service = Ref("team-a", "")
    run = ModelJobRun(service=no_service, job_uid="uid-job", exit_code=code, report=text)
    ended = None if code is None else NOW
    pod = a_pod(f"{ref.name}-x", variant="", ready_since=None, ended=ended)
    job = ObservedModelJob(ref=ref, service=no_service, task="shape", uid="uid-job")
    return {
        "model_jobs": (job,),
        "pods": (replace(pod, service=no_service, model_job_run=run),),
    }


def a_fleet(batch: Batch | None = None, **fields: Any) -> Snapshot:
    claims = {Ref("team-a", "results"): VolumeClaim(access_modes=("ReadWriteMany",))}
    fleet = {"at": NOW, "pools": POOLS, "nodes": NODES, "claims": claims, **fields}
    return Snapshot(batches=(batch or an_own_batch(),), **fleet)


def planned(batch: Batch | None = None, **fields: Any) -> BatchPlan:
    return plan_of(a_fleet(batch, **fields)).batches[NIGHT]


def recorded(batch: Batch, plan: BatchPlan) -> Batch:
    """Return the batch with the status of a plan, as the API server returns it."""
    wire = batch_status(plan, NOW).model_dump_json(by_alias=True, exclude_none=True)
    return replace(batch, status=BatchInferenceStatus.model_validate_json(wire))


def test_a_model_that_nobody_knows_is_read_before_the_input_is_checked() -> None:
    plan = planned()
    assert plan.accepted.reason == "ReadingModel"
    assert plan.model_job is not None
    assert (plan.model_job.task, plan.model_job.spec.model.uri) == ("shape", OWN)
    assert plan.create is None
    running = planned(**a_shape_job())
    assert (running.accepted.reason, running.model_job) == ("ReadingModel", None)


def test_the_shape_that_was_read_is_recorded_and_its_job_goes_then() -> None:
    parts = a_shape_job(READ, 0)
    plan = planned(**parts)
    assert plan.accepted.reason == "Valid"
    assert plan.create is not None
    assert plan.create.name == "night-check"
    assert plan.delete == ()
    batch = recorded(an_own_batch(), plan)
    assert batch.status.model is not None
    assert batch.status.model.source == f"config.json of {OWN} at c0ffee"
    later = planned(batch, **parts)
    assert later.delete == (parts["model_jobs"][0].ref,)
    without_job = planned(batch)
    assert (without_job.accepted.reason, without_job.model_job) == ("Valid", None)
    assert without_job.model == batch.status.model


def test_an_attempt_runs_on_hardware_for_the_shape_that_was_read() -> None:
    status = {
        "state": "in_progress",
        "model": {"shape": STORED["shape"], "source": "config.json"},
        "check": {"rows": 10, "url": "/v1/chat/completions", "inputTokens": 500},
        "progress": {"rows": 10, "at": NOW},
    }
    batch = replace(an_own_batch(), status=BatchInferenceStatus.model_validate(status))
    plan = planned(batch)
    assert plan.create is not None
    assert plan.create.choice is not None
    assert plan.create.choice.variant == "spot-1g-10gb"
    # Pods are the same where the catalog has the shape.
    assert "shape" not in plan.create.source.spec.model.model_fields_set


def test_a_model_that_cannot_be_read_is_refused_until_its_job_is_deleted() -> None:
    report = {"ok": False, "message": "401 Client Error: Unauthorized for https://hub/config.json"}
    plan = planned(**a_shape_job(report, REFUSED_EXIT_CODE))
    assert plan.accepted.reason == "UnknownModel"
    assert "spec.model.tokenSecretRef: the hub answered 401" in plan.accepted.message
    assert (plan.model_job, plan.delete, plan.create) == (None, (), None)


def test_a_read_that_failed_runs_again_after_a_while() -> None:
    parts = a_shape_job({"ok": False, "message": "502"}, 1)
    assert "502; retrying after 30 s" in planned(**parts, at=at(10)).accepted.message
    assert planned(**parts, at=at(31)).delete == (parts["model_jobs"][0].ref,)


def test_nothing_is_read_while_something_else_is_wrong() -> None:
    plan = planned(an_own_batch(engine={"extraArgs": ["--port=1"]}))
    assert (plan.accepted.reason, plan.model_job) == ("ReservedFlag", None)


def test_a_service_and_a_batch_of_one_name_read_a_model_in_jobs_of_their_own() -> None:
    service = a_service(NIGHT.name, a_spec(OWN), uid="uid-service")
    plan = plan_of(a_fleet(services=(service,)))
    preparation = plan.service_plans[NIGHT].preparation
    assert preparation is not None
    assert preparation.job_to_create is not None
    model_job = plan.batches[NIGHT].model_job
    assert model_job is not None
    assert model_job.name != preparation.job_to_create.name
    read = plan_of(a_fleet(services=(service,), **a_shape_job(READ, 0)))
    (of_service,) = (entry.preparation for entry in read.service_plans.values())
    assert of_service is not None
    assert (of_service.missing_shape is None, of_service.obsolete_jobs) == (False, ())
