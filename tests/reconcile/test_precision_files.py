"""Files in another precision, from the manifest to the engine, against an in-memory cluster."""

import json
from typing import Any

import pytest

from tessera.api.model_files import ModelShape
from tessera.domain.model.config import read_config
from tessera.domain.names import deployment_name
from tessera.resources.api_resources import JOBS, PODS
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW, SMALL
from tests.domain.model.test_config import config_of, expect_shape
from tests.memory_operator import CHAT, DEPLOYMENT, VARIANT, MemoryOperator, add_pool_and_node

FILES = "hf://acme/small-awq"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
LISTED = {"variants": [{"precision": "awq-int4", "uri": FILES}]}
IN_AWQ = DEPLOYMENT._replace(name=deployment_name("chat", f"{VARIANT}-awq-int4"))


@pytest.fixture
def operator() -> MemoryOperator:
    memory_operator = MemoryOperator()
    add_pool_and_node(memory_operator)
    return memory_operator


def shape_of_files(uri: str = SMALL, **keys: Any) -> ModelShape:
    return expect_shape(read_config(config_of(uri.removeprefix("hf://"), **keys)))


def jobs(operator: MemoryOperator) -> list[ObjectKey]:
    return [key for key in operator.cluster.objects if key.plural == JOBS.plural]


def run_job(operator: MemoryOperator, report: dict[str, Any], code: int = 0) -> str:
    """Add the pod of the only Job, which ended with a report; return the URI that it read."""
    (key,) = jobs(operator)
    job = operator.body(key)
    template = job["spec"]["template"]
    ended = {"exitCode": code, "finishedAt": NOW.isoformat()}
    terminated = {**ended, "message": json.dumps({"phase": "shape", **report})}
    owner = {"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}
    pod = {
        "metadata": {
            "name": f"{key.name}-x",
            "namespace": key.namespace,
            "creationTimestamp": NOW.isoformat(),
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner],
        },
        "status": {"containerStatuses": [{"state": {"terminated": terminated}}]},
    }
    operator.cluster.put(PODS, pod)
    (uri,) = [
        argument.removeprefix("--uri=")
        for argument in template["spec"]["containers"][0]["args"]
        if argument.startswith("--uri=")
    ]
    return str(uri)


def report_of(shape: ModelShape, commit: str = "c0ffee") -> dict[str, Any]:
    fields = shape.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"ok": True, "shape": fields, "commit": commit}


def reason(operator: MemoryOperator, kind: str) -> str:
    conditions = operator.body(CHAT)["status"]["conditions"]
    return next(str(each["reason"]) for each in conditions if each["type"] == kind)


async def test_files_are_read_then_served_and_their_job_is_deleted(
    operator: MemoryOperator,
) -> None:
    operator.serve(precision=LISTED)
    await operator.reconcile()
    assert reason(operator, "Accepted") == "ReadingModel"
    assert DEPLOYMENT not in operator.cluster.objects
    read = run_job(operator, report_of(shape_of_files(quantization_config=AWQ)))
    await operator.reconcile()
    arguments = operator.body(IN_AWQ)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert (read, arguments[0]) == (FILES, "acme/small-awq")
    assert "--revision=c0ffee" in arguments
    assert operator.body(CHAT)["status"]["precisions"][0]["revision"] == "c0ffee"
    await operator.reconcile()
    assert jobs(operator) == []
    assert (await operator.reconcile()).writes == 0


async def test_an_unknown_model_is_read_first_and_its_files_then(
    operator: MemoryOperator,
) -> None:
    operator.serve(model={"uri": "hf://acme/own"}, precision=LISTED)
    await operator.reconcile()
    assert run_job(operator, report_of(shape_of_files())) == "hf://acme/own"
    await operator.reconcile()
    await operator.reconcile()
    read = run_job(operator, report_of(shape_of_files(quantization_config=AWQ)))
    assert read == FILES
    await operator.reconcile()
    assert IN_AWQ in operator.cluster.objects


async def test_files_of_another_model_are_left_out_and_the_service_runs(
    operator: MemoryOperator,
) -> None:
    operator.serve(precision=LISTED)
    await operator.reconcile()
    other = shape_of_files("hf://Qwen/Qwen2.5-1.5B-Instruct", quantization_config=AWQ)
    run_job(operator, report_of(other))
    await operator.reconcile()
    assert DEPLOYMENT in operator.cluster.objects
    assert IN_AWQ not in operator.cluster.objects
    assert reason(operator, "Accepted") == "PrecisionRefused"
    assert "model_type qwen2 instead of llama" in json.dumps(operator.body(CHAT)["status"])


async def test_a_report_that_is_no_report_chooses_nothing(operator: MemoryOperator) -> None:
    operator.serve(precision=LISTED)
    await operator.reconcile()
    shape = shape_of_files(quantization_config=AWQ)
    run_job(operator, report_of(shape, commit="main --trust-remote-code"))
    await operator.reconcile()
    assert DEPLOYMENT in operator.cluster.objects
    assert operator.body(CHAT)["status"]["precisions"][0]["reason"] == "FilesNotRead"
