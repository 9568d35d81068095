"""The DaemonSets that pull images ahead."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tessera.api.template_version import Platform
from tessera.domain.config import Config
from tessera.domain.observed.snapshot import Budget, ObservedService, Ref
from tessera.domain.planning.plan import plan
from tessera.resources.manifest import ObjectManifest
from tessera.resources.prepull import MAX_IMAGES, MAX_IMAGES_PER_NAMESPACE, prepull_daemon_sets
from tessera.resources.runner import RunnerImage
from tests.builders import a_budget, a_pool, a_service, a_snapshot, a_spec, plan_of
from tests.domain.service.test_variants import fleet

Golden = Callable[[str, list[Any]], None]
TAINTS = [{"key": "team", "value": "llm", "effect": "NoSchedule"}]


VLLM = "vllm/vllm-openai:v0.32.0"


def prepull_manifests(
    *services: ObservedService,
    platform: Platform | None = None,
    budgets: tuple[Budget, ...] = (),
    **pool: Any,
) -> tuple[ObjectManifest, ...]:
    platform = platform or Platform()
    fields = {"prePull": True, **pool}
    config = Config(platform=platform)
    snapshot = a_snapshot(*services, pools=(a_pool(**fields),), budgets=budgets)
    fleet_plan = plan_of(snapshot, config)
    return prepull_daemon_sets(
        fleet_plan.pools,
        fleet_plan.service_plans,
        platform,
        config.builder_version,
        RunnerImage("tessera/batch:1", "IfNotPresent", ("registry",)),
        "tessera-prepull",
    )


def pods(manifests: tuple[ObjectManifest, ...]) -> dict[str, Any]:
    return {manifest.name: manifest.body["spec"]["template"]["spec"] for manifest in manifests}


def images(manifests: tuple[ObjectManifest, ...]) -> dict[str, list[str]]:
    return {
        name.removeprefix("tessera-prepull-a100-"): [
            container["image"] for container in pod["containers"]
        ]
        for name, pod in pods(manifests).items()
    }


def test_the_daemon_sets_of_a_pool_are_as_reviewed(golden: Golden) -> None:
    platform = Platform(image_registry="registry.acme/mirror", image_pull_secrets=("mirror",))
    services = [
        a_service("chat", a_spec(replicas=1)),
        a_service("own", a_spec(replicas=1, engine={"image": "acme/vllm:1"})),
    ]
    golden(
        "prepull",
        [
            dict(manifest.body)
            for manifest in prepull_manifests(*services, platform=platform, tolerations=TAINTS)
        ],
    )


def test_a_pool_that_does_not_ask_gets_none() -> None:
    assert prepull_manifests(prePull=False) == ()


def test_a_pool_without_services_pulls_the_default_version() -> None:
    assert images(prepull_manifests()) == {"vllm": [VLLM]}


def test_every_image_of_the_services_placed_there_is_pulled_once() -> None:
    own = a_spec(engine={"image": "acme/vllm:1"}, replicas=1)
    services = [a_service(name, own) for name in ("a", "b")]
    plain = a_service("c", a_spec(replicas=1))
    assert images(prepull_manifests(*services, plain)) == {
        "vllm": [VLLM],
        "tenants": ["acme/vllm:1"],
    }


def test_an_image_of_a_tenant_without_a_granted_replica_is_not_pulled() -> None:
    miner = a_spec(engine={"image": "evil.example/miner"}, replicas=2)
    asleep = a_spec(engine={"image": "acme/asleep:1"}, replicas=0)
    services = [a_service("x", miner, ref=Ref("evil", "x")), a_service("z", asleep)]
    budget = a_budget("evil", amount="0.00")
    assert images(prepull_manifests(*services, budgets=(budget,))) == {"vllm": [VLLM]}


def test_nothing_of_an_image_runs_and_it_sees_no_device_and_no_credentials() -> None:
    own = a_service("chat", a_spec(replicas=1, engine={"image": "evil.example/miner"}))
    platform = Platform(image_pull_secrets=("mirror",))
    pod = pods(prepull_manifests(own, platform=platform))["tessera-prepull-a100-tenants"]
    (program,), (container,) = pod["initContainers"], pod["containers"]
    assert program["image"] == "tessera/batch:1"
    assert container["command"] == ["/tessera/tessera-wait"]
    assert container["volumeMounts"] == [
        {"name": "program", "mountPath": "/tessera", "readOnly": True}
    ]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]
    assert "imagePullSecrets" not in pod
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert set(container["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}


def test_a_namespace_with_many_images_leaves_room_for_those_of_others() -> None:
    def named(namespace: str, number: int) -> ObservedService:
        spec = a_spec(replicas=1, engine={"image": f"{namespace}.example/{number:03}"})
        name = f"chat-{number:03}"
        return a_service(name, spec, ref=Ref(namespace, name))

    many = [named("aaa", number) for number in range(100)]
    pulled = images(prepull_manifests(*many, named("team-a", 0)))["tenants"]
    assert pulled == [
        *(f"aaa.example/{number:03}" for number in range(MAX_IMAGES_PER_NAMESPACE)),
        "team-a.example/000",
    ]
    everybody = [named(f"t{tenant:02}", number) for tenant in range(50) for number in range(4)]
    pulled = images(prepull_manifests(*everybody))["tenants"]
    assert len(pulled) == MAX_IMAGES
    assert {image.partition(".")[0] for image in pulled} == {
        f"t{tenant:02}" for tenant in range(50)
    }


def test_the_program_needs_no_file_of_an_image_and_ends_on_sigterm(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "images/batch/wait/main.go"
    program = tmp_path / "tessera-wait"
    subprocess.run(
        ["go", "build", "-o", str(program), str(source)],
        check=True,
        env=os.environ | {"CGO_ENABLED": "0"},
    )
    assert b"ld-linux" not in program.read_bytes()
    with subprocess.Popen([str(program)]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert process.wait(5) == 0


def test_images_are_pulled_in_each_pool_where_a_service_has_a_replica() -> None:
    cluster = fleet(1, reserved=1, burst=2)
    cluster.pools = [
        a_pool("reserved", "1.00", prePull=True),
        a_pool("burst", "3.00", tier="OnDemand", prePull=True),
    ]
    pulled = []
    for replicas in (1, 2):
        spec = a_spec(replicas=replicas, engine={"image": "acme/vllm:1"})
        cluster.service = replace(cluster.service, spec=spec)
        cluster.run(90)
        fleet_plan = plan(cluster.config, cluster.snapshot(), cluster.memory)
        names = pods(
            prepull_daemon_sets(
                fleet_plan.pools,
                fleet_plan.service_plans,
                Platform(),
                cluster.config.builder_version,
                RunnerImage("tessera/batch:1", "IfNotPresent", ()),
                "tessera-prepull",
            )
        )
        pulled.append([name for name in names if name.endswith("-tenants")])
    assert pulled == [
        ["tessera-prepull-reserved-tenants"],
        ["tessera-prepull-burst-tenants", "tessera-prepull-reserved-tenants"],
    ]
