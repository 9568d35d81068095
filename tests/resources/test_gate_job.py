"""The Jobs, claims and policies of gates as reviewed, and what is true of each of them."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.api.template_version import Platform
from tessera.domain.names import SERVICE_LABEL
from tessera.domain.observed.gates import GateRole, ServiceRevision
from tessera.domain.quality.gate_jobs import GateEndpoint, GateJobRequest, GateRun
from tessera.resources.gate_job import answers_claim_manifest, gate_job_manifest, shared_manifests
from tessera.resources.revisions import revision_manifest
from tessera.resources.runner import RunnerImage
from tests.builders import a_spec
from tests.domain.quality.gate_world import CHANGED, CHAT, STABLE, a_gate, a_gate_spec

Golden = Callable[..., None]
IMAGE = RunnerImage("tessera/batch:0.1.0")


def a_request(role: GateRole = "Candidate", **spec: Any) -> GateJobRequest:
    gate_spec = a_gate_spec(**spec)
    run = GateRun(
        gate=a_gate(gate_spec),
        spec=gate_spec,
        service=CHAT,
        role=role,
        digest=CHANGED if role == "Candidate" else STABLE,
        baseline=STABLE if role == "Candidate" else "",
        scorer="v1-r1",
    )
    return GateJobRequest(
        run=run,
        name="answers-0123456789-1",
        endpoint=GateEndpoint(address="10.0.0.2", model="chat"),
        active_deadline=timedelta(hours=2),
    )


def pod_of(request: GateJobRequest, **platform: Any) -> dict[str, Any]:
    body = gate_job_manifest(request, IMAGE, Platform(**platform)).body
    pod: dict[str, Any] = body["spec"]["template"]["spec"]
    return pod


def arguments(request: GateJobRequest) -> list[str]:
    container: list[str] = pod_of(request)["containers"][0]["args"]
    return container


def test_the_objects_of_a_gate_are_as_reviewed(golden: Golden) -> None:
    gate = a_gate()
    manifests = [
        gate_job_manifest(a_request(), IMAGE, Platform()),
        answers_claim_manifest(gate),
        *shared_manifests([gate], ["chat"], "tessera-system"),
    ]
    golden("gate", [dict(each.body) for each in manifests if each is not None])


def test_the_pod_has_no_rights_and_yields() -> None:
    pod = pod_of(a_request(), priority_classes=True)
    assert pod["serviceAccountName"] == "tessera-gate"
    assert pod["automountServiceAccountToken"] is False
    assert pod["priorityClassName"] == "tessera-batch"
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert all("projected" not in volume for volume in pod["volumes"])
    suite = next(each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "suite")
    assert suite["readOnly"] is True


def test_neither_a_service_nor_a_budget_takes_the_pod_for_a_replica() -> None:
    body = gate_job_manifest(a_request(), IMAGE, Platform()).body
    labels = body["spec"]["template"]["metadata"]["labels"]
    assert SERVICE_LABEL not in labels
    assert labels["app.kubernetes.io/component"] != "engine"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "--suite=/suite/suite.jsonl"),
        ({"suite": {"claim": {"claimName": "c", "path": "a/b.jsonl"}}}, "--suite=/suite/a/b.jsonl"),
        ({"suite": {"configMap": {"name": "s"}, "prompts": {"math": 40}}}, "--prompts=math=40"),
        ({"suite": {"configMap": {"name": "s"}, "digest": "5" * 64}}, f"--suite-digest={'5' * 64}"),
        ({"maxDropPoints": "3"}, "--max-drop-points=3"),
        ({"repeats": 3}, "--repeats=3"),
    ],
)
def test_the_runner_is_told_what_the_gate_says(spec: dict[str, Any], expected: str) -> None:
    assert expected in arguments(a_request(**spec))


def test_a_version_is_asked_for_answers_as_long_as_those_that_users_get() -> None:
    request = a_request()
    capped = replace(request, endpoint=replace(request.endpoint, max_output_tokens=64))
    assert "--max-output-tokens=64" in arguments(capped)
    assert not any("--max-output-tokens" in each for each in arguments(request))


def test_a_baseline_has_no_other_version() -> None:
    assert f"--baseline={STABLE}" in arguments(a_request())
    assert not any(each.startswith("--baseline") for each in arguments(a_request("Baseline")))


def test_only_a_first_version_needs_a_score_of_its_own() -> None:
    first = a_request(minScore="0.8")
    first = replace(first, run=replace(first.run, baseline=""))
    assert "--min-score=0.8" in arguments(first)
    assert not any(each.startswith("--baseline") for each in arguments(first))
    for role in ("Baseline", "Candidate"):
        assert not any("--min-score" in each for each in arguments(a_request(role, minScore="0")))


def test_only_files_of_named_digests_are_read() -> None:
    named = replace(a_request(), answers_digest="a" * 64, baseline_digest="b" * 64)
    digests = {f"--answers-digest={'a' * 64}", f"--baseline-digest={'b' * 64}"}
    assert digests <= {*arguments(named)}
    assert not any("-digest=" in each for each in arguments(a_request()))


def test_an_address_of_ipv6_stands_in_brackets_and_a_judge_has_its_own() -> None:
    request = replace(
        a_request(),
        endpoint=GateEndpoint(address="fd00::7", model="chat"),
        judge=GateEndpoint(address="10.1.0.1", model="judge"),
    )
    assert {"--url=http://[fd00::7]:8000", "--judge-url=http://10.1.0.1:8000"} <= {
        *arguments(request)
    }


def test_pods_of_gates_reach_engines_of_their_namespace_alone() -> None:
    policies = {
        each.name: each.body["spec"]
        for each in shared_manifests([a_gate()], [], "tessera-system")
        if each.kind.kind == "NetworkPolicy"
    }
    (policy,) = policies.values()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = policy["egress"]
    (peer,) = rule["to"]
    assert "namespaceSelector" not in peer
    assert [port["port"] for port in rule["ports"]] == [8000]


def test_a_version_is_recorded_as_it_was_written() -> None:
    spec = a_spec(engine={"extraArgs": ["--seed=7"]})
    revision = ServiceRevision(
        ref=Ref("team-a", "chat-0123456789"),
        service=CHAT,
        service_uid="uid-chat",
        number=2,
        digest=CHANGED,
        spec=spec,
        update="2026-11-20",
    )
    body = revision_manifest(revision).body
    assert body["revision"] == 2
    assert body["data"] == {
        "spec": {"model": {"uri": spec.model.uri}, "engine": {"extraArgs": ["--seed=7"]}},
        "update": "2026-11-20",
        "builderVersion": 1,
    }
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == (
        "InferenceService",
        "uid-chat",
        True,
    )


def by_gateway(request: GateJobRequest) -> dict[str, Any]:
    image = replace(IMAGE, gate_url="http://tessera-gateway-batches.tessera-system.svc:8082")
    body = gate_job_manifest(request, image, Platform()).body
    pod: dict[str, Any] = body["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("role", ["Baseline", "Candidate"])
def test_where_gateways_know_its_tenant_a_job_asks_them_with_a_token_for_nothing_else(
    role: GateRole,
) -> None:
    judged = {"judge": {"service": "judge"}}
    request = replace(
        a_request(role, **judged),
        has_tenant=True,
        endpoint=GateEndpoint(address="10.0.0.2", model="chat", variant="a100-1gpu"),
        judge=GateEndpoint(address="10.1.0.1", model="judge"),
    )
    pod = by_gateway(request)
    url = "http://tessera-gateway-batches.tessera-system.svc:8082"
    version = "stable" if role == "Baseline" else "candidate"
    assert {
        f"--url={url}",
        f"--model=chat@{version}",
        "--variant=a100-1gpu",
        f"--judge-url={url}",
        "--judge-model=judge@stable",
        "--token-file=/token/token",
    } <= {*pod["containers"][0]["args"]}
    [source] = [each["projected"]["sources"] for each in pod["volumes"] if "projected" in each]
    assert [each["serviceAccountToken"]["audience"] for each in source] == ["tessera-gate"]


def test_without_a_tenant_a_job_asks_the_engine_as_without_a_gateway() -> None:
    assert by_gateway(a_request()) == pod_of(a_request())


def test_pods_of_gates_that_ask_gateways_reach_these_and_names_alone() -> None:
    url = "http://tessera-gateway-batches.tessera-system.svc:8082"
    manifests = shared_manifests([a_gate()], ["chat"], "tessera-system", gateway=url)
    [policy] = [each.body["spec"] for each in manifests if each.kind.kind == "NetworkPolicy"]
    names, gateways = policy["egress"]
    assert "to" not in names
    assert {port["port"] for port in names["ports"]} == {53}
    [peer] = gateways["to"]
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "tessera-gateway"}
    assert "tessera-system" in str(peer["namespaceSelector"])
    assert [port["port"] for port in gateways["ports"]] == [8082]
