"""Node groups: nodes that come when pods need them, do not come, come otherwise, and go."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import world as worlds
from world.api import NODES, PODS, Api, Json, connect
from world.autoscaling.reports import NODE_CLAIMS
from world.testing import (
    WorldNamespace,
    a_pool_pod,
    a_workload,
    condition,
    event_messages,
    eventually,
    fresh_namespace,
    is_ready,
    pool_nodes,
    wait_for_event,
    wait_until_pool_is_empty,
)

pytestmark = pytest.mark.world
FLEET = Path(__file__).parent / "groups.yaml"
GPU = "nvidia.com/gpu"
SLICE = "nvidia.com/mig-3g.40gb"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"


@pytest.fixture(scope="module")
def world() -> Iterator[worlds.World]:
    """A world whose nodes with GPUs do not exist; at its end its log must have no error."""
    with worlds.start(fleet=FLEET) as world:
        yield world
        log = (world.folder / "logs" / "world.log").read_text()
    assert "ERROR" not in log, log


@pytest.fixture
async def api(world: worlds.World) -> AsyncIterator[Api]:
    async with connect(world.kubeconfig) as api:
        yield api


@pytest.fixture
async def namespace(api: Api, world: worlds.World) -> AsyncIterator[WorldNamespace]:
    """A namespace for one test, and no node of the groups of quick removal from others."""
    async with fresh_namespace(api) as namespace:
        yield namespace

    async def group_is_empty(name: str) -> None:
        group = await asyncio.to_thread(world.node_group, name)
        assert group["nodes"] + group["launching"] == []

    for name in ("burst", "sliced", "known"):
        world.change_node_group(name, arrival="Normal")
        await eventually(partial(group_is_empty, name))


def product_of(node: Json) -> str:
    """What feature discovery says, which looks a moment after the node has come."""
    return str(node["metadata"]["labels"].get("nvidia.com/gpu.product", ""))


async def read_claim(api: Api, name: str) -> Json:
    return await api.get(NODE_CLAIMS.path(name=name))


async def annotate(api: Api, path: str, **annotations: Any) -> None:
    await api.patch(path, {"metadata": {"annotations": annotations}})


async def test_a_node_comes_for_a_pod_and_goes_when_it_is_empty(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    api = namespace.api
    assert world.node_group("burst")["nodes"] == []

    pod = await namespace.start_pod(a_pool_pod("wants", "burst", **{GPU: 2}))

    name = pod["spec"]["nodeName"]

    async def node_is_discovered() -> None:
        node = await api.get(NODES.path(name=name))
        assert product_of(node) == "NVIDIA-A100-SXM4-80GB"
        assert node["metadata"]["labels"]["karpenter.sh/nodepool"] == "burst"
        assert node["status"]["allocatable"][GPU] == "2"
        claim = await read_claim(api, name)
        assert condition(claim, "Initialized") == "True", claim
        assert await event_messages(api, "Nominated", "wants", namespace.name) == [
            f"Pod should schedule on: nodeclaim/{name}"
        ]

    await eventually(node_is_discovered)
    assert name in {container.node for container in world.containers()}

    await api.delete(PODS.path(namespace.name, "wants"))

    async def node_is_gone() -> None:
        assert await pool_nodes(api, "burst") == []
        assert world.node_group("burst")["nodes"] == []
        assert name not in {container.node for container in world.containers()}
        assert not await api.exists(NODE_CLAIMS.path(name=name))

    await eventually(node_is_gone)


async def test_pods_that_fit_together_share_a_node_that_comes(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    asked = world.node_group("burst")["asked"]
    for name in ("first", "second"):
        await namespace.create(a_pool_pod(name, "burst", **{GPU: 1}))

    nodes = {
        (await namespace.wait_until_ready(name))["spec"]["nodeName"] for name in ("first", "second")
    }

    assert len(nodes) == 1
    assert world.node_group("burst")["asked"] == asked + 1


async def test_no_node_comes_for_a_pod_that_would_not_run_on_it(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    asked = world.node_group("burst")["asked"]
    intolerant = a_pool_pod("intolerant", "burst", **{GPU: 1})
    intolerant["spec"]["tolerations"] = []
    await namespace.create(intolerant)
    await namespace.create(a_pool_pod("greedy", "burst", **{GPU: 3}))

    async def autoscaler_says(name: str, text: str) -> None:
        messages = await event_messages(namespace.api, "FailedScheduling", name, namespace.name)
        assert any(
            message.startswith("Failed to schedule pod, ") and text in message
            for message in messages
        ), messages

    for name, text in (
        ("intolerant", "untolerated taint {nvidia.com/gpu: }"),
        ("greedy", "Insufficient nvidia.com/gpu"),
    ):
        await eventually(partial(autoscaler_says, name, text))
    assert world.node_group("burst")["asked"] == asked


async def test_a_full_group_says_so(namespace: WorldNamespace, world: worlds.World) -> None:
    for index in range(3):
        await namespace.create(a_pool_pod(f"big-{index}", "burst", **{GPU: 2}))

    text = "exceed limits for nodepool (NodePool=burst)"
    await wait_for_event(namespace.api, "FailedScheduling", "big-", text, namespace.name)
    group = world.node_group("burst")
    assert len(group["nodes"] + group["launching"]) == 2


async def test_a_cloud_without_capacity_is_heard_on_the_node_claim(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    world.change_node_group("burst", arrival="NoCapacity")

    await namespace.create(a_pool_pod("wants", "burst", **{GPU: 1}))

    async def shortage_is_said_again() -> None:
        texts = await event_messages(namespace.api, "InsufficientCapacityError", "burst-")
        assert len(texts) > 1
        text = "insufficient capacity, with fleet error(s), UnfulfillableCapacity: Unable"
        assert text in texts[0]
        assert world.node_group("burst")["refusals"] > 1

    await eventually(shortage_is_said_again)
    world.change_node_group("burst", arrival="Normal")
    await namespace.wait_until_ready("wants")


async def test_an_exceeded_quota_is_heard_on_the_pod_on_gke(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    world.change_node_group("sliced", arrival="QuotaExceeded")

    await namespace.create(a_pool_pod("wants", "sliced", **{GPU: 1}))

    async def quota_is_said() -> None:
        assert await event_messages(namespace.api, "FailedScaleUp", "wants", namespace.name) == [
            "Node scale up in zones us-central1-a associated with this pod failed: GCE quota "
            "exceeded. Pod is at risk of not being scheduled."
        ]

    await eventually(quota_is_said)
    text = "1 in backoff after failed scale-up"
    await wait_for_event(namespace.api, "NotTriggerScaleUp", "wants", text, namespace.name)


async def test_a_node_that_never_comes_is_given_up(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    world.change_node_group("sliced", arrival="Never", give_up_seconds=2)

    await namespace.create(a_pool_pod("wants", "sliced", **{GPU: 1}))

    async def node_is_given_up() -> None:
        texts = await event_messages(
            namespace.api, "ScaleUpTimedOut", "cluster-autoscaler-status", "kube-system"
        )
        assert texts[:1] == ["Nodes added to group sliced failed to register within 2s"]

    await eventually(node_is_given_up)
    assert await event_messages(namespace.api, "TriggeredScaleUp", "wants", namespace.name) == [
        "pod triggered scale-up: [{sliced 0->1 (max: 1)}]"
    ]
    assert await pool_nodes(namespace.api, "sliced") == []


async def test_a_node_comes_other_than_its_template(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    world.change_node_group("burst", arrival="Other", product="NVIDIA-H100-80GB-HBM3", gpus=1)

    pod = await namespace.start_pod(a_pool_pod("wants", "burst", **{GPU: 1}))

    async def node_is_discovered() -> None:
        node = await namespace.api.get(NODES.path(name=pod["spec"]["nodeName"]))
        assert product_of(node) == "NVIDIA-H100-80GB-HBM3"
        assert node["status"]["allocatable"][GPU] == "1"

    await eventually(node_is_discovered)


async def test_a_node_without_driver_has_no_gpu(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    api = namespace.api
    world.change_node_group("burst", arrival="NoDriver")

    await namespace.create(a_pool_pod("wants", "burst", **{GPU: 1}))

    async def claim_waits_for_its_resource() -> None:
        nodes = await pool_nodes(api, "burst")
        assert [condition(node, "Ready") for node in nodes] == ["True"]
        claim = await read_claim(api, nodes[0]["metadata"]["name"])
        assert condition(claim, "Registered") == "True", claim
        initialized = claim["status"]["conditions"][2]
        assert (initialized["reason"], initialized["message"]) == (
            "ResourceNotRegistered",
            'Resource "nvidia.com/gpu" was requested but not registered',
        )

    await eventually(claim_waits_for_its_resource)
    (node,) = await pool_nodes(api, "burst")
    assert GPU not in node["status"]["allocatable"]
    assert not product_of(node)


async def test_slices_of_a_node_that_does_not_exist_are_not_known(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    api = namespace.api
    await namespace.create(a_pool_pod("wants", "sliced", **{SLICE: 1}))
    text = f"Insufficient {SLICE}"
    await wait_for_event(api, "NotTriggerScaleUp", "wants", text, namespace.name)
    assert world.node_group("sliced")["nodes"] == []

    await namespace.create(a_pool_pod("placeholder", "sliced", **{GPU: 1}))

    async def node_has_come() -> None:
        assert len(await pool_nodes(api, "sliced")) == 1
        names = world.node_group("sliced")["nodes"]
        assert [[gpu["mig"] for gpu in world.gpus(name)] for name in names] == [[True]]

    await eventually(node_has_come)


async def test_slices_that_an_autoscaler_was_told_of_bring_a_node(
    namespace: WorldNamespace,
) -> None:
    pod = await namespace.start_pod(a_pool_pod("wants", "known", **{SLICE: 2}))

    assert pod["spec"]["nodeName"].startswith("known-")


async def test_pods_of_very_low_priority_bring_no_node(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    """The cluster autoscaler takes them for expendable."""
    asked = world.node_group("known")["asked"]
    await namespace.api.create(
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        {"metadata": {"name": "expendable"}, "value": -11},
    )
    pod = a_pool_pod("wants", "known", **{SLICE: 1})
    pod["spec"]["priorityClassName"] = "expendable"
    # The admission of pods hears of a class a moment after it was created.
    await eventually(partial(namespace.create, pod))
    # It sees pods in the order of their age: after this one it has seen both.
    await namespace.start_pod(a_pool_pod("ordinary", "known", **{SLICE: 1}))

    assert world.node_group("known")["asked"] == asked + 1
    assert await event_messages(namespace.api, "TriggeredScaleUp", "wants", namespace.name) == []


async def test_an_annotation_keeps_an_empty_node(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    api = namespace.api
    pod = await namespace.start_pod(a_pool_pod("wants", "burst", **{GPU: 1}))
    name = pod["spec"]["nodeName"]
    await annotate(api, NODES.path(name=name), **{DO_NOT_DISRUPT: "true"})

    await api.delete(PODS.path(namespace.name, "wants"))

    async def annotation_blocks() -> None:
        assert await event_messages(api, "DisruptionBlocked", name) == [
            f'Disruption is blocked through the "{DO_NOT_DISRUPT}" annotation'
        ]

    await eventually(annotation_blocks)
    assert world.node_group("burst")["nodes"] == [name]
    await annotate(api, NODES.path(name=name), **{DO_NOT_DISRUPT: None})
    await wait_until_pool_is_empty(api, "burst")


async def test_a_pod_keeps_its_node_from_consolidation(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    api = namespace.api
    manifest = a_pool_pod("wants", "burst", **{GPU: 1})
    manifest["metadata"]["annotations"] = {DO_NOT_DISRUPT: "true"}
    name = (await namespace.start_pod(manifest))["spec"]["nodeName"]

    async def disruption_is_allowed() -> None:
        try:
            world.disrupt_node(name)
        except worlds.WorldError as error:
            raise AssertionError(str(error)) from error

    with pytest.raises(worlds.WorldError) as refusal:
        world.disrupt_node(name)
    text = f'pod has "{DO_NOT_DISRUPT}" annotation (Pod={namespace.name}/wants)'
    assert str(refusal.value) == text
    await annotate(api, PODS.path(namespace.name, "wants"), **{DO_NOT_DISRUPT: None})
    await eventually(disruption_is_allowed)

    await wait_until_pool_is_empty(api, "burst")
    assert await namespace.list_pods() == []


async def test_a_spot_node_is_announced_drained_and_taken_back(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    api = namespace.api
    spec = a_pool_pod("web", "spot")["spec"]
    template = {key: spec[key] for key in ("nodeSelector", "tolerations")}
    await namespace.create(a_workload("Deployment", "web", replicas=1, template=template))
    (before,) = await namespace.wait_for_ready_pods(1)
    name = before["spec"]["nodeName"]

    world.take_back(name, by="aks", seconds=10)

    node = await api.get(NODES.path(name=name))
    assert condition(node, "VMEventScheduled") == "True"
    # The taint of the cordon follows when a controller has seen it.
    assert node["spec"]["unschedulable"] is True
    assert {taint["key"] for taint in node["spec"]["taints"]} >= {
        "kubernetes.azure.com/scalesetpriority",
        "remediator.aks.microsoft.com/unschedulable",
    }

    async def pod_runs_on_the_only_other_node() -> None:
        pods = await namespace.list_pods()
        assert {pod["spec"]["nodeName"] for pod in pods if is_ready(pod)} - {name}
        assert name not in {node["metadata"]["name"] for node in await pool_nodes(api, "spot")}
        assert len(world.node_group("spot")["nodes"]) == 1

    await eventually(pod_runs_on_the_only_other_node)


async def test_wrong_names_are_told(world: worlds.World) -> None:
    with pytest.raises(worlds.WorldError, match="no node group is named nothing"):
        world.node_group("nothing")
    with pytest.raises(worlds.WorldError, match="Input should be 'Normal'"):
        world.change_node_group("burst", arrival="Late")
    with pytest.raises(worlds.WorldError, match="maxNodes of group burst is 2"):
        world.change_node_group("burst", max_nodes=3)
    with pytest.raises(worlds.WorldError, match="has made node control"):
        world.disrupt_node("control")
