"""The DaemonSets that pull images ahead."""

from collections.abc import Callable
from typing import Any

from tessera.api.template_version import Platform
from tessera.domain.config import Config
from tessera.domain.observed.snapshot import ObservedService
from tessera.resources.manifest import ObjectManifest
from tessera.resources.prepull import prepull_daemon_sets
from tests.builders import a_pool, a_service, a_snapshot, a_spec, plan_of

Golden = Callable[[str, list[Any]], None]
TAINTS = [{"key": "team", "value": "llm", "effect": "NoSchedule"}]


def prepull_manifests(
    *services: ObservedService, platform: Platform | None = None, **pool: Any
) -> tuple[ObjectManifest, ...]:
    platform = platform or Platform()
    fields = {"prePull": True, **pool}
    config = Config(platform=platform)
    fleet_plan = plan_of(a_snapshot(*services, pools=(a_pool(**fields),)), config)
    return prepull_daemon_sets(
        fleet_plan.pools,
        fleet_plan.service_plans,
        platform,
        config.builder_version,
        "tessera-system",
    )


def images(manifests: tuple[ObjectManifest, ...]) -> list[str]:
    (manifest,) = manifests
    return [
        container["image"] for container in manifest.body["spec"]["template"]["spec"]["containers"]
    ]


def test_the_daemon_set_of_a_pool_is_as_reviewed(golden: Golden) -> None:
    platform = Platform(image_registry="registry.acme/mirror", image_pull_secrets=("mirror",))
    golden(
        "prepull",
        [
            dict(manifest.body)
            for manifest in prepull_manifests(platform=platform, tolerations=TAINTS)
        ],
    )


def test_a_pool_that_does_not_ask_gets_none() -> None:
    assert prepull_manifests(prePull=False) == ()


def test_every_image_of_the_services_placed_there_is_pulled_once() -> None:
    own = a_spec(engine={"image": "acme/vllm:1"}, replicas=1)
    services = [a_service(name, own) for name in ("a", "b")]
    plain = a_service("c", a_spec(replicas=1))
    assert images(prepull_manifests(*services, plain)) == [
        "acme/vllm:1",
        "vllm/vllm-openai:v0.32.0",
    ]


def test_it_takes_no_gpu_and_no_right() -> None:
    (manifest,) = prepull_manifests()
    pod = manifest.body["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "nvidia.com/gpu" not in str(container["resources"])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
