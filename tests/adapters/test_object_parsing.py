"""Objects of the API server are parsed into values."""

import gc
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tessera.adapters.kube import object_parsing as wire
from tessera.api.ref import Ref
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.api.template_version import EffectiveValues, PodTemplateVersionStatus
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    NODE_LAYOUTS,
    TENANT_BUDGETS,
)
from tessera.domain.names import template_deployment_name
from tessera.domain.observed.batches import BatchJob
from tessera.domain.observed.model_jobs import ModelJobRun, ObservedModelJob
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import ContainerExit, ObservedService
from tessera.domain.service.template_version import template_digest
from tests.memory_operator import DEPLOYMENT, VARIANT, replica_of

ENDED = {"terminated": {"exitCode": 2, "reason": "Error", "message": "no such flag\n"}}
RUNS = {"running": {"startedAt": "2026-11-20T12:00:40Z"}}
WAITS = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}


def test_a_service_that_is_being_deleted_is_known_as_such() -> None:
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat", "resourceVersion": "7"}
    body = {"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}}}
    terminating = body | {"metadata": meta | {"deletionTimestamp": "2026-11-20T12:00:00Z"}}
    assert wire.parse_own(INFERENCE_SERVICES, body).deleting is False
    assert wire.parse_own(INFERENCE_SERVICES, terminating).deleting is True


def test_a_claim_that_is_being_deleted_is_known_as_such() -> None:
    body = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    terminating = body | {"metadata": {"deletionTimestamp": "2026-11-20T12:00:00Z"}}
    assert wire.parse_claim(body).terminating is False
    assert wire.parse_claim(terminating).terminating is True


def a_deployment(**fields: Any) -> dict[str, Any]:
    managed = [{"manager": "tessera-operator", "operation": "Apply", "fieldsV1": {"f:spec": {}}}]
    return {
        "metadata": {"name": "chat-a100", "namespace": "team-a", "managedFields": managed},
        **fields,
    }


@pytest.mark.parametrize(("env_variables", "cached_versions"), [(1, 3), (400, 0)])
def test_former_versions_of_a_long_spec_are_not_retained(
    env_variables: int, cached_versions: int
) -> None:
    wire.cached_spec.cache_clear()
    env = [
        {"name": f"NAME_{index}", "value": "of 20 characters    "} for index in range(env_variables)
    ]
    for replicas in (1, 2, 3):
        spec = {"model": {"uri": "hf://a/b"}, "replicas": replicas, "podTemplate": {"env": env}}
        meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat", "resourceVersion": "7"}
        service = wire.parse_object(INFERENCE_SERVICES, {"metadata": meta, "spec": spec}).plan_input
        assert service is not None
    assert wire.cached_spec.cache_info().currsize == cached_versions


def test_what_a_spec_omits_is_that_of_its_class_in_the_installation() -> None:
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat", "resourceVersion": "7"}
    body = {"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}}}
    slower = ServiceClasses.model_validate({"Interactive": {"ttftP95": "2s"}})
    for classes, seconds in ((BUILT_IN_CLASSES, 1), (slower, 2), (BUILT_IN_CLASSES, 1)):
        service = wire.parse_object(INFERENCE_SERVICES, body, classes).plan_input
        assert isinstance(service, ObservedService)
        assert service.spec is not None
        assert service.spec.slo.ttft_p95 == timedelta(seconds=seconds)


def test_pods_and_jobs_of_a_batch_carry_its_uid() -> None:
    labels = {"tessera.dev/batch": "night", "tessera.dev/batch-uid": "uid-night"}
    meta = {
        "name": "night-a1",
        "namespace": "team-a",
        "uid": "uid-night-a1",
        "creationTimestamp": "2026-11-20T12:00:00Z",
        "labels": labels,
        "ownerReferences": [{"kind": "Job", "uid": "uid-job", "controller": True}],
    }
    job, pod = wire.parse_job({"metadata": meta}), wire.parse_pod({"metadata": meta})
    assert isinstance(job, BatchJob)
    assert pod is not None
    assert pod.batch_run is not None
    assert (job.batch_uid, pod.batch_run.batch_uid) == ("uid-night", "uid-night")


def test_the_pod_of_a_model_job_is_no_replica_and_brings_its_report() -> None:
    labels = {"tessera.dev/model-job": "shape", "tessera.dev/model-job-for": "chat"}
    meta = {
        "name": "chat-shape-1",
        "namespace": "team-a",
        "uid": "uid-1",
        "creationTimestamp": "2026-11-20T12:00:00Z",
        "labels": labels,
        "ownerReferences": [{"kind": "Job", "uid": "uid-job", "controller": True}],
    }
    ended = {"exitCode": 3, "message": "no", "finishedAt": "2026-11-20T12:00:05Z"}
    status = {"containerStatuses": [{"state": {"terminated": ended}}]}
    job, pod = (
        wire.parse_job({"metadata": meta}),
        wire.parse_pod({"metadata": meta, "status": status}),
    )
    assert isinstance(job, ObservedModelJob)
    assert (job.service, job.task) == (Ref("team-a", "chat"), "shape")
    assert pod is not None
    assert pod.service.name == ""
    assert pod.model_job_run == ModelJobRun(
        service=Ref("team-a", "chat"), job_uid="uid-job", exit_code=3, report="no"
    )


def test_devices_of_former_pods_are_not_retained() -> None:
    def parse(edit: int) -> None:
        body = replica_of(DEPLOYMENT, "chat-0")
        body["metadata"]["uid"] = "uid-chat-0"
        limits = {f"nvidia.com/mig-{edit}.{index}": "1" for index in range(1000)}
        body["spec"]["containers"][0]["resources"] = {"limits": limits}
        pod = wire.parse_pod(body)
        assert pod is not None
        assert len(pod.devices) == 1000

    parse(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for edit in range(1, 5):
            parse(edit)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 4 < 4096, "bytes for each pod that is gone"


@pytest.mark.parametrize(
    ("args", "limits"),
    [
        (
            ["/models/a", "--max-num-seqs=64", "--max-num-batched-tokens=2048"],
            (64, 2048, None),
        ),
        (
            ["--max-num-seqs=many", "--max-num-batched-tokens", "2048", "--max-model-len=8192"],
            (None, None, 8192),
        ),
    ],
)
def test_a_replica_brings_the_limits_of_its_command_line(
    args: list[str], limits: tuple[int | None, int | None, int | None]
) -> None:
    body = replica_of(DEPLOYMENT, "chat-0")
    body["metadata"]["uid"] = "uid-chat-0"
    body["spec"]["containers"][0]["args"] = args
    pod = wire.parse_pod(body)
    assert pod is not None
    assert (pod.max_num_seqs, pod.max_num_batched_tokens, pod.max_model_len) == limits


@pytest.mark.parametrize(
    ("image", "args", "same"),
    [
        ("vllm:1", ["org/a", "--revision=1", "--tensor-parallel-size=4"], True),
        ("vllm:1", ["org/a", "--revision=1", "--max-num-seqs=9", "--max-model-len=10"], True),
        ("vllm:1", ["org/a", "--revision=2"], False),
        ("vllm:1", ["org/b", "--revision=1"], False),
        ("vllm:1", ["org/a", "--revision=1", "--quantization=fp8"], False),
        ("vllm:1", ["org/a", "--revision=1", "--chat-template=/chat-template/a"], False),
        ("vllm:1", ["org/a", "--revision=1", "--enable-lora"], False),
        ("vllm:2", ["org/a", "--revision=1"], False),
    ],
)
def test_replicas_have_the_same_engine_if_they_answer_alike(
    image: str, args: list[str], *, same: bool
) -> None:
    def digest(image: str, args: list[str]) -> str:
        body = replica_of(DEPLOYMENT, "chat-0")
        body["metadata"]["uid"] = "uid-chat-0"
        body["spec"]["containers"][0] |= {"name": "engine", "image": image, "args": args}
        pod = wire.parse_pod(body)
        assert pod is not None
        return pod.engine

    assert (digest(image, args) == digest("vllm:1", ["org/a", "--revision=1"])) is same


@pytest.mark.parametrize(
    ("state", "last"),
    [(ENDED, {}), (WAITS, ENDED), ({"running": {}}, ENDED)],
    ids=["ended", "waits", "runs again"],
)
def test_the_last_exit_of_an_engine_is_known_until_it_is_ready_again(
    state: dict[str, Any], last: dict[str, Any]
) -> None:
    def exit_of(*, ready: bool) -> ContainerExit | None:
        container = {"name": "engine", "ready": ready, "state": state, "lastState": last}
        body = replica_of(DEPLOYMENT, "chat-0")
        body["metadata"]["uid"] = "uid-chat-0"
        pod = wire.parse_pod({**body, "status": {"containerStatuses": [container]}})
        return pod.last_exit if pod is not None else None

    assert exit_of(ready=False) == ContainerExit(code=2, reason="Error", log_tail="no such flag")
    assert exit_of(ready=True) is None


@pytest.mark.parametrize(
    ("container", "started"),
    [
        ({"name": "engine", "restartCount": 0, "state": RUNS}, "2026-11-20T12:00:40+00:00"),
        ({"name": "engine", "restartCount": 1, "state": RUNS}, None),
        ({"name": "sidecar", "restartCount": 0, "state": RUNS}, None),
        ({"name": "engine", "state": WAITS}, None),
        ({"name": "engine", "state": ENDED}, None),
    ],
    ids=["first run", "second run", "another container", "waits", "ended"],
)
def test_when_the_engine_started_is_known_during_its_first_run(
    container: dict[str, Any], started: str | None
) -> None:
    body = replica_of(DEPLOYMENT, "chat-0")
    body["metadata"]["uid"] = "uid-chat-0"
    pod = wire.parse_pod({**body, "status": {"containerStatuses": [container]}})
    assert pod is not None
    assert (pod.started.isoformat() if pod.started else None) == started


def test_why_no_pods_can_be_created_is_read_from_their_deployment() -> None:
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": 'pods "chat-0" is forbidden: exceeded quota: small',
    }
    workload = wire.parse_workload(a_deployment(status={"conditions": [failure]}))
    assert workload is not None
    assert workload.replica_failure == 'pods "chat-0" is forbidden: exceeded quota: small'
    resolved = failure | {"status": "False"}
    workload = wire.parse_workload(a_deployment(status={"conditions": [resolved]}))
    assert workload is not None
    assert workload.replica_failure is None


def test_words_of_a_policy_have_no_control_characters_and_are_cut() -> None:
    words = "denied: \x1b[31mred\r\nline \u202etwo\x00" + "x" * 10_000
    failure = {"type": "ReplicaFailure", "status": "True", "message": words}
    workload = wire.parse_workload(a_deployment(status={"conditions": [failure]}))
    assert workload is not None
    refusals = (
        workload.replica_failure,
        wire.last_event_message([{"lastTimestamp": "2026", "message": words}]),
    )
    for refusal in refusals:
        assert refusal is not None
        assert refusal.startswith("denied: [31mred line two x")
        assert (len(refusal), refusal[-1]) == (600, "…")


def test_the_annotation_that_asks_for_an_update_is_read() -> None:
    annotations = {"tessera.dev/update": "2026-11-20T12:00:00Z"}
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat", "annotations": annotations}
    service = wire.parse_own(
        INFERENCE_SERVICES, {"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}}}
    )
    assert service is not None
    assert service.update == "2026-11-20T12:00:00Z"


def test_of_a_status_of_another_version_is_read_what_can_be_read() -> None:
    template_version = {
        "builderVersion": 7,
        "platform": {"hubEndpoint": "https://hub.example.org", "later": True},
        "templateHash": "digest",
        "effectiveValues": {
            "engineVersion": "0.31.0",
            "drainTimeout": "60s",
            "maxModelLen": 8192,
            "maxNumSeqs": 3,
            "maxNumBatchedTokens": 2048,
            "weightsMib": 2357,
            "later": 1,
        },
    }
    status = {
        "podTemplateVersion": template_version,
        "scaling": {"desiredReplicas": "many"},
        "later": {},
        "replicas": 2,
    }
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat"}
    service = wire.parse_own(INFERENCE_SERVICES, {"metadata": meta, "spec": {}, "status": status})
    assert service is not None
    assert service.status.pod_template_version is not None
    assert (
        service.status.pod_template_version.builder_version,
        service.status.pod_template_version.effective_values.max_num_seqs,
    ) == (7, 3)
    assert service.status.pod_template_version.platform.hub_endpoint == "https://hub.example.org"
    assert (service.status.replicas, service.status.scaling) == (2, None)


def test_what_another_version_says_in_a_condition_of_a_batch_does_not_hide_its_status() -> None:
    condition = {
        "type": "Accepted",
        "status": "True",
        "reason": "Valid",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-20T12:00:00Z",
        "later": 1,
    }
    status = {"conditions": [condition], "observedGeneration": 1}
    meta = {"name": "night", "namespace": "team-a", "uid": "uid-night"}
    batch = wire.parse_own(BATCH_INFERENCES, {"metadata": meta, "spec": {}, "status": status})
    assert [each.reason for each in batch.status.conditions] == ["Valid"]


def test_what_another_version_says_of_a_pool_beside_its_layouts_does_not_hide_them() -> None:
    unit = {"node": "a100-0", "gpus": [0], "phase": "Draining", "since": "2026-11-20T12:00:00Z"}
    status = {"mig": {"units": [{**unit, "later": 1}], "later": {}}, "later": True}
    pool = wire.parse_own(
        ACCELERATOR_POOLS, {"metadata": {"name": "a100"}, "spec": {}, "status": status}
    )
    assert pool.status.mig is not None
    assert [(unit.node, unit.gpus) for unit in pool.status.mig.units] == [("a100-0", (0,))]


RECORD = PodTemplateVersionStatus(
    builder_version=2,
    template_hash="1234",
    effective_values=EffectiveValues(
        engine_version="0.32.0",
        drain_timeout=timedelta(seconds=60),
        max_model_len=8192,
        max_num_seqs=30,
        max_num_batched_tokens=256,
        weights_mib=2358,
    ),
)
DIGEST = template_digest(RECORD)


def a_template_deployment(record: str | None, digest: str = DIGEST) -> dict[str, Any]:
    annotations = {} if record is None else {"tessera.dev/template-record": record}
    labels = {"tessera.dev/service": "chat", "tessera.dev/variant": "a100"}
    labels |= {"tessera.dev/template": digest} if digest else {}
    body = a_deployment(spec={"selector": {"matchLabels": labels}})
    body["metadata"] |= {
        # What anybody may edit, unlike the selector.
        "labels": labels | {"tessera.dev/template": "edited"},
        "annotations": annotations,
        "creationTimestamp": "2026-11-20T11:59:00Z",
    }
    return body


@pytest.mark.parametrize("digest", [DIGEST, ""])
def test_the_template_of_a_deployment_is_read_with_what_it_was_made_from(digest: str) -> None:
    record = RECORD.model_dump_json(by_alias=True, exclude_none=True)
    workload = wire.parse_workload(a_template_deployment(record, digest))
    assert workload is not None
    assert (workload.template_digest, workload.record) == (digest, RECORD)
    assert workload.created == datetime(2026, 11, 20, 11, 59, tzinfo=UTC)
    assert workload.record is not None
    assert template_digest(workload.record) == DIGEST


@pytest.mark.parametrize("record", [None, "", "{}", "[", '{"builderVersion": "x"}', "null"])
def test_a_record_that_cannot_be_read_is_none_and_the_deployment_is_known(
    record: str | None,
) -> None:
    workload = wire.parse_workload(a_template_deployment(record))
    assert workload is not None
    assert (workload.record, workload.template_digest) == (None, DIGEST)


def a_template_pod(digest: str, deployment: str) -> dict[str, Any]:
    """A pod with the labels of a template, whose ReplicaSet is that of a Deployment."""
    body = replica_of(DEPLOYMENT, "chat-0")
    meta = body["metadata"]
    meta["labels"]["tessera.dev/template"] = digest
    meta["ownerReferences"][0]["name"] = f"{deployment}-one"
    return body | {"metadata": meta | {"uid": "uid-0", "resourceVersion": "7"}}


def test_a_replica_of_a_later_template_is_one_of_its_own_deployment_alone() -> None:
    """Labels that somebody copied make no replica: the ReplicaSet has to be that of the template.

    A first Deployment's ReplicaSet never makes a pod with a digest.
    """
    own = template_deployment_name("chat", VARIANT, DIGEST)
    pod = wire.parse_pod(a_template_pod(DIGEST, own))
    assert pod is not None
    assert (pod.service, pod.variant) == (Ref("team-a", "chat"), VARIANT)
    assert pod.template_digest == DIGEST
    other = template_deployment_name("chat", VARIANT, "fedcba9876543210")
    for deployment in (other, DEPLOYMENT.name):
        foreign = wire.parse_pod(a_template_pod(DIGEST, deployment))
        assert foreign is not None
        assert (foreign.service.name, foreign.variant, foreign.template_digest) == ("", "", "")


def test_a_replica_of_a_first_deployment_has_no_digest() -> None:
    body = replica_of(DEPLOYMENT, "chat-0")
    body["metadata"] |= {"uid": "uid-0", "resourceVersion": "7"}
    pod = wire.parse_pod(body)
    assert pod is not None
    assert (pod.variant, pod.template_digest) == (VARIANT, "")
    body["metadata"]["ownerReferences"][0]["name"] = (
        f"{template_deployment_name('chat', VARIANT, DIGEST)}-one"
    )
    foreign = wire.parse_pod(body)
    assert foreign is not None
    assert (foreign.variant, foreign.template_digest) == ("", "")


@pytest.mark.parametrize("pod", ["x", "team-a/chat/0", "", "team a/chat-0"])
def test_a_node_layout_that_names_no_pod_counts_as_no_report(pod: str) -> None:
    observed_slice = {"profile": "7g.80gb", "start": 0, "pods": [pod]}
    gpu = {"index": 0, "uuid": "GPU-0", "product": "A100", "slices": [observed_slice]}
    meta = {"name": "a100-0", "uid": "uid-a100-0", "resourceVersion": "7", "generation": 1}
    body = {"metadata": meta, "status": {"gpus": [gpu], "driverVersion": "580.1"}}
    layout = wire.parse_object(NODE_LAYOUTS, body).plan_input
    assert isinstance(layout, ObservedNodeLayout)
    assert layout.status is None


def test_an_accepted_spec_with_fields_of_a_newer_version_stays_readable() -> None:
    spec = {
        "owner": "team-a@example.org",
        "tenant": {"namespaces": ["team-a"], "clusters": ["east"]},
        "limits": [{"window": "Day", "amount": "10", "soft": True}],
        "ceiling": "5",
    }
    body = {"metadata": {"name": "team-a"}, "spec": spec, "status": {"acceptedSpec": spec}}
    budget = wire.parse_own(TENANT_BUDGETS, body)
    assert (budget.spec, budget.record_lost) == (None, False)
    assert budget.named_namespaces == ("team-a",)
    assert budget.status.accepted_spec is not None
    assert budget.status.accepted_spec.limits[0].amount == 10


@pytest.mark.parametrize(
    ("taint", "schedulable"),
    [("aws-node-termination-handler/spot-itn", False), ("example.org/gpus", True)],
)
def test_a_node_that_terminates_gets_no_more_pods(taint: str, schedulable: bool) -> None:
    body: dict[str, Any] = {
        "metadata": {"name": "spot-0"},
        "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    node = wire.parse_node(body)
    assert (node.schedulable, node.kubelet_ready) == (schedulable, True)
