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
    wait_for_event,
    wait_until_pool_is_empty,
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

    async def claim_is_initialized() -> None:
        initialized = {
            claim["metadata"]["name"]: condition(claim, "Initialized")
            for claim in await claims(api)
        }
        assert list(initialized.values()) == ["True"], initialized
        assert await event_messages(api, "Nominated", "wants", namespace.name) == [
            f"Pod should schedule on: nodeclaim/{claim}" for claim in initialized
        ]

    await eventually(claim_is_initialized)

    # It keeps an empty node that is annotated, and removes one that is not.
    other = await namespace.start_pod(a_pool_pod("other", "burst", **{GPU: 1}))
    other_name = other["spec"]["nodeName"]
    assert other_name != name
    await namespace.create(a_pool_pod("too-many", "burst", **{GPU: 2}))
    text = "exceed limits for nodepool (NodePool=burst)"
    await wait_for_event(api, "FailedScheduling", "too-many", text, namespace.name)
    await annotate(api, other_name, "true")
    for pod_name in ("too-many", "other", "wants"):
        await api.delete(PODS.path(namespace.name, pod_name))

    async def one_node_remains() -> None:
        nodes = await pool_nodes(api, "burst")
        assert [node["metadata"]["name"] for node in nodes] == [other_name]
        assert name not in {container.node for container in world.containers()}

    await eventually(one_node_remains, within=120)
    await annotate(api, other_name, None)
    await wait_until_pool_is_empty(api, "burst", within=120)

    async def no_claim_remains() -> None:
        assert await claims(api) == []

    await eventually(no_claim_remains)


@pytest.mark.world
async def test_karpenter_does_not_know_slices_of_a_node_that_does_not_exist(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    """A placeholder for whole GPUs brings the node, and the claim waits for its resource."""
    api = namespace.api
    await namespace.create(a_pool_pod("wants", "sliced", **{SLICE: 1}))
    text = "no instance type has enough resources"
    await wait_for_event(api, "FailedScheduling", "wants", text, namespace.name)

    await namespace.create(a_pool_pod("placeholder", "sliced", **{GPU: 1}))

    async def node_is_ready() -> str:
        nodes = await pool_nodes(api, "sliced")
        assert [condition(node, "Ready") for node in nodes] == ["True"]
        return str(nodes[0]["metadata"]["name"])

    name = await eventually(node_is_ready)
    assert [gpu["mig"] for gpu in world.gpus(name)] == [True]

    async def claim_waits_for_its_resource() -> None:
        assert 'Resource "nvidia.com/gpu" was requested but not registered' in [
            entry["message"]
            for claim in await claims(api)
            for entry in claim.get("status", {}).get("conditions", [])
        ]

    await eventually(claim_waits_for_its_resource)


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
