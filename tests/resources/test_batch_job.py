"""The Jobs of batches as reviewed, and what must hold in every one of them."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tessera.api.recipe import Platform, PodTemplateVersion
from tessera.domain.batch.names import job_name
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spot_nodes import DISRUPTION_TAINTS, SPOT_LABELS
from tessera.domain.names import deployment_name
from tessera.domain.placement.checks import RESERVED
from tessera.domain.vllm import flags as vllm_flags
from tessera.resources import namespace_objects as namespace
from tessera.resources.batch_job import RunnerImage, batch_job_manifest
from tessera.resources.manifest import owner_of
from tests.batch_builders import (
    a_batch,
    a_batch_spec,
    a_checked_situation,
    a_situation,
    decided,
)
from tests.builders import A100, MEDIUM, a_node, a_pool, a_service, a_spec

Golden = Callable[..., None]
IMAGE = RunnerImage("tessera/batch:0.1.0")

MARKS = {
    "aws": {"eks.amazonaws.com/capacityType": "SPOT"},
    "karpenter": {"karpenter.sh/capacity-type": "spot"},
    "gcp": {"cloud.google.com/gke-spot": "true"},
    "azure": {"kubernetes.azure.com/scalesetpriority": "spot"},
}


def on_cloud(marks: dict[str, str], **spec: Any) -> Situation:
    """A spot pool of a cloud, whose nodes carry its marks."""
    selector = {"nvidia.com/gpu.product": A100, **marks}
    return a_checked_situation(
        a_batch(a_batch_spec(model={"uri": MEDIUM}, **spec)),
        pools=(a_pool("a100-spot", "0.80", tier="Spot", nodeSelector=selector),),
        nodes=(a_node("a100-spot", {"3g.40gb": 2}, labels=marks),),
    )


def on_demand() -> Situation:
    """Two whole GPUs, for a service's model from a claim with a token and its own spot policy."""
    shape = {
        "parameters": 70_000_000_000,
        "layers": 80,
        "attentionHeads": 64,
        "kvHeads": 8,
        "headDim": 128,
        "maxPositionEmbeddings": 131072,
    }
    service = a_spec(
        "pvc://weights/llama",
        model={"shape": shape, "servedName": "llama", "tokenSecretRef": {"name": "hub"}},
        precision={"variants": [{"precision": "fp8"}]},
        engine={"extraArgs": ["--max-logprobs=20"]},
    )
    spec = a_batch_spec(
        model=None,
        service="chat",
        spot={"policy": "Never"},
        errors="jobs/left-over.jsonl",
        retries=5,
    )
    return a_checked_situation(
        a_batch(spec),
        services={"chat": service},
        pools=(a_pool("a100", "2.00", tier="OnDemand"),),
        nodes=(a_node("a100", whole=2),),
    )


SITUATIONS = {
    "aws-spot": on_cloud(MARKS["aws"]),
    "karpenter-spot": on_cloud(MARKS["karpenter"]),
    "gcp-spot": on_cloud(MARKS["gcp"]),
    "azure-spot": on_cloud(MARKS["azure"]),
    "own-spot": on_cloud({"rack": "r7"}),
    "on-demand": on_demand(),
    "check": a_situation(),
}
ATTEMPTS = [name for name in SITUATIONS if name != "check"]
SPOT = [name for name in ATTEMPTS if name.endswith("spot")]


def body(name: str) -> dict[str, Any]:
    got = decided(SITUATIONS[name])
    assert got.create is not None
    assert got.batch.spec is not None
    return dict(
        batch_job_manifest(got.batch, got.batch.spec, got.create, IMAGE, PodTemplateVersion()).body
    )


def pod(name: str) -> dict[str, Any]:
    found: dict[str, Any] = body(name)["spec"]["template"]["spec"]
    return found


def runner(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    assert isinstance(found, dict)
    return found


def engine(name: str) -> dict[str, Any]:
    (found,) = pod(name)["initContainers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_jobs_of_a_batch_are_as_reviewed(name: str, golden: Golden) -> None:
    mark = MARKS.get(name.removesuffix("-spot"))
    if mark is None:
        golden(f"batch-{name}", [body(name)])
    else:
        golden("batch-cloud-spot", [body(name)], mark=yaml.safe_dump(mark).strip())


def test_the_shared_objects_of_batches_are_as_reviewed(golden: Golden) -> None:
    batches = [owner_of(a_batch())]
    objects = [
        namespace.batch_service_account(batches),
        namespace.batch_role_binding(batches),
        namespace.batch_network_policy(batches, "tessera-system"),
    ]
    golden("batch-namespace", [dict(one.body) for one in objects])


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_job_makes_one_pod_and_no_second(name: str) -> None:
    spec = body(name)["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == (24 * 60 + 10) * 60, "without an operator it ends too"
    (owner,) = body(name)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"], owner["uid"]) == (
        "BatchInference",
        True,
        "uid-night",
    )


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_container_is_restricted(name: str) -> None:
    found = pod(name)
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (found["automountServiceAccountToken"], found["enableServiceLinks"]) == (False, False)
    for container in (*found.get("initContainers", ()), *found["containers"]):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", SITUATIONS)
def test_pods_are_found_as_engines_but_belong_to_no_service(name: str) -> None:
    for labels in (
        body(name)["metadata"]["labels"],
        body(name)["spec"]["template"]["metadata"]["labels"],
    ):
        assert labels["app.kubernetes.io/component"] == "engine"
        assert labels["tessera.dev/batch"] == "night"
        assert labels["tessera.dev/attempt"] == ("check" if name == "check" else "1")
        assert "tessera.dev/service" not in labels


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_engine_is_up_before_the_runner_and_leaves_after_it(name: str) -> None:
    sidecar = engine(name)
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert not {"lifecycle", "readinessProbe"} & set(sidecar)
    assert "--shutdown-timeout=0" in sidecar["args"]
    assert pod(name)["terminationGracePeriodSeconds"] == 12


@pytest.mark.parametrize("name", ATTEMPTS)
def test_engines_of_batches_get_flags_that_their_version_takes(name: str) -> None:
    table = vllm_flags.version_facts("0.32.0")
    assert table is not None
    args = engine(name)["args"]
    assert vllm_flags.check(args, table) == ()
    assert set(vllm_flags.parse(args, table)) - set(RESERVED) <= {"max_logprobs"}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_runner_knows_its_number_and_its_engine(name: str) -> None:
    args = runner(name)["args"]
    assert args[0] == "run"
    for part in (
        "--attempt=1",
        "--batch=team-a/night",
        "--work=/claim/.tessera/uid-night",
        "--engine=http://$(POD_IP):8000",
        "--host=$(POD_IP)",
        "--port=8001",
        "--report=/dev/termination-log",
    ):
        assert part in args
    sequences = next(a for a in engine(name)["args"] if a.startswith("--max-num-seqs="))
    assert f"--concurrency={2 * int(sequences.partition('=')[2])}" in args


@pytest.mark.parametrize("name", ATTEMPTS)
def test_only_the_runner_gets_a_token(name: str) -> None:
    mounts = {one["name"] for one in engine(name)["volumeMounts"]}
    assert not mounts & {"token", "claim"}
    assert {"token", "claim"} <= {one["name"] for one in runner(name)["volumeMounts"]}
    (token,) = [one for one in pod(name)["volumes"] if one["name"] == "token"]
    assert [next(iter(source)) for source in token["projected"]["sources"]] == [
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    ]


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_mount_has_its_volume(name: str) -> None:
    found = pod(name)
    volumes = [one["name"] for one in found["volumes"]]
    mounts = {
        mount["name"]
        for container in (*found.get("initContainers", ()), *found["containers"])
        for mount in container["volumeMounts"]
    }
    assert sorted(mounts) == sorted(volumes)


def test_a_check_takes_no_gpu_and_no_token() -> None:
    found = pod("check")
    assert "initContainers" not in found
    assert "nodeSelector" not in found
    assert runner("check")["resources"]["limits"] == {"memory": "1Gi"}
    assert not any("token" in volume["name"] for volume in found["volumes"])
    assert runner("check")["args"] == [
        "check",
        "--input=/claim/jobs/questions.jsonl",
        "--output=/claim/jobs/answers.jsonl",
        "--work=/claim/.tessera/uid-night",
        "--report=/dev/termination-log",
    ]


def tolerated(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pod(name)["tolerations"]
    return found


@pytest.mark.parametrize("name", SPOT)
def test_spot_pods_endure_the_marks_of_every_cloud_and_no_end(name: str) -> None:
    keys = {one["key"]: one for one in tolerated(name)}
    for key, value in SPOT_LABELS:
        assert keys[key] == {
            "key": key,
            "operator": "Equal",
            "value": value,
            "effect": "NoSchedule",
        }
    for state in ("unreachable", "not-ready"):
        told = keys[f"node.kubernetes.io/{state}"]
        assert (told["effect"], told["tolerationSeconds"]) == ("NoExecute", 5)
    assert not [
        key
        for key in keys
        if key in DISRUPTION_TAINTS and not key.startswith("node.kubernetes.io/")
    ]


def test_pods_on_on_demand_hardware_tolerate_no_spot_taints() -> None:
    assert [one["key"] for one in tolerated("on-demand")] == ["nvidia.com/gpu"]
    assert "affinity" not in pod("on-demand")


@pytest.mark.parametrize("name", SPOT)
def test_spot_pods_ask_for_the_mark_where_there_is_one(name: str) -> None:
    if name == "own-spot":
        assert "affinity" not in pod(name), "no node of the pool could ever satisfy it"
        return
    required = pod(name)["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    terms = [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
    assert terms == [
        [{"key": key, "operator": "In", "values": [value]}] for key, value in SPOT_LABELS
    ]
    cloud = name.removesuffix("-spot")
    assert any(
        MARKS[cloud].get(one["key"]) in one["values"]
        for expressions in terms
        for one in expressions
    ), "a node of this cloud satisfies one term"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempts_are_not_moved_for_tidiness(name: str) -> None:
    assert body(name)["spec"]["template"]["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


@pytest.mark.parametrize("name", ["check", "own-spot"])
def test_private_registries_are_reached_with_the_secrets_of_the_chart(name: str) -> None:
    got = decided(SITUATIONS[name])
    assert got.create is not None
    assert got.batch.spec is not None
    image = RunnerImage("private/batch:1", "Always", ("registry",))
    recipe = PodTemplateVersion(platform=Platform(image_pull_secrets=("mirror", "registry")))
    made = batch_job_manifest(got.batch, got.batch.spec, got.create, image, recipe).body
    made = made["spec"]["template"]["spec"]
    (container,) = made["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("private/batch:1", "Always")
    assert made["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]


def test_a_service_lends_model_token_and_flags() -> None:
    sidecar = engine("on-demand")
    assert "--served-model-name=llama" in sidecar["args"]
    assert "--max-logprobs=20" in sidecar["args"]
    assert "--model=llama" in runner("on-demand")["args"]
    (token,) = [one for one in sidecar["env"] if one["name"] == "HF_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert "--errors=/claim/jobs/left-over.jsonl" in runner("on-demand")["args"]
    assert "--retries=5" in runner("on-demand")["args"]


def test_long_names_leave_room_for_the_pods_of_a_job() -> None:
    name = "n" * 60
    found = {job_name(name, attempt) for attempt in (None, 1, 12, 123)}
    assert len(found) == 4
    assert all(len(one) <= 52 for one in found)
    assert job_name("night", 3) == deployment_name("night", "a3") == "night-a3"


def peers(policy: Any) -> list[Any]:
    (rule,) = policy.body["spec"]["ingress"]
    found: list[Any] = rule["from"]
    return found


def test_engines_and_runners_answer_only_who_is_named() -> None:
    engines = namespace.engine_network_policy(
        [owner_of(a_service()), owner_of(a_batch())], ("tessera-system", "monitoring")
    )
    assert len(peers(engines)) == 3
    runners = namespace.batch_network_policy([owner_of(a_batch())], "tessera-system")
    assert peers(runners) == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tessera-system"}}}
    ]


def test_shared_objects_belong_to_all_services_and_batches() -> None:
    owners = [owner_of(a_service()), owner_of(a_batch())]
    references = namespace.engine_service_account(owners).body["metadata"]["ownerReferences"]
    assert [(one["kind"], one["name"]) for one in references] == [
        ("InferenceService", "chat"),
        ("BatchInference", "night"),
    ]
    assert not any(one.get("controller") for one in references)
