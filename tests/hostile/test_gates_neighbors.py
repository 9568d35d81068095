"""Names that lead out of the namespace or the volume of a gate, and what its Jobs would show."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.api.template_version import Platform
from tessera.batch_runner.errors import BatchError
from tessera.batch_runner.gate.suite import SuiteError, read_suite
from tessera.domain.kinds.kinds import QUALITY_GATES
from tessera.domain.quality.gate_jobs import GateEndpoint, GateJobRequest, GateRun, scorer_of
from tessera.resources.api_resources import JOBS
from tessera.resources.gate_job import gate_job_manifest, shared_manifests
from tessera.resources.runner import RunnerImage
from tests.builders import SMALL
from tests.domain.quality.gate_world import a_gate, a_gate_spec
from tests.reconcile.gated_operator import GATE, GatedOperator

pytestmark = pytest.mark.anyio

ELSEWHERE = ("team-b/answers", "../answers", "team-b.answers", "Answers", "answers\n", "a" * 64)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_gate_claim_or_judge_of_another_namespace_can_be_named(name: str) -> None:
    rollout = {"strategy": "Gated", "gateRef": name}
    with pytest.raises(ValidationError):
        InferenceServiceSpec.model_validate({"model": {"uri": SMALL}, "rollout": rollout})
    for fields in (
        {"suite": {"claim": {"claimName": name, "path": "a.jsonl"}}},
        {"suite": {"configMap": {"name": name}}},
        {"judge": {"service": name}},
    ):
        with pytest.raises(ValidationError):
            a_gate_spec(**fields)


async def test_a_gate_of_that_name_in_another_namespace_decides_nothing() -> None:
    operator = GatedOperator()
    await operator.settle(4)
    operator.cluster.discard(GATE)
    suite = {"suite": {"configMap": {"name": "suite"}}}
    foreign = {"metadata": {"name": GATE.name, "namespace": "team-b"}, "spec": suite}
    operator.cluster.put(QUALITY_GATES, foreign)
    operator.edit(7)
    await operator.settle(3)
    assert operator.condition("Progressing")["reason"] == "GateNotFound"
    assert operator.keys(JOBS.plural) == []


async def test_a_service_judges_no_change_of_its_own() -> None:
    operator = GatedOperator()
    operator.put_gate(judge={"service": "chat"})
    await operator.settle(4)
    operator.edit(7)
    await operator.settle(4)
    assert operator.keys(JOBS.plural) == []
    (accepted,) = operator.gate_status["conditions"]
    assert (accepted["status"], accepted["reason"]) == ("False", "JudgeNotFound")


def a_manifest(**spec: Any) -> Any:
    parsed = a_gate_spec(**spec)
    run = GateRun(
        gate=a_gate(parsed),
        spec=parsed,
        service=Ref("team-a", "chat"),
        role="Candidate",
        digest="d" * 64,
        baseline="b" * 64,
        scorer=scorer_of(parsed, ""),
    )
    request = GateJobRequest(
        run=run,
        name="answers-1",
        endpoint=GateEndpoint(address="10.0.0.2", model="--judge-url=http://evil.example"),
        active_deadline=parsed.timeout,
    )
    return gate_job_manifest(request, RunnerImage("tessera/batch:test"), Platform())


def pod_of(manifest: Any) -> Any:
    return manifest.body["spec"]["template"]["spec"]


def test_no_name_of_a_model_is_an_option_of_its_job() -> None:
    (container,) = pod_of(a_manifest())["containers"]
    options = [each.partition("=")[0] for each in container["args"]]
    assert "--judge-url" not in options


def test_a_job_of_a_gate_has_no_token_and_nothing_to_show_of_its_node() -> None:
    path = "../../proc/self/environ"
    pod = pod_of(a_manifest(suite={"claim": {"claimName": "suites", "path": path}}))
    assert pod["automountServiceAccountToken"] is False
    kinds = {kind for volume in pod["volumes"] for kind in volume} - {"name"}
    assert kinds == {"persistentVolumeClaim", "emptyDir"}
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounts["suite"] is True


def test_jobs_of_gates_reach_engines_of_their_namespace_alone() -> None:
    policies = [
        each.body
        for each in shared_manifests([a_gate()], ["chat"], "tessera-system")
        if each.body["kind"] == "NetworkPolicy"
    ]
    (jobs,) = (each for each in policies if "Egress" in each["spec"].get("policyTypes", ()))
    (rule,) = jobs["spec"]["egress"]
    assert all("namespaceSelector" not in peer and "ipBlock" not in peer for peer in rule["to"])


@pytest.mark.parametrize("content", [b"SECRET=swordfish\n", b'"swordfish"\n', b"[1,\nswordfish"])
def test_a_file_that_is_no_suite_is_not_shown_in_a_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "environ"
    file.write_bytes(content)
    with pytest.raises(SuiteError) as caught:
        read_suite(file)
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/"])
def test_a_file_without_an_end_is_no_suite(path: str) -> None:
    with pytest.raises(BatchError):
        read_suite(Path(path))
