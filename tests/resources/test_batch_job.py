"""The Jobs of batches as reviewed, and what is true of each of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.batch.names import BATCH_ACCOUNT, job_name
from tessera.domain.batch.situation import Situation
from tessera.domain.hardware.spot_nodes import DISRUPTION_TAINTS, SPOT_LABELS
from tessera.domain.model.fetched import fetched_files
from tessera.domain.names import ENGINE_ACCOUNT, deployment_name
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import version_facts
from tessera.resources import namespace_objects as namespace
from tessera.resources.batch_job import batch_job_manifest
from tessera.resources.defaults import newest_version
from tessera.resources.manifest import owner_of
from tessera.resources.runner import RunnerImage
from tests.batch_builders import (
    a_batch,
    a_batch_spec,
    a_checked_situation,
    a_situation,
    plan_batch,
)
from tests.builders import A100, MEDIUM, a_node, a_pool, a_service, a_spec
from tests.resources.engine_objects import free_flags

Golden = Callable[..., None]
IMAGE = RunnerImage("tessera/batch:0.1.0")

SPOT_LABELS_OF_CLOUDS = {
    "aws": {"eks.amazonaws.com/capacityType": "SPOT"},
    "karpenter": {"karpenter.sh/capacity-type": "spot"},
    "gcp": {"cloud.google.com/gke-spot": "true"},
    "azure": {"kubernetes.azure.com/scalesetpriority": "spot"},
}


def on_cloud(labels: dict[str, str], **spec: Any) -> Situation:
    """Describe a batch for a spot pool of a cloud, whose nodes have its labels."""
    selector = {"nvidia.com/gpu.product": A100, **labels}
    return a_checked_situation(
        a_batch(a_batch_spec(model={"uri": MEDIUM}, **spec)),
        pools=(a_pool("a100-spot", "0.80", tier="Spot", nodeSelector=selector),),
        nodes=(a_node("a100-spot", {"3g.40gb": 2}, labels=labels),),
    )


def on_demand() -> Situation:
    """Describe a batch on two whole GPUs: a service's model from a claim, a token, no spot."""
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


def from_store() -> Situation:
    """Describe a batch whose model and adapter lie in a bucket."""
    shape = {
        "parameters": 8_000_000_000,
        "layers": 32,
        "attentionHeads": 32,
        "kvHeads": 8,
        "headDim": 128,
        "maxPositionEmbeddings": 8192,
    }
    model = {
        "uri": "s3://models/llama",
        "shape": shape,
        "store": {"secretName": "bucket"},
        "adapters": [{"name": "sql", "uri": "s3://models/sql"}],
    }
    return a_checked_situation(
        a_batch(a_batch_spec(model=model, spot={"policy": "Never"})),
        pools=(a_pool("a100", "2.00", tier="OnDemand"),),
        nodes=(a_node("a100", whole=2),),
    )


SITUATIONS = {
    "aws-spot": on_cloud(SPOT_LABELS_OF_CLOUDS["aws"]),
    "karpenter-spot": on_cloud(SPOT_LABELS_OF_CLOUDS["karpenter"]),
    "gcp-spot": on_cloud(SPOT_LABELS_OF_CLOUDS["gcp"]),
    "azure-spot": on_cloud(SPOT_LABELS_OF_CLOUDS["azure"]),
    "own-spot": on_cloud({"rack": "r7"}),
    "on-demand": on_demand(),
    "check": a_situation(),
}
ATTEMPTS = [name for name in SITUATIONS if name != "check"]
SPOT = [name for name in ATTEMPTS if name.endswith("spot")]


def body(name: str, builder_version: int = 1) -> dict[str, Any]:
    batch_plan = plan_batch(SITUATIONS[name])
    assert batch_plan.create is not None
    assert batch_plan.batch.spec is not None
    return dict(
        batch_job_manifest(
            batch_plan.batch,
            batch_plan.batch.spec,
            batch_plan.create,
            IMAGE,
            PodTemplateVersion(builder_version=builder_version),
        ).body
    )


def pod(name: str) -> dict[str, Any]:
    pod_spec: dict[str, Any] = body(name)["spec"]["template"]["spec"]
    return pod_spec


def runner(name: str) -> dict[str, Any]:
    (container,) = pod(name)["containers"]
    assert isinstance(container, dict)
    return container


def engine(name: str) -> dict[str, Any]:
    (container,) = pod(name)["initContainers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_jobs_of_a_batch_are_as_reviewed(name: str, golden: Golden) -> None:
    labels = SPOT_LABELS_OF_CLOUDS.get(name.removesuffix("-spot"))
    if labels is None:
        golden(f"batch-{name}", [body(name)])
    else:
        golden("batch-cloud-spot", [body(name)], mark=yaml.safe_dump(labels).strip())


def test_the_shared_objects_of_batches_are_as_reviewed(golden: Golden) -> None:
    batches = [owner_of(a_batch())]
    objects = [
        namespace.service_account(batches, BATCH_ACCOUNT),
        namespace.batch_role_binding(batches),
        namespace.batch_network_policy(batches, "tessera-system"),
    ]
    golden("batch-namespace", [dict(manifest.body) for manifest in objects])


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
    pod_spec = pod(name)
    assert pod_spec["securityContext"]["runAsNonRoot"] is True
    assert pod_spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod_spec["automountServiceAccountToken"], pod_spec["enableServiceLinks"]) == (
        False,
        False,
    )
    for container in (*pod_spec.get("initContainers", ()), *pod_spec["containers"]):
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
    table = version_facts("0.32.0")
    assert table is not None
    args = engine(name)["args"]
    assert vllm_flags.check(args, table) == ()
    assert free_flags(args, table) <= {"max_logprobs"}


def test_rows_of_new_attempts_report_cached_tokens() -> None:
    pod_spec = body("on-demand", newest_version())["spec"]["template"]["spec"]
    assert "--enable-prompt-tokens-details" in pod_spec["initContainers"][0]["args"]


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
    mounts = {mount["name"] for mount in engine(name)["volumeMounts"]}
    assert not mounts & {"token", "claim"}
    assert {"token", "claim"} <= {mount["name"] for mount in runner(name)["volumeMounts"]}
    (token,) = [volume for volume in pod(name)["volumes"] if volume["name"] == "token"]
    assert [next(iter(source)) for source in token["projected"]["sources"]] == [
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    ]


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_mount_has_its_volume(name: str) -> None:
    pod_spec = pod(name)
    volumes = [volume["name"] for volume in pod_spec["volumes"]]
    mounts = {
        mount["name"]
        for container in (*pod_spec.get("initContainers", ()), *pod_spec["containers"])
        for mount in container["volumeMounts"]
    }
    assert sorted(mounts) == sorted(volumes)


def test_a_check_takes_no_gpu_and_no_token() -> None:
    pod_spec = pod("check")
    assert "initContainers" not in pod_spec
    assert "nodeSelector" not in pod_spec
    assert runner("check")["resources"]["limits"] == {"memory": "1Gi"}
    assert not any("token" in volume["name"] for volume in pod_spec["volumes"])
    assert runner("check")["args"] == [
        "check",
        "--input=/claim/jobs/questions.jsonl",
        "--output=/claim/jobs/answers.jsonl",
        "--errors=/claim/jobs/answers.errors.jsonl",
        "--work=/claim/.tessera/uid-night",
        "--report=/dev/termination-log",
        "--model=night",
        "--url=/v1/chat/completions",
        "--url=/v1/completions",
        "--host=$(POD_IP)",
        "--port=8001",
    ]


def tolerations_of(name: str) -> list[dict[str, Any]]:
    tolerations: list[dict[str, Any]] = pod(name)["tolerations"]
    return tolerations


@pytest.mark.parametrize("name", SPOT)
def test_spot_pods_tolerate_the_spot_taints_of_every_cloud_and_no_disruption(name: str) -> None:
    keys = {toleration["key"]: toleration for toleration in tolerations_of(name)}
    for key, value in SPOT_LABELS:
        assert keys[key] == {
            "key": key,
            "operator": "Equal",
            "value": value,
            "effect": "NoSchedule",
        }
    for state in ("unreachable", "not-ready"):
        toleration = keys[f"node.kubernetes.io/{state}"]
        assert (toleration["effect"], toleration["tolerationSeconds"]) == ("NoExecute", 5)
    assert not [
        key
        for key in keys
        if key in DISRUPTION_TAINTS and not key.startswith("node.kubernetes.io/")
    ]


def test_pods_on_on_demand_hardware_tolerate_no_spot_taints() -> None:
    assert [toleration["key"] for toleration in tolerations_of("on-demand")] == ["nvidia.com/gpu"]
    assert "affinity" not in pod("on-demand")


@pytest.mark.parametrize("name", SPOT)
def test_spot_pods_require_the_spot_label_where_the_nodes_have_it(name: str) -> None:
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
        SPOT_LABELS_OF_CLOUDS[cloud].get(expression["key"]) in expression["values"]
        for expressions in terms
        for expression in expressions
    ), "a node of this cloud satisfies one term"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempts_are_not_moved_for_tidiness(name: str) -> None:
    assert body(name)["spec"]["template"]["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


@pytest.mark.parametrize("name", ["check", "own-spot"])
def test_private_registries_are_reached_with_the_secrets_of_the_chart(name: str) -> None:
    batch_plan = plan_batch(SITUATIONS[name])
    assert batch_plan.create is not None
    assert batch_plan.batch.spec is not None
    image = RunnerImage("private/batch:1", "Always", ("registry",))
    template_version = PodTemplateVersion(
        platform=Platform(image_pull_secrets=("mirror", "registry"))
    )
    manifest = batch_job_manifest(
        batch_plan.batch, batch_plan.batch.spec, batch_plan.create, image, template_version
    )
    pod_spec = manifest.body["spec"]["template"]["spec"]
    (container,) = pod_spec["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("private/batch:1", "Always")
    assert pod_spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]


def test_a_batch_uses_model_token_and_flags_of_its_service() -> None:
    sidecar = engine("on-demand")
    assert "--served-model-name=llama" in sidecar["args"]
    assert "--max-logprobs=20" in sidecar["args"]
    assert "--model=llama" in runner("on-demand")["args"]
    (token,) = [variable for variable in sidecar["env"] if variable["name"] == "HF_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert "--errors=/claim/jobs/left-over.jsonl" in runner("on-demand")["args"]
    assert "--retries=5" in runner("on-demand")["args"]


def test_long_names_leave_room_for_the_pods_of_a_job() -> None:
    name = "n" * 60
    names = {job_name(name, attempt) for attempt in (None, 1, 12, 123)}
    assert len(names) == 4
    assert all(len(job) <= 52 for job in names)
    assert job_name("night", 3) == deployment_name("night", "a3") == "night-a3"


def peers(policy: Any) -> list[Any]:
    (rule,) = policy.body["spec"]["ingress"]
    sources: list[Any] = rule["from"]
    return sources


def test_engines_and_runners_are_reached_only_by_the_named_peers() -> None:
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
    references = namespace.service_account(owners, ENGINE_ACCOUNT).body["metadata"][
        "ownerReferences"
    ]
    assert [(reference["kind"], reference["name"]) for reference in references] == [
        ("InferenceService", "chat"),
        ("BatchInference", "night"),
    ]
    assert not any(reference.get("controller") for reference in references)


def test_a_runner_notes_the_commit_that_the_service_had_at_the_check() -> None:
    model = {"uri": MEDIUM, "revision": "0123abcd"}
    check = {"rows": 9, "url": "/v1/completions", "inputTokens": 9, "settings": {"model": model}}
    situation = a_checked_situation(
        a_batch(a_batch_spec(model=None, service="chat")),
        services={"chat": a_spec(MEDIUM)},
        status={"check": check},
        nodes=(a_node("a100", {"3g.40gb": 2}), a_node("spot", {"3g.40gb": 2})),
    )
    plan, spec = plan_batch(situation), situation.batch.spec
    assert plan.create is not None
    assert spec is not None
    job = batch_job_manifest(situation.batch, spec, plan.create, IMAGE, PodTemplateVersion())
    (runner,) = job.body["spec"]["template"]["spec"]["containers"]
    assert {f"--uri={MEDIUM}", "--revision=0123abcd"} <= set(runner["args"])


def on_cached_service() -> Situation:
    """Describe a batch whose model a service keeps on a claim, from a gated repository."""
    model = {
        "revision": "a" * 40,
        "tokenSecretRef": {"name": "hub"},
        "cache": {"type": "PersistentVolumeClaim", "storageClassName": "nfs"},
    }
    return a_checked_situation(
        a_batch(a_batch_spec(model=None, service="chat", spot={"policy": "Never"})),
        services={"chat": a_spec(MEDIUM, model=model)},
        pools=(a_pool("a100", "2.00", tier="OnDemand"),),
        nodes=(a_node("a100", whole=2),),
    )


def pod_and_claims(situation: Situation) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the pod of an attempt, and the claims that are made before it by its volumes."""
    batch_plan = plan_batch(situation)
    assert batch_plan.create is not None
    assert batch_plan.batch.spec is not None
    job = batch_job_manifest(
        batch_plan.batch, batch_plan.batch.spec, batch_plan.create, IMAGE, PodTemplateVersion()
    ).body
    pod_spec = job["spec"]["template"]["spec"]
    claims = {claim.ref.name for claim in batch_plan.create.claims}
    assert batch_plan.attempt is not None
    assert {*batch_plan.attempt.claims} == claims
    volumes = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod_spec["volumes"]
        # A claim that is read-only in the pod is so for the download too.
        if volume.get("persistentVolumeClaim", {}).get("readOnly") is None
        and volume.get("persistentVolumeClaim", {}).get("claimName") in claims
    }
    assert {*volumes.values()} == claims
    return pod_spec, volumes


def test_files_of_a_store_are_downloaded_before_the_engine_of_a_batch_starts() -> None:
    pod_spec, volumes = pod_and_claims(from_store())
    *fetches, sidecar = pod_spec["initContainers"]
    assert [fetch["name"] for fetch in fetches] == ["fetch-models", "fetch-adapter-sql"]
    assert sidecar["restartPolicy"] == "Always"
    targets = [
        argument.removeprefix("--into=")
        for fetch in fetches
        for argument in fetch["args"]
        if argument.startswith("--into=")
    ]
    assert targets[0] == sidecar["args"][0]
    assert f"sql={targets[1]}" in sidecar["args"]
    assert {*volumes} == {"models", "adapter-sql"}
    mounts = {mount["name"]: mount.get("readOnly") for mount in sidecar["volumeMounts"]}
    assert (mounts["models"], mounts["adapter-sql"]) == (True, True)
    assert "AWS_SECRET_ACCESS_KEY" in str(fetches[0]["env"])
    assert "AWS_SECRET_ACCESS_KEY" not in str(sidecar)


def test_a_batch_on_a_service_with_a_cache_mounts_the_claim_of_the_service() -> None:
    situation = on_cached_service()
    spec = situation.services["chat"]
    assert spec is not None
    pod_spec, volumes = pod_and_claims(situation)
    fetch, sidecar = pod_spec["initContainers"]
    (files,) = fetched_files(spec)
    assert volumes == {"models": files.claim_name}
    assert f"--into={sidecar['args'][0]}" in fetch["args"]
    assert sidecar["args"][0].endswith(f"/{files.folder}")
    assert f"--revision={'a' * 40}" in fetch["args"]
    assert [variable["name"] for variable in fetch["env"]] == ["POD_IP", "HF_TOKEN"]


def test_an_attempt_that_is_charged_gets_a_gateway_and_a_token_for_it() -> None:
    situation = on_demand()
    request = plan_batch(situation).create
    spec = situation.batch.spec
    assert request is not None
    assert spec is not None
    image = replace(IMAGE, charges_url="http://tessera-gateway.tessera-system.svc:8081")
    pods = [
        batch_job_manifest(
            situation.batch, spec, replace(request, charged=charged), image, PodTemplateVersion()
        ).body["spec"]["template"]["spec"]
        for charged in (True, False)
    ]
    texts = [str(pod) for pod in pods]
    assert [f"--charges={image.charges_url}" in text for text in texts] == [True, False]
    assert ["tessera-batch-charges" in text for text in texts] == [True, False]
    # Where no mounts are, as in a simulated cluster, only what arguments name is found.
    (runner,) = pods[0]["containers"]
    (mount,) = (mount for mount in runner["volumeMounts"] if mount["name"] == "token")
    assert f"--charges-token={mount['mountPath']}/charges" in runner["args"]
    assert "--charges-token" not in texts[1]
