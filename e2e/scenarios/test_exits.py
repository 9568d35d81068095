"""States that nobody left once: each of them ends by an edit, and no stream of anybody breaks."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest

from demo import mig
from demo.cluster import NAMESPACE, Json, install
from demo.ready_replicas import watch_minimum_ready
from scenarios.actions import ScenarioNamespace
from scenarios.floors import (
    BAD_IMAGE,
    FloorScene,
    Pool,
    create_pool,
    delete_pools,
    floor_scene,
    streaming,
)
from scenarios.gates import GatedNamespace
from scenarios.gates import streaming as streaming_from
from scenarios.gateway import Gateway, ready_pods
from scenarios.lifecycle import POOL_LABEL
from scenarios.streams import wait_for_replicas
from scenarios.tiers import end_node, list_pods
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.resources.api_resources import PODS
from world import World, start
from world.testing import eventually

_NODES = 4
_POOL = Pool("floor-exits", "OnDemand", "3.36")
_VARIANT = f"{_POOL.label}-1gpu"
_SHORT = {_VARIANT: _NODES - 1, f"{_VARIANT} that does not serve": 1}
# A version of which no replica gets ready counts as down after its expected start and 10 minutes.
_DOWN_SECONDS = 1200
_SLICES = Pool("floor-slices", "Reserved", "1.79")
_TINY, _MEDIUM = "hf://Qwen/Qwen2.5-0.5B-Instruct", "hf://meta-llama/Llama-3.1-8B-Instruct"
# Streams of the neighbor that end while a plan would move it; 100 of them ended within 10 s.
_STREAMS = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with four nodes of one GPU each, and one with slices and a whole GPU."""
    nodes: list[Json] = [
        {"name": "control", "kind": "cpu"},
        {"name": _POOL.label, "count": _NODES, "gpus": ["whole"]},
        {"name": mig.LABEL, "gpus": [["1g.10gb"] * 4 + ["3g.40gb"], "whole"]},
    ]
    for node in nodes[1:]:
        node |= {"product": "NVIDIA-A100-SXM4-80GB", "labels": {POOL_LABEL: node["name"]}}
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}))
    with start(fleet=path) as world:
        yield world


@pytest.mark.full
async def test_a_typo_of_a_gated_service_in_a_full_pool_is_fixed_by_an_edit(
    namespace: ScenarioNamespace,
) -> None:
    """The replicas that cannot start give their devices to those of the fix."""
    await create_pool(namespace, _POOL)
    try:
        await _fix_a_typo(namespace)
    finally:
        await namespace.delete_service()
        await delete_pools(namespace.cluster)


async def _fix_a_typo(namespace: ScenarioNamespace) -> None:
    gated = GatedNamespace(namespace, namespace.cluster.world.folder / f"{namespace.name}.jsonl")
    await gated.apply_gate()
    await namespace.apply_service("mail", replicas=2)
    await namespace.wait_until_ready("mail")
    async with (
        watch_minimum_ready(namespace.cluster, namespace.name) as minimum,
        streaming_from(namespace, "mail") as ends,
    ):
        await gated.apply_service({}, replicas=2, engine={"image": BAD_IMAGE})
        await namespace.wait_for_condition("chat", "Progressing", "ImagePullFailed")
        await gated.apply_service({}, replicas=2)
        words = ("spec.rollout.skipGate", "counts as down from", "The version in force")
        waiting = await namespace.wait_for_condition(
            "chat", "Progressing", "ImagePullFailed", words=words
        )
        began = time.monotonic()
        namespace.cluster.say(waiting["message"])
        await namespace.wait_for_condition("chat", "Progressing", "RolloutComplete", _DOWN_SECONDS)
        await wait_for_replicas(namespace, 2)
        await namespace.wait_until_ready()
        seconds = time.monotonic() - began
    least = minimum.replicas["mail"]
    namespace.cluster.say(f"fixed after {seconds:.0f} s, {ends}, at least {least} of 2 Ready")
    assert ends.broken == []
    assert least == 2


@pytest.mark.full
async def test_a_service_short_of_a_node_takes_an_edit(gateway: Gateway) -> None:
    """One of the three replicas that are left is away at a time."""
    async with floor_scene(gateway, (_POOL,), {_VARIANT: _NODES}) as scene:
        node = await _free_of_tessera(scene)
        try:
            await end_node(scene.cluster, node)
            await eventually(partial(scene.check_counts, _SHORT))
            async with streaming(scene):
                await scene.edit("two")
                await eventually(partial(scene.check_counts, _SHORT, "two"))
                scene.take_time("rolled out")
            scene.cluster.say(await scene.describe())
            scene.end(away=2)
        finally:
            scene.cluster.world.wake(node)
        await scene.settle("whole", {_VARIANT: _NODES}, "two")
        assert scene.least_ready >= _NODES - 2


async def _free_of_tessera(scene: FloorScene) -> str:
    """Return a node of a replica on which no pod of Tessera's own is."""
    own = (await scene.cluster.api.get(PODS.path(NAMESPACE)))["items"]
    replicas = await list_pods(scene.namespace)
    nodes, others = ({pod["spec"].get("nodeName") for pod in pods} for pods in (replicas, own))
    return str(min(nodes - others))


@pytest.fixture
async def neighbor(namespace: ScenarioNamespace) -> AsyncIterator[ScenarioNamespace]:
    """A namespace of another tenant."""
    neighbor = ScenarioNamespace(namespace.cluster, f"{namespace.name}-neighbor")
    await neighbor.cluster.api.create("/api/v1/namespaces", {"metadata": {"name": neighbor.name}})
    try:
        yield neighbor
    finally:
        await neighbor.delete()


@pytest.mark.full
@pytest.mark.parametrize("mode", ["Propose", "Auto"])
async def test_a_tenant_that_scales_leaves_its_neighbor_on_its_slice(
    namespace: ScenarioNamespace, neighbor: ScenarioNamespace, mode: str
) -> None:
    cluster = namespace.cluster
    # Without a gateway a service has one type of device at a time.
    await install(cluster, "gateway.enabled=true", *mig.values("Agent"))
    await ready_pods(cluster, 1)
    await create_pool(namespace, _SLICES)
    pool = ACCELERATOR_POOLS.path(None, _SLICES.label)
    spec = {
        "nodeSelector": {POOL_LABEL: mig.LABEL},
        "namespaces": [namespace.name, neighbor.name],
        "mig": {"mode": mode, "backend": "Agent"},
    }
    await cluster.api.patch(pool, {"spec": spec})
    try:
        await _scale_beside(namespace, neighbor)
        status = (await cluster.api.get(pool))["status"]["mig"]
        assert "proposed" not in status, status
    finally:
        await cluster.api.delete(pool)


async def _scale_beside(namespace: ScenarioNamespace, neighbor: ScenarioNamespace) -> None:
    """Take the whole GPU for a third replica, since all slices are taken."""
    fixed = {"placement": {"mig": "Existing"}, "replicas": 1}
    await neighbor.apply_service("large", model={"uri": _MEDIUM}, **fixed)
    await namespace.apply_service(placement={"mig": "Auto"}, replicas=2)
    await neighbor.apply_service(
        "mail", model={"uri": _TINY}, placement={"mig": "Auto"}, replicas=1
    )
    await neighbor.apply_service("other", model={"uri": _TINY}, **fixed)
    await wait_for_replicas(namespace, 2)
    for name in ("large", "mail", "other"):
        await neighbor.wait_until_ready(name)
    before = await _place(neighbor)
    assert before["resources"] == {"nvidia.com/mig-1g.10gb": "1"}
    async with (
        watch_minimum_ready(namespace.cluster, neighbor.name) as minimum,
        streaming_from(neighbor, "mail") as ends,
        streaming_from(namespace) as own,
    ):
        await namespace.apply_service(placement={"mig": "Auto"}, replicas=3)
        await wait_for_replicas(namespace, 3)
        count = ends.finished + _STREAMS

        async def have_ended() -> None:
            assert ends.finished >= count

        await eventually(have_ended)
        after = await _place(neighbor)
    namespace.cluster.say(f"mail {ends}, chat {own}, {minimum}; {before}, then {after}")
    assert after == before
    assert ends.broken == own.broken == []
    assert (minimum.replicas["mail"], minimum.started) == (1, 0)


async def _place(namespace: ScenarioNamespace) -> Json:
    """Return the replica of the neighbor, its devices and what it costs an hour."""
    (pod,) = await list_pods(namespace, "mail")
    status = await namespace.service_status("mail")
    return {
        "uid": pod["metadata"]["uid"],
        "resources": {
            name: count
            for name, count in pod["spec"]["containers"][0]["resources"]["limits"].items()
            if name.startswith("nvidia.com/")
        },
        "perHour": status["cost"]["perHour"],
    }
