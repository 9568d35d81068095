"""The real `tessera-node` on nodes of a world: it reports simulated GPUs and partitions them."""

import json
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import world as worlds
from world.api import NODES, Api, Json, Resource
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    container_status,
    eventually,
    is_ready,
)

pytestmark = [pytest.mark.world, pytest.mark.usefixtures("agent")]
FLEET = """
nodes:
- {name: control, kind: cpu}
- name: h100
  product: NVIDIA-H100-80GB-HBM3
  gpus: [[3g.40gb, 1g.10gb, 1g.10gb], [], whole]
  migManager: false
"""
CRD = Path(__file__).parents[2] / "crds" / "nodelayouts.yaml"
LAYOUTS = Resource("tessera.dev/v1alpha1", "nodelayouts")
PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
CHART = Path(__file__).parents[2] / "charts" / "tessera"
NAMESPACE = "tessera-system"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[worlds.World]:
    fleet = tmp_path_factory.mktemp("agent") / "fleet.yaml"
    fleet.write_text(FLEET)
    with worlds.start(fleet=fleet) as world:
        yield world
        log = (world.folder / "logs" / "world.log").read_text()
    assert "ERROR" not in log, log


@pytest.fixture(scope="module")
def agent(world: worlds.World) -> None:
    """Install what the chart renders for GPU nodes."""
    run = partial(
        subprocess.run, env=os.environ | {"KUBECONFIG": str(world.kubeconfig)}, check=True
    )
    kubectl = str(world.binary("kubectl"))
    run([kubectl, "apply", "-f", str(CRD)])
    run([kubectl, "create", "namespace", NAMESPACE])
    part = ["--show-only", "templates/node.yaml", "--set", "node.enabled=true,node.partition=true"]
    helm = [str(world.binary("helm")), "template", "tessera", str(CHART), "--namespace", NAMESPACE]
    manifests = run([*helm, *part], stdout=subprocess.PIPE).stdout
    run([kubectl, "apply", "-f", "-"], input=manifests)


async def get_layout(api: Api) -> Json:
    return await api.get(LAYOUTS.path(name="h100"))


def observed_slices(layout: Json, gpu: int) -> list[Json]:
    """List the observed slices of a GPU; empty until the agent has reported."""
    gpus = layout.get("status", {}).get("gpus", [])
    return list(gpus[gpu]["slices"]) if gpus else []


def reported_placements(layout: Json, gpu: int) -> list[tuple[str, int]]:
    return [(instance["profile"], instance["start"]) for instance in observed_slices(layout, gpu)]


def actual_placements(world: worlds.World, gpu: int) -> list[tuple[str, int]]:
    return [
        (instance["profile"], instance["start"]) for instance in world.gpus("h100")[gpu]["slices"]
    ]


async def label_device_plugin(api: Api, label: str, gpus: str) -> Json:
    """Label the node for its device plugin, and wait until so many GPUs are offered."""
    path = NODES.path(name="h100")
    await api.patch(path, {"metadata": {"labels": {PLUGIN: label}}})

    async def gpus_are_offered() -> Json:
        node = await api.get(path)
        assert node["status"]["allocatable"]["nvidia.com/gpu"] == gpus
        return node

    return await eventually(gpus_are_offered)


@pytest.mark.smoke
async def test_an_agent_reports_the_gpu_instances_and_the_pods_on_them(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    container = a_container(resources={"limits": {"nvidia.com/mig-3g.40gb": "1"}})
    await namespace.start_pod(a_pod("engine", container))

    async def engine_is_reported() -> Json:
        layout = await get_layout(namespace.api)
        assert [
            (instance["profile"], instance["pods"], instance["processes"])
            for instance in observed_slices(layout, 0)
            if instance["pods"]
        ] == [("3g.40gb", [f"{namespace.name}/engine"], 1)]
        assert reported_placements(layout, 0) == actual_placements(world, 0)
        return layout

    layout = await eventually(engine_is_reported)
    assert [gpu["mode"] for gpu in layout["status"]["gpus"]] == ["Enabled", "Enabled", "Disabled"]
    assert layout["metadata"]["ownerReferences"][0]["name"] == "h100"


async def test_an_agent_partitions_beside_a_slice_in_use_and_the_plugin_offers_it_after_a_restart(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    container = a_container(resources={"limits": {"nvidia.com/mig-3g.40gb": "1"}})
    engine = await namespace.start_pod(a_pod("engine", container))
    (used_instance,) = (
        instance for instance in world.gpus("h100")[0]["slices"] if instance["processes"]
    )

    async def slices_are_reported() -> Json:
        layout = await get_layout(namespace.api)
        assert reported_placements(layout, 0), layout
        return layout

    layout = await eventually(slices_are_reported)
    used_placement = {"profile": used_instance["profile"], "start": used_instance["start"]}
    free_start = 0 if used_instance["start"] == 4 else 4
    desired = [
        used_placement,
        {"profile": "2g.20gb", "start": free_start},
        {"profile": "1g.10gb", "start": free_start + 2},
    ]
    gpus = layout["status"]["gpus"]
    spec = {
        "gpus": [
            {"uuid": gpus[0]["uuid"], "slices": desired},
            {"uuid": gpus[1]["uuid"], "slices": [{"profile": "7g.80gb", "start": 0}]},
        ]
    }
    layout = await namespace.api.patch(LAYOUTS.path(name="h100"), {"spec": spec})
    generation = layout["metadata"]["generation"]

    async def spec_is_carried_out() -> None:
        status = (await get_layout(namespace.api))["status"]
        assert status["observedGeneration"] == generation, status

    await eventually(spec_is_carried_out)
    assert sorted(actual_placements(world, 0)) == sorted(
        (instance["profile"], instance["start"]) for instance in desired
    )
    assert actual_placements(world, 1) == [("7g.80gb", 0)]
    assert used_instance in world.gpus("h100")[0]["slices"]
    node = await namespace.api.get(NODES.path(name="h100"))
    assert node["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] == "2"  # not seen yet

    await label_device_plugin(namespace.api, "paused-for-mig-change", gpus="0")
    node = await label_device_plugin(namespace.api, "true", gpus="1")
    counts = {
        name.removeprefix("nvidia.com/mig-"): count
        for name, count in node["status"]["allocatable"].items()
        if "mig" in name
    }
    assert counts == {"1g.10gb": "1", "2g.20gb": "1", "3g.40gb": "1", "7g.80gb": "1"}
    pod = await namespace.read_pod("engine")
    assert container_status(pod) == container_status(engine)
    assert is_ready(pod)


async def test_a_pod_shows_its_node_by_its_token(namespace: WorldNamespace) -> None:
    container = a_container("kubectl auth whoami -o json > /dev/termination-log")
    pod = await namespace.run_pod(
        a_pod("who", container, restartPolicy="Never", automountServiceAccountToken=True)
    )

    words = container_status(pod)["state"]["terminated"]["message"]
    extra = json.loads(words)["status"]["userInfo"]["extra"]
    assert extra["authentication.kubernetes.io/node-name"] == [pod["spec"]["nodeName"]]
