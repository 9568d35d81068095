"""The real core of Karpenter in a world, whose nodes run what is scheduled to them.

What the world plays of Karpenter (`test_world_node_groups`) is said here by the original.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import world as worlds
from world.api import NODES, PODS, Api, Json, connect
from world.autoscaling import karpenter
from world.autoscaling.reports import NODE_CLAIMS
from world.testing import (
    WorldNamespace,
    a_pool_pod,
    condition,
    event_messages,
    eventually,
    fresh_namespace,
    pool_nodes,
)

FLEET = Path(__file__).parent / "karpenter.yaml"
GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-3g.40gb"


@pytest.fixture(scope="module")
def world() -> Iterator[worlds.World]:
    """A world with Karpenter; at its end its log must have no error."""
    if not karpenter.is_built():
        pytest.skip("Karpenter is not built: python -m world build")
    with worlds.start(fleet=FLEET) as world:
        yield world
        log = (world.folder / "logs" / "world.log").read_text()
    assert "ERROR" not in log, log


@pytest.fixture
async def api(world: worlds.World) -> AsyncIterator[Api]:
    async with connect(world.kubeconfig) as api:
        yield api


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[WorldNamespace]:
    async with fresh_namespace(api) as namespace:
        yield namespace


async def claims(api: Api) -> list[Json]:
    items: list[Json] = (await api.get(NODE_CLAIMS.path()))["items"]
    return items


async def annotate(api: Api, name: str, value: str | None) -> None:
    annotations = {"karpenter.sh/do-not-disrupt": value}
    await api.patch(NODES.path(name=name), {"metadata": {"annotations": annotations}})


@pytest.mark.world
async def test_karpenter_makes_a_node_that_runs_pods_and_removes_it(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    api = namespace.api

    pod = await namespace.start_pod(a_pool_pod("wants", "burst", **{GPU: 2}))

    name = pod["spec"]["nodeName"]
    node = await api.get(NODES.path(name=name))
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert name in {container.node for container in world.containers()}
    (claim,) = await eventually(
        lambda: claims(api),
        lambda items: all(condition(claim, "Initialized") == "True" for claim in items),
    )
    assert await event_messages(api, "Nominated", "wants", namespace.name) == [
        f"Pod should schedule on: nodeclaim/{claim['metadata']['name']}"
    ]

    # It keeps an empty node that is annotated, and removes one that is not.
    other = await namespace.start_pod(a_pool_pod("other", "burst", **{GPU: 1}))
    other_name = other["spec"]["nodeName"]
    assert other_name != name
    await namespace.create(a_pool_pod("too-many", "burst", **{GPU: 2}))
    await eventually(
        lambda: event_messages(api, "FailedScheduling", "too-many", namespace.name),
        lambda texts: any("exceed limits for nodepool (NodePool=burst)" in text for text in texts),
    )
    await annotate(api, other_name, "true")
    for pod_name in ("too-many", "other", "wants"):
        await api.delete(PODS.path(namespace.name, pod_name))
    (node,) = await eventually(
        lambda: pool_nodes(api, "burst"), lambda nodes: len(nodes) < 2, within=120
    )
    assert node["metadata"]["name"] == other_name
    assert name not in {container.node for container in world.containers()}
    await annotate(api, other_name, None)
    await eventually(lambda: pool_nodes(api, "burst"), lambda nodes: not nodes, within=120)
    await eventually(lambda: claims(api), lambda items: not items)


@pytest.mark.world
async def test_karpenter_does_not_know_slices_of_a_node_that_does_not_exist(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    """A placeholder for whole GPUs brings the node, and the claim waits for its resource."""
    api = namespace.api
    await namespace.create(a_pool_pod("wants", "sliced", **{SLICE: 1}))
    await eventually(
        lambda: event_messages(api, "FailedScheduling", "wants", namespace.name),
        lambda texts: any("no instance type has enough resources" in text for text in texts),
    )

    await namespace.create(a_pool_pod("placeholder", "sliced", **{GPU: 1}))

    (node,) = await eventually(
        lambda: pool_nodes(api, "sliced"),
        lambda nodes: nodes and condition(nodes[0], "Ready") == "True",
    )
    assert [gpu["mig"] for gpu in world.gpus(node["metadata"]["name"])] == [True]
    text = 'Resource "nvidia.com/gpu" was requested but not registered'
    await eventually(
        lambda: claims(api),
        lambda items: any(
            entry["message"] == text for claim in items for entry in claim["status"]["conditions"]
        ),
    )


@pytest.mark.world
async def test_a_node_overlay_tells_karpenter_of_slices(namespace: WorldNamespace) -> None:
    pod = await namespace.start_pod(a_pool_pod("wants", "known", **{SLICE: 2}))

    assert "known" in pod["spec"]["nodeName"]


def test_karpenter_is_pinned_and_named_in_the_readme() -> None:
    """The version whose words the world plays is the one that it runs."""
    pins = (karpenter.MODULE / "go.mod").read_text()
    readme = (karpenter.MODULE.parent / "README.md").read_text()

    version = pins.partition("sigs.k8s.io/karpenter v")[2].split()[0]
    assert f"Karpenter {version}" in readme
