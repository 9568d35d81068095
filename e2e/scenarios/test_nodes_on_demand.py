"""Pools whose nodes do not exist: one whose node comes, and one whose node never comes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import InstalledCluster, Json, condition
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from tessera.resources.api_resources import PODS
from world import World, start
from world.api import NODES
from world.testing import eventually

pytestmark = pytest.mark.full

_PRODUCT = "NVIDIA-A100-SXM4-80GB"
# The last pool has a node that exists, and costs more.
BURST, NEVER, FALLBACK = "burst", "never", "fallback"
_PRICES = {BURST: "1.00", NEVER: "1.00", FALLBACK: "4.00"}
_EMPTY_SECONDS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


def write_fleet(folder: Path) -> Path:
    """Write a fleet file: groups without nodes, and a node that exists."""
    a100 = {"product": _PRODUCT, "cloud": "aws", "gpus": ["whole"]}
    groups = [
        {
            "name": name,
            "autoscaler": "karpenter",
            "labels": {"example.org/pool": name},
            "taints": [{"key": "nvidia.com/gpu"}],
            "emptySeconds": _EMPTY_SECONDS,
            **a100,
        }
        for name in (BURST, NEVER)
    ]
    nodes = [
        {"name": "control", "kind": "cpu"},
        {"name": "existing", "labels": {"example.org/pool": FALLBACK}, **a100},
    ]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes, "groups": groups}), encoding="utf-8")
    return path


async def apply_pool(cluster: InstalledCluster, name: str, template: Json | None = None) -> None:
    body = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "AcceleratorPool",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"example.org/pool": name},
            "tier": "OnDemand",
            "prices": [{"from": "2026-01-01", "perGPUHour": _PRICES[name], "currency": "USD"}],
            **({} if template is None else {"nodeTemplate": template}),
        },
    }
    await cluster.api.apply(pool_path(name), body, "kubectl")


def pool_path(name: str) -> str:
    return f"/apis/tessera.dev/v1alpha1/acceleratorpools/{name}"


def a_template(start_seconds: int) -> Json:
    template: Json = {"product": _PRODUCT, "gpus": 1, "maxNodes": 1}
    return template | {"expectedStart": f"{start_seconds}s"}


async def nodes_of(namespace: ScenarioNamespace, pool: str) -> list[str]:
    """The nodes of replicas that run."""
    pods = await namespace.list_objects(PODS)
    names = [pod["spec"].get("nodeName", "") for pod in pods]
    return sorted(name for name in names if name.startswith(pool))


async def existing_nodes(namespace: ScenarioNamespace, pool: str) -> list[str]:
    query = {"labelSelector": f"example.org/pool={pool}"}
    nodes = await namespace.cluster.api.get(NODES.path(), **query)
    return [node["metadata"]["name"] for node in nodes["items"]]


@pytest.mark.parametrize("start_seconds", [10, 60])
async def test_a_service_on_a_pool_at_zero_brings_a_node_and_leaves_none(
    gateway: Gateway, world: World, start_seconds: int
) -> None:
    namespace = gateway.namespace
    world.change_node_group(BURST, arrival="Normal", start_seconds=start_seconds)
    await apply_pool(namespace.cluster, BURST, a_template(start_seconds + 20))
    begin = time.monotonic()
    await namespace.apply_service(replicas=1, placement={"pools": [BURST]})

    waiting = await namespace.wait_for_condition("chat", "Placed", "NodesStarting")

    assert "0 of 1 node exists" in waiting["message"]
    await namespace.wait_until_ready(within=start_seconds + 90)
    seconds = time.monotonic() - begin
    assert (await answered(gateway)).startswith("chat")
    (node,) = await nodes_of(namespace, BURST)
    assert seconds >= start_seconds
    assert world.node_group(BURST)["nodes"] == [node]
    namespace.cluster.say(f"a node that takes {start_seconds} s serves after {seconds:.0f} s")

    await namespace.delete_service()

    await eventually(lambda: existing_nodes(namespace, BURST), lambda names: not names)
    assert world.node_group(BURST)["asked"] == int(node.removeprefix(f"{BURST}-"))


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
    cluster = namespace.cluster
    world.change_node_group(NEVER, arrival=arrival)
    await apply_pool(cluster, NEVER, a_template(expected_start))
    try:
        await namespace.apply_service(replicas=1)
        await namespace.wait_for_condition("chat", "Placed", "NodesStarting")
        pool = await eventually(
            lambda: cluster.api.get(pool_path(NEVER)),
            lambda pool: condition(pool, "NodesProvisioned").get("reason") == reason,
            within=expected_start + 60,
        )
        provisioned = condition(pool, "NodesProvisioned")
        assert provisioned["status"] == "False"
        assert words in provisioned["message"]
        assert pool["status"]["provisioning"]["restingUntil"]

        await apply_pool(cluster, FALLBACK)

        await namespace.wait_until_ready()
        assert await nodes_of(namespace, "existing") == ["existing"]
        assert world.node_group(NEVER)["nodes"] == []
    finally:
        await cluster.api.delete(pool_path(NEVER))
