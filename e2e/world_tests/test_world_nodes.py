"""Nodes of a world: what they say of themselves, how they fall silent, die and come back."""

import asyncio
import sys
from pathlib import Path

import pytest

import world as worlds
from world.api import NODES, PODS, Api, Json
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    a_workload,
    condition,
    container_status,
    eventually,
    is_ready,
)

pytestmark = pytest.mark.world
_E2E = Path(worlds.__file__).parents[1]
ON_VICTIM: Json = {
    "nodeSelector": {"for": "victims"},
    "tolerations": [{"key": "for", "value": "victims"}],
}
STAYS = [*ON_VICTIM["tolerations"], {"effect": "NoExecute", "operator": "Exists"}]


def taint_keys(node: Json) -> set[str]:
    return {taint["key"] for taint in node["spec"].get("taints", [])}


async def read_victim(api: Api) -> Json:
    return await api.get(NODES.path(name="victim"))


async def test_a_gpu_node_says_what_feature_discovery_says(api: Api) -> None:
    node = await api.get(NODES.path(name="a100"))

    labels = node["metadata"]["labels"]
    expected = {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.count": "2",
        "nvidia.com/mig.strategy": "mixed",
        "nvidia.com/mig-1g.10gb.count": "4",
        "nvidia.com/mig-3g.40gb.product": "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb",
        "karpenter.sh/capacity-type": "reserved",
    }
    assert {key: labels.get(key) for key in expected} == expected
    offered = {key: v for key, v in node["status"]["allocatable"].items() if "nvidia" in key}
    assert offered == {
        "nvidia.com/gpu": "1",
        "nvidia.com/mig-1g.10gb": "4",
        "nvidia.com/mig-3g.40gb": "1",
    }


async def test_a_spot_node_carries_the_taint_of_its_cloud(api: Api) -> None:
    async def node_is_ready() -> Json:
        node = await api.get(NODES.path(name="h100-spot"))
        assert condition(node, "Ready") == "True", node["status"]
        return node

    node = await eventually(node_is_ready)
    assert "kubernetes.azure.com/scalesetpriority" in taint_keys(node)


async def test_a_silent_node_is_declared_lost_while_its_containers_go_on(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    before = await namespace.start_pod(a_pod("web", **(ON_VICTIM | {"tolerations": STAYS})))

    async def node_is_lost() -> None:
        node = await read_victim(namespace.api)
        assert condition(node, "Ready") == "Unknown", node["status"]
        assert "node.kubernetes.io/unreachable" in taint_keys(node)
        pod = await namespace.read_pod("web")
        assert condition(pod, "Ready") == "False", pod["status"]

    world.silence("victim")
    try:
        await eventually(node_is_lost, within=120)
        assert namespace.name in {container.namespace for container in world.containers()}
    finally:
        world.wake("victim")

    after = await namespace.wait_until_ready("web")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert container_status(after)["restartCount"] == 0

    async def taints_are_removed() -> None:
        assert taint_keys(await read_victim(namespace.api)) == {"for"}

    await eventually(taints_are_removed)


async def test_pods_of_a_dead_node_are_recreated_elsewhere(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    preferred = {
        "weight": 100,
        "preference": {
            "matchExpressions": [{"key": "for", "operator": "In", "values": ["victims"]}]
        },
    }
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}
    spec = {"affinity": affinity, "tolerations": ON_VICTIM["tolerations"]}
    await namespace.create(a_workload("Deployment", "web", replicas=1, template=spec))
    (before,) = await namespace.wait_for_ready_pods(1)
    assert before["spec"]["nodeName"] == "victim"

    async def pod_runs_elsewhere() -> None:
        pods = await namespace.list_pods("app=web")
        assert {pod["spec"]["nodeName"] for pod in pods if is_ready(pod)} - {"victim"}

    world.end_node("victim")
    try:
        assert namespace.name not in {container.namespace for container in world.containers()}
        await eventually(pod_runs_elsewhere, within=120)
    finally:
        world.wake("victim")

    async def one_pod_remains() -> None:
        node = await read_victim(namespace.api)
        assert condition(node, "Ready") == "True", node["status"]
        assert len(await namespace.list_pods("app=web")) == 1

    await eventually(one_pod_remains)


async def test_a_node_that_boots_again_restarts_its_pods(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    await namespace.start_pod(a_pod("web", **(ON_VICTIM | {"tolerations": STAYS})))

    world.end_node("victim")
    world.wake("victim")

    await namespace.wait_for_restart("web")


async def test_a_deleted_node_comes_back_by_a_command(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    path = NODES.path(name="victim")
    created = (await namespace.api.get(path))["metadata"]["uid"]

    async def command(does: str) -> None:
        arguments = ("-m", "world", "node", does, "victim", "--name", world.folder.name)
        # Where the simulated cluster is, whatever the path of these tests.
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=_E2E)
        assert await process.wait() == 0

    await command("end")
    await namespace.api.delete(path)
    await command("wake")

    async def node_is_back() -> None:
        node = await read_victim(namespace.api)
        assert node["metadata"]["uid"] != created
        assert condition(node, "Ready") == "True", node["status"]

    await eventually(node_is_back)


async def test_a_pod_deleted_while_its_node_was_dead_ends_as_killed(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    await namespace.start_pod(a_pod("web", **(ON_VICTIM | {"tolerations": STAYS})))
    path = PODS.path(namespace.name, "web")
    await namespace.api.patch(path, {"metadata": {"finalizers": ["tessera.dev/test"]}})

    world.end_node("victim")
    await namespace.api.delete(path)
    # A kubelet that has not heard of it would start the container again.
    await namespace.wait_until_terminating("web")
    world.wake("victim")

    def container_was_killed(pod: Json) -> None:
        terminated = container_status(pod)["state"].get("terminated", {})
        assert terminated.get("reason") == "ContainerStatusUnknown", pod["status"]
        assert terminated["exitCode"] == 137

    try:
        await namespace.wait_for_pod("web", container_was_killed)
    finally:
        await namespace.api.patch(path, {"metadata": {"finalizers": None}})


async def test_a_fake_node_only_says_that_its_pods_run(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    container = a_container() | {"image": "example.org/anything:1"}
    spec: Json = {
        "nodeSelector": {"for": "fakes"},
        "tolerations": [{"key": "for", "value": "fakes"}],
    }

    pod = await namespace.start_pod(a_pod("dream", container, **spec))

    assert pod["status"]["podIP"].startswith("10.")
    assert namespace.name not in {container.namespace for container in world.containers()}


async def test_an_unknown_node_is_named_in_the_refusal(world: worlds.World) -> None:
    with pytest.raises(worlds.WorldError, match="no live node is named nobody"):
        world.silence("nobody")
