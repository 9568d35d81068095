"""The platform settings for mirrors, proxies, certificates and nodes reach the pods."""

from typing import Any

import pytest

from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.config import Config
from tessera.resources import children
from tessera.resources.batch_job import batch_job_manifest
from tessera.resources.platform import mirror_image
from tessera.resources.runner import RunnerImage
from tests.batch_builders import NODES, a_batch, a_batch_spec, a_checked_situation, plan_batch
from tests.builders import a_node, a_pool, a_service, a_snapshot, a_spec, compute_service_plan

BEHIND_A_PROXY = Platform(
    image_registry="registry.acme:5000/mirror",
    image_pull_secrets=("mirror",),
    hub_endpoint="https://hub.acme",
    https_proxy="http://proxy.acme:3128",
    no_proxy=".acme,10.0.0.0/8",
    ca_config_map="trusted",
)
TAINTED = {
    "tolerations": [{"key": "team", "value": "llm", "effect": "NoSchedule"}],
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
}


def pod_of_a_service(platform: Platform, spec: Any = None, **pool: Any) -> dict[str, Any]:
    snapshot = a_snapshot(a_service(spec=spec or a_spec()), pools=(a_pool(**pool),))
    service_plan = compute_service_plan(snapshot, config=Config(platform=platform))
    (manifest,) = [
        manifest
        for manifest in children.service_manifests(service_plan)
        if manifest.kind.kind == "Deployment"
    ]
    template: dict[str, Any] = manifest.body["spec"]["template"]["spec"]
    return template


def pod_of_a_batch(platform: Platform, **pool: Any) -> dict[str, Any]:
    situation = a_checked_situation(
        a_batch(a_batch_spec(spot={"policy": "Never"})),
        pools=(a_pool("a100", "2.00", **{"tier": "OnDemand", **pool}),),
        nodes=NODES[:1],
    )
    batch_plan = plan_batch(situation)
    assert batch_plan.create is not None
    assert batch_plan.batch.spec is not None
    manifest = batch_job_manifest(
        batch_plan.batch,
        batch_plan.batch.spec,
        batch_plan.create,
        RunnerImage("tessera/batch:1"),
        PodTemplateVersion(platform=platform),
    )
    template: dict[str, Any] = manifest.body["spec"]["template"]["spec"]
    return template


def engine_of(pod: dict[str, Any]) -> dict[str, Any]:
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    (container,) = [container for container in containers if container["name"] == "engine"]
    assert isinstance(container, dict)
    return container


def environment_of(pod: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in engine_of(pod)["env"]}


@pytest.mark.parametrize("build_pod", [pod_of_a_service, pod_of_a_batch])
def test_engines_come_from_the_mirror_and_reach_the_hub_as_the_platform_says(
    build_pod: Any,
) -> None:
    pod = build_pod(BEHIND_A_PROXY)
    environment = environment_of(pod)
    assert engine_of(pod)["image"] == "registry.acme:5000/mirror/vllm/vllm-openai:v0.32.0"
    assert pod["imagePullSecrets"] == [{"name": "mirror"}]
    assert environment["HF_ENDPOINT"] == "https://hub.acme"
    assert environment["HTTPS_PROXY"] == environment["https_proxy"] == "http://proxy.acme:3128"
    assert environment["NO_PROXY"] == environment["no_proxy"] == ".acme,10.0.0.0/8"


@pytest.mark.parametrize("build_pod", [pod_of_a_service, pod_of_a_batch])
def test_certificates_are_read_where_they_are_mounted(build_pod: Any) -> None:
    pod = build_pod(BEHIND_A_PROXY)
    environment = environment_of(pod)
    (mount,) = [mount for mount in engine_of(pod)["volumeMounts"] if mount["name"] == "authorities"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "authorities"]
    assert volume["configMap"] == {
        "name": "trusted",
        "items": [{"key": "ca.crt", "path": "ca.crt"}],
    }
    assert (
        environment["SSL_CERT_FILE"]
        == environment["REQUESTS_CA_BUNDLE"]
        == f"{mount['mountPath']}/ca.crt"
    )


@pytest.mark.parametrize("build_pod", [pod_of_a_service, pod_of_a_batch])
def test_without_platform_settings_nothing_is_added(build_pod: Any) -> None:
    pod = build_pod(Platform())
    assert not environment_of(pod).keys() & {"HF_ENDPOINT", "HTTPS_PROXY", "SSL_CERT_FILE"}
    assert not pod.keys() & {"imagePullSecrets", "runtimeClassName", "priorityClassName"}
    assert engine_of(pod)["image"] == "vllm/vllm-openai:v0.32.0"


def test_a_variable_of_the_services_own_takes_the_place_of_the_platforms() -> None:
    """Server-side apply would refuse two variables with the same name."""
    own = {"env": [{"name": "HF_ENDPOINT", "value": "https://own.acme"}]}
    pod = pod_of_a_service(BEHIND_A_PROXY, a_spec(podTemplate=own))
    names = [variable["name"] for variable in engine_of(pod)["env"]]
    assert len(names) == len({*names})
    assert environment_of(pod)["HF_ENDPOINT"] == "https://own.acme"


def test_an_image_that_the_owner_chose_is_left_alone() -> None:
    spec = a_spec(engine={"image": "ghcr.io/acme/vllm:1"})
    assert engine_of(pod_of_a_service(BEHIND_A_PROXY, spec))["image"] == "ghcr.io/acme/vllm:1"


@pytest.mark.parametrize(
    ("image", "mirrored_image"),
    [
        ("vllm/vllm-openai:v1", "m.acme/x/vllm/vllm-openai:v1"),
        ("docker.io/vllm/vllm-openai:v1", "m.acme/x/vllm/vllm-openai:v1"),
        ("localhost/own:1", "m.acme/x/own:1"),
        ("own:1", "m.acme/x/own:1"),
    ],
)
def test_the_mirror_takes_the_place_of_the_registry(image: str, mirrored_image: str) -> None:
    assert mirror_image(image, "m.acme/x/") == mirrored_image
    assert mirror_image(image, None) == image


@pytest.mark.parametrize("build_pod", [pod_of_a_service, pod_of_a_batch])
def test_taints_runtime_and_scheduler_of_a_pool_reach_its_pods(build_pod: Any) -> None:
    pod = build_pod(Platform(), **TAINTED)
    taint = {"key": "team", "operator": "Equal", "value": "llm", "effect": "NoSchedule"}
    assert taint in pod["tolerations"]
    assert (pod["runtimeClassName"], pod["schedulerName"]) == ("nvidia", "volcano")


def test_a_priority_class_follows_the_class_where_the_chart_makes_them() -> None:
    platform = Platform(priority_classes=True)
    standard = pod_of_a_service(platform, a_spec(**{"class": "Standard"}))
    assert standard["priorityClassName"] == "tessera-standard"
    assert pod_of_a_batch(platform)["priorityClassName"] == "tessera-batch"


def test_replicas_keep_apart_on_hosts_and_zones_without_waiting_for_it() -> None:
    spread = pod_of_a_service(Platform())["topologySpreadConstraints"]
    keys = [constraint["topologyKey"] for constraint in spread]
    assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert {constraint["whenUnsatisfiable"] for constraint in spread} == {"ScheduleAnyway"}


def test_a_second_replica_does_not_restart_the_first() -> None:
    one_replica, two_replicas = (
        pod_of_a_service(Platform(), a_spec(replicas=count)) for count in (1, 2)
    )
    assert one_replica == two_replicas


def test_a_change_of_the_platform_is_seen() -> None:
    snapshot = a_snapshot(a_service(), nodes=(a_node(slices={"1g.10gb": 7}),))
    first, second = (
        compute_service_plan(snapshot, config=Config(platform=platform))
        for platform in (Platform(), BEHIND_A_PROXY)
    )
    assert children.service_inputs(first) != children.service_inputs(second)
