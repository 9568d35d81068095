"""What platform teams say of mirrors, proxies, certificates and nodes reaches the pods."""

from typing import Any

import pytest

from tessera.api.recipe import Platform, PodTemplateVersion
from tessera.domain.config import Config
from tessera.resources import children
from tessera.resources.batch_job import RunnerImage, batch_job_manifest
from tessera.resources.platform import mirror_image
from tests.batch_builders import NODES, a_batch, a_batch_spec, a_checked_situation, decided
from tests.builders import a_node, a_pool, a_service, a_snapshot, a_spec, allotted

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
    allotment = allotted(snapshot, config=Config(platform=platform))
    (found,) = [
        one for one in children.service_manifests(allotment) if one.kind.kind == "Deployment"
    ]
    template: dict[str, Any] = found.body["spec"]["template"]["spec"]
    return template


def pod_of_a_batch(platform: Platform, **pool: Any) -> dict[str, Any]:
    situation = a_checked_situation(
        a_batch(a_batch_spec(spot={"policy": "Never"})),
        pools=(a_pool("a100", "2.00", **{"tier": "OnDemand", **pool}),),
        nodes=NODES[:1],
    )
    got = decided(situation)
    assert got.create is not None
    assert got.batch.spec is not None
    made = batch_job_manifest(
        got.batch,
        got.batch.spec,
        got.create,
        RunnerImage("tessera/batch:1"),
        PodTemplateVersion(platform=platform),
    )
    template: dict[str, Any] = made.body["spec"]["template"]["spec"]
    return template


def engine_of(pod: dict[str, Any]) -> dict[str, Any]:
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    (found,) = [one for one in containers if one["name"] == "engine"]
    assert isinstance(found, dict)
    return found


def environment_of(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in engine_of(pod)["env"]}


@pytest.mark.parametrize("made", [pod_of_a_service, pod_of_a_batch])
def test_engines_come_from_the_mirror_and_reach_the_hub_as_the_platform_says(made: Any) -> None:
    pod = made(BEHIND_A_PROXY)
    told = environment_of(pod)
    assert engine_of(pod)["image"] == "registry.acme:5000/mirror/vllm/vllm-openai:v0.32.0"
    assert pod["imagePullSecrets"] == [{"name": "mirror"}]
    assert told["HF_ENDPOINT"] == "https://hub.acme"
    assert told["HTTPS_PROXY"] == told["https_proxy"] == "http://proxy.acme:3128"
    assert told["NO_PROXY"] == told["no_proxy"] == ".acme,10.0.0.0/8"


@pytest.mark.parametrize("made", [pod_of_a_service, pod_of_a_batch])
def test_certificates_are_read_where_they_are_mounted(made: Any) -> None:
    pod = made(BEHIND_A_PROXY)
    told = environment_of(pod)
    (mount,) = [one for one in engine_of(pod)["volumeMounts"] if one["name"] == "authorities"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == "authorities"]
    assert volume["configMap"] == {
        "name": "trusted",
        "items": [{"key": "ca.crt", "path": "ca.crt"}],
    }
    assert told["SSL_CERT_FILE"] == told["REQUESTS_CA_BUNDLE"] == f"{mount['mountPath']}/ca.crt"


@pytest.mark.parametrize("made", [pod_of_a_service, pod_of_a_batch])
def test_without_a_word_of_the_platform_nothing_is_added(made: Any) -> None:
    pod = made(Platform())
    assert not environment_of(pod).keys() & {"HF_ENDPOINT", "HTTPS_PROXY", "SSL_CERT_FILE"}
    assert not pod.keys() & {"imagePullSecrets", "runtimeClassName", "priorityClassName"}
    assert engine_of(pod)["image"] == "vllm/vllm-openai:v0.32.0"


def test_a_variable_of_the_services_own_takes_the_place_of_the_platforms() -> None:
    """Two of one name would be refused by server-side apply."""
    own = {"env": [{"name": "HF_ENDPOINT", "value": "https://own.acme"}]}
    pod = pod_of_a_service(BEHIND_A_PROXY, a_spec(podTemplate=own))
    names = [one["name"] for one in engine_of(pod)["env"]]
    assert len(names) == len({*names})
    assert environment_of(pod)["HF_ENDPOINT"] == "https://own.acme"


def test_an_image_that_the_owner_chose_is_left_alone() -> None:
    spec = a_spec(engine={"image": "ghcr.io/acme/vllm:1"})
    assert engine_of(pod_of_a_service(BEHIND_A_PROXY, spec))["image"] == "ghcr.io/acme/vllm:1"


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("vllm/vllm-openai:v1", "m.acme/x/vllm/vllm-openai:v1"),
        ("docker.io/vllm/vllm-openai:v1", "m.acme/x/vllm/vllm-openai:v1"),
        ("localhost/own:1", "m.acme/x/own:1"),
        ("own:1", "m.acme/x/own:1"),
    ],
)
def test_the_mirror_takes_the_place_of_the_registry(image: str, found: str) -> None:
    assert mirror_image(image, "m.acme/x/") == found
    assert mirror_image(image, None) == image


@pytest.mark.parametrize("made", [pod_of_a_service, pod_of_a_batch])
def test_taints_runtime_and_scheduler_of_a_pool_reach_its_pods(made: Any) -> None:
    pod = made(Platform(), **TAINTED)
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
    keys = [one["topologyKey"] for one in spread]
    assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert {one["whenUnsatisfiable"] for one in spread} == {"ScheduleAnyway"}


def test_a_second_replica_does_not_restart_the_first() -> None:
    one, two = (pod_of_a_service(Platform(), a_spec(replicas=count)) for count in (1, 2))
    assert one == two


def test_a_change_of_the_platform_is_seen() -> None:
    snapshot = a_snapshot(a_service(), nodes=(a_node(slices={"1g.10gb": 7}),))
    first, second = (
        allotted(snapshot, config=Config(platform=platform))
        for platform in (Platform(), BEHIND_A_PROXY)
    )
    assert children.service_inputs(first) != children.service_inputs(second)
