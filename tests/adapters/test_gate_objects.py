"""Objects of gates are parsed into values."""

from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_job, parse_object, parse_pod
from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import QUALITY_GATES
from tessera.domain.observed.gates import GateJob, GateJobRun, ObservedGate, ServiceRevision
from tessera.domain.quality.change import gated_digest
from tessera.resources.api_resources import CONTROLLER_REVISIONS

OWNER = {
    "apiVersion": "tessera.dev/v1alpha1",
    "kind": "InferenceService",
    "name": "chat",
    "uid": "uid-chat",
    "controller": True,
}
GATE_LABELS = {
    "tessera.dev/gate": "answers",
    "tessera.dev/gate-for": "chat",
    "tessera.dev/gate-role": "candidate",
}


def a_revision(manager: str = "tessera-operator", **fields: Any) -> dict[str, Any]:
    managed = [{"manager": manager, "operation": "Apply", "fieldsV1": {"f:data": {}}}]
    return {
        "metadata": {
            "name": "chat-1",
            "namespace": "team-a",
            "uid": "uid-revision",
            "managedFields": managed,
            "ownerReferences": [OWNER],
        },
        "revision": 3,
        "data": {
            "spec": {"model": {"uri": "hf://a/b"}},
            "model": {"uri": "hf://a/b", "revision": "c0ffee", "ofANewerVersion": 1},
            "precisions": [{"precision": "fp8", "uri": "hf://a/c", "reason": "FilesMatch"}],
            "update": "2",
            "builderVersion": 4,
        },
        **fields,
    }


def parsed(body: dict[str, Any]) -> Any:
    return parse_object(CONTROLLER_REVISIONS, body)


def test_a_revision_has_all_that_templates_are_built_from() -> None:
    revision = parsed(a_revision()).plan_input
    assert isinstance(revision, ServiceRevision)
    assert (revision.service, revision.service_uid) == (Ref("team-a", "chat"), "uid-chat")
    assert (revision.number, revision.update, revision.builder_version) == (3, "2", 4)
    assert revision.digest == gated_digest(revision.spec, "2")
    assert revision.spec.model_dump(mode="json", by_alias=True, exclude_unset=True) == {
        "model": {"uri": "hf://a/b"}
    }
    assert revision.model is not None
    assert revision.model.revision == "c0ffee"
    assert [precision.precision for precision in revision.precisions] == ["fp8"]


@pytest.mark.parametrize(
    "foreign",
    [
        a_revision(manager="kubectl"),
        a_revision(metadata=a_revision()["metadata"] | {"ownerReferences": []}),
        a_revision(
            metadata=a_revision()["metadata"]
            | {"ownerReferences": [OWNER | {"apiVersion": "apps/v1", "kind": "DaemonSet"}]}
        ),
    ],
    ids=["another manager", "no owner", "a DaemonSet"],
)
def test_a_revision_of_somebody_else_is_no_input(foreign: dict[str, Any]) -> None:
    observed = parsed(foreign)
    assert (observed.plan_input, observed.malformed) == (None, False)


@pytest.mark.parametrize(
    "hostile",
    [
        {"data": None},
        {"data": []},
        {"data": {"spec": {"model": {"uri": "hf://a/b"}, "replicas": "many"}}},
        {"data": {"spec": {"model": {"uri": "hf://a/b" + "c" * 300_000}}}},
        {"data": a_revision()["data"] | {"model": "hf://a/b"}},
        {"data": a_revision()["data"] | {"precisions": [{}]}},
        {"data": a_revision()["data"] | {"builderVersion": "4x"}},
        {"revision": "3"},
        {"revision": -1},
        {"data": a_revision()["data"] | {"update": 1}},
    ],
)
def test_a_revision_that_cannot_be_read_is_malformed(hostile: dict[str, Any]) -> None:
    observed = parsed(a_revision(**hostile))
    assert (observed.plan_input, observed.malformed) == (None, True)


def test_a_gate_with_an_invalid_spec_says_why() -> None:
    meta = {"name": "answers", "namespace": "team-a", "uid": "uid-gate", "generation": 2}
    body = {"metadata": meta, "spec": {"suite": {"configMap": {"name": "suite"}}}}
    gate = parse_object(QUALITY_GATES, body).plan_input
    invalid = parse_object(QUALITY_GATES, body | {"spec": {"minPrompts": 1}}).plan_input
    assert isinstance(gate, ObservedGate)
    assert isinstance(invalid, ObservedGate)
    assert (gate.problem, gate.spec and gate.spec.require) == (None, "NotWorse")
    assert invalid.spec is None
    assert invalid.problem is not None
    assert "spec.minPrompts" in invalid.problem


def test_the_job_of_a_gate_names_what_it_asks() -> None:
    meta: dict[str, Any] = {
        "name": "answers-d1",
        "namespace": "team-a",
        "uid": "uid-job",
        "labels": GATE_LABELS,
    }
    meta["annotations"] = {"tessera.dev/gate-digest": "d1"}
    job = parse_job({"metadata": meta})
    assert isinstance(job, GateJob)
    assert (job.gate, job.service) == (Ref("team-a", "answers"), Ref("team-a", "chat"))
    assert (job.role, job.digest, job.failed) == ("Candidate", "d1", False)
    other = GATE_LABELS | {"tessera.dev/gate-role": "judge"}
    assert parse_job({"metadata": meta | {"labels": other}}) is None


def test_the_pod_of_a_gate_is_no_replica_and_brings_its_report() -> None:
    owner = {"kind": "Job", "name": "answers-d1", "uid": "uid-job", "controller": True}
    meta = {
        "name": "answers-d1-x7",
        "namespace": "team-a",
        "uid": "uid-pod",
        "creationTimestamp": "2026-11-20T12:00:00Z",
        "labels": GATE_LABELS,
        "ownerReferences": [owner],
    }
    running = {"phase": "Running", "podIP": "10.0.0.7"}
    ended = running | {
        "phase": "Succeeded",
        "containerStatuses": [
            {"name": "gate", "state": {"terminated": {"exitCode": 0, "message": "{}"}}}
        ],
    }
    pods = [parse_pod({"metadata": meta, "status": status}) for status in (running, ended)]
    assert [pod and pod.gate_job_run for pod in pods] == [
        GateJobRun(job_uid="uid-job", address="10.0.0.7"),
        GateJobRun(job_uid="uid-job", exit_code=0, report="{}"),
    ]
    assert [pod and (pod.service.name, pod.unmanaged) for pod in pods] == [("", False)] * 2
    without_owner = {**meta, "ownerReferences": []}
    assert parse_pod({"metadata": without_owner, "status": running}) is None
