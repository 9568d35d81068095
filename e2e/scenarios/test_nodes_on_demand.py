"""Pools whose nodes do not exist: one whose node comes, and some whose node never comes."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from demo.cluster import InstalledCluster, Json, condition
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.lifecycle import POOL_LABEL
from tessera.resources.api_resources import PODS
from world import World
from world.api import NODES
from world.testing import eventually

_PRODUCT = "NVIDIA-A100-SXM4-80GB"
COMING = "coming"
_GROUPS = {"Never": "never", "NoCapacity": "no-capacity"}
# A pool with a node that exists, whose slices cost more.
FALLBACK = "fallback"
_FALLBACK_NODE = "burst"
_ON_DEMAND = {"nvidia.com/gpu.product": _PRODUCT, "karpenter.sh/capacity-type": "on-demand"}


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


@contextlib.asynccontextmanager
async def pool(
    cluster: InstalledCluster, name: str, selector: Mapping[str, str], price: str, **spec: Any
) -> AsyncIterator[None]:
    """Have a pool for the time of the block."""
    body = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "AcceleratorPool",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": selector,
            "tier": "OnDemand",
            "prices": [{"from": "2026-01-01", "perGPUHour": price, "currency": "USD"}],
            **spec,
        },
    }
    await cluster.api.apply(pool_path(name), body, "kubectl")
    try:
        yield
    finally:
        await cluster.api.delete(pool_path(name))


def pool_at_zero(
    cluster: InstalledCluster, name: str, expected_start: int
) -> contextlib.AbstractAsyncContextManager[None]:
    """Have a pool of the nodes of a node group for the time of the block."""
    template: Json = {"product": _PRODUCT, "gpus": 1, "maxNodes": 1}
    template["expectedStart"] = f"{expected_start}s"
    return pool(cluster, name, {POOL_LABEL: name}, "1.00", nodeTemplate=template)


def pool_path(name: str) -> str:
    return f"/apis/tessera.dev/v1alpha1/acceleratorpools/{name}"


async def provisioning(cluster: InstalledCluster, name: str) -> Json:
    """Return what the status of a pool says of its nodes, with the condition."""
    body = await cluster.api.get(pool_path(name))
    status: Json = body.get("status", {}).get("provisioning") or {}
    return {**status, "condition": condition(body, "NodesProvisioned")}


async def nodes_of(namespace: ScenarioNamespace) -> list[str]:
    """Return the nodes of all replicas."""
    pods = await namespace.list_objects(PODS)
    return sorted(pod["spec"].get("nodeName", "") for pod in pods)


async def existing_nodes(namespace: ScenarioNamespace, pool: str) -> list[str]:
    query = {"labelSelector": f"{POOL_LABEL}={pool}"}
    nodes = await namespace.cluster.api.get(NODES.path(), **query)
    return [node["metadata"]["name"] for node in nodes["items"]]


@pytest.mark.parametrize("start_seconds", [10, pytest.param(60, marks=pytest.mark.full)])
async def test_a_service_on_a_pool_at_zero_brings_a_node_and_leaves_none(
    gateway: Gateway, world: World, start_seconds: int
) -> None:
    namespace, cluster = gateway.namespace, gateway.namespace.cluster
    world.change_node_group(COMING, start_seconds=start_seconds)
    async with pool_at_zero(cluster, COMING, start_seconds + 20):
        begin = time.monotonic()
        await namespace.apply_service(replicas=1, placement={"pools": [COMING]})

        await namespace.wait_until_ready(within=start_seconds + 90)

        seconds = time.monotonic() - begin
        cluster.say(f"a node that takes {start_seconds} s serves after {seconds:.0f} s")
        assert (await answered(gateway)).startswith("chat")
        (node,) = await nodes_of(namespace)
        assert world.node_group(COMING)["nodes"] == [node]

        async def start_is_recorded() -> None:
            starts = (await provisioning(cluster, COMING)).get("recentStarts", [])
            assert [start["node"] for start in starts] == [node]
            assert start_seconds <= starts[0]["seconds"] <= seconds

        async def no_node_is_left() -> None:
            assert await existing_nodes(namespace, COMING) == []

        await eventually(start_is_recorded)
        await namespace.delete_service()

        await eventually(no_node_is_left)
        assert world.node_group(COMING)["asked"] == int(node.removeprefix(f"{COMING}-"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("arrival", "expected_start", "reason", "words"),
    [
        ("Never", 10, "NodeStartTimedOut", "no node came within 10s"),
        # Its words are read once a pod has waited for 30 s.
        ("NoCapacity", 40, "InsufficientCapacity", "UnfulfillableCapacity: Unable to"),
    ],
)
async def test_a_pool_whose_node_does_not_come_rests_and_its_replica_moves_on(
    namespace: ScenarioNamespace,
    world: World,
    arrival: str,
    expected_start: int,
    reason: str,
    words: str,
) -> None:
    """The reason has the words of the cloud if it has said any."""
    # Karpenter waits for a machine for 15 minutes, and asks for no other one meanwhile: each case
    # has a group of its own.
    cluster, group = namespace.cluster, _GROUPS[arrival]
    world.change_node_group(group, arrival=arrival)
    async with pool_at_zero(cluster, group, expected_start):
        await namespace.apply_service(replicas=1, placement={"tiers": ["OnDemand"]})

        async def pool_rests() -> None:
            status = await provisioning(cluster, group)
            assert status.get("restingUntil"), status
            provisioned = status["condition"]
            assert (provisioned["status"], provisioned["reason"]) == ("False", reason)
            assert words in provisioned["message"]

        async def replica_has_moved() -> None:
            assert await nodes_of(namespace) == [_FALLBACK_NODE]

        await eventually(pool_rests, within=expected_start + 90)

        async with pool(cluster, FALLBACK, _ON_DEMAND, "14.00"):
            await namespace.wait_until_ready()
            await eventually(replica_has_moved)
            assert world.node_group(group)["nodes"] == []
            await namespace.delete_service()
