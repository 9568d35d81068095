"""The real `tessera-node` on nodes of a world: what it tells of made up GPUs, and how it cuts."""

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
    Room,
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
    with worlds.start(fleet=fleet) as found:
        yield found
        log = (found.folder / "logs" / "world.log").read_text()
    assert "ERROR" not in log, log


@pytest.fixture(scope="module")
def agent(world: worlds.World) -> None:
    """What the chart installs on GPU nodes, and on the cluster for them."""
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


async def layout(api: Api) -> Json:
    return await api.get(LAYOUTS.path(name="h100"))


def slices(found: Json, gpu: int) -> list[Json]:
    """None as long as its agent has told nothing."""
    seen = found.get("status", {}).get("gpus", [])
    return list(seen[gpu]["slices"]) if seen else []


def told(found: Json, gpu: int) -> list[tuple[str, int]]:
    return [(one["profile"], one["start"]) for one in slices(found, gpu)]


def there(world: worlds.World, gpu: int) -> list[tuple[str, int]]:
    return [(one["profile"], one["start"]) for one in world.gpus("h100")[gpu]["slices"]]


async def plugin(api: Api, label: str, gpus: str) -> Json:
    """Label the node for its device plugin, and wait until so many GPUs are offered."""
    path = NODES.path(name="h100")
    await api.patch(path, {"metadata": {"labels": {PLUGIN: label}}})
    return await eventually(
        lambda: api.get(path), lambda it: it["status"]["allocatable"]["nvidia.com/gpu"] == gpus
    )


async def test_an_agent_tells_what_is_cut_and_who_is_on_it(here: Room, world: worlds.World) -> None:
    asking = a_container(resources={"limits": {"nvidia.com/mig-3g.40gb": "1"}})
    await here.ready(a_pod("engine", asking))

    name = f"{here.namespace}/engine"
    found = await eventually(
        lambda: layout(here.api),
        lambda it: any(name in one["pods"] for one in slices(it, 0)),
    )

    assert [gpu["mode"] for gpu in found["status"]["gpus"]] == ["Enabled", "Enabled", "Disabled"]
    assert told(found, 0) == there(world, 0)
    (used,) = (one for one in slices(found, 0) if one["pods"])
    assert (used["profile"], used["processes"]) == ("3g.40gb", 1)
    assert found["metadata"]["ownerReferences"][0]["name"] == "h100"


async def test_an_agent_cuts_beside_a_slice_in_use_and_the_plugin_offers_it_once_begun_anew(
    here: Room, world: worlds.World
) -> None:
    asking = a_container(resources={"limits": {"nvidia.com/mig-3g.40gb": "1"}})
    engine = await here.ready(a_pod("engine", asking))
    (used,) = (one for one in world.gpus("h100")[0]["slices"] if one["processes"])
    found = await eventually(lambda: layout(here.api), lambda it: told(it, 0))

    kept = {"profile": used["profile"], "start": used["start"]}
    left = 0 if used["start"] == 4 else 4
    wanted = [
        kept,
        {"profile": "2g.20gb", "start": left},
        {"profile": "1g.10gb", "start": left + 2},
    ]
    gpus = found["status"]["gpus"]
    spec = {
        "gpus": [
            {"uuid": gpus[0]["uuid"], "slices": wanted},
            {"uuid": gpus[1]["uuid"], "slices": [{"profile": "7g.80gb", "start": 0}]},
        ]
    }
    found = await here.api.patch(LAYOUTS.path(name="h100"), {"spec": spec})
    generation = found["metadata"]["generation"]
    await eventually(
        lambda: layout(here.api), lambda it: it["status"]["observedGeneration"] == generation
    )

    assert sorted(there(world, 0)) == sorted((one["profile"], one["start"]) for one in wanted)
    assert there(world, 1) == [("7g.80gb", 0)]
    assert used in world.gpus("h100")[0]["slices"]
    node = await here.api.get(NODES.path(name="h100"))
    assert node["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] == "2"  # not seen yet

    await plugin(here.api, "paused-for-mig-change", gpus="0")
    node = await plugin(here.api, "true", gpus="1")
    counts = {
        name.removeprefix("nvidia.com/mig-"): count
        for name, count in node["status"]["allocatable"].items()
        if "mig" in name
    }
    assert counts == {"1g.10gb": "1", "2g.20gb": "1", "3g.40gb": "1", "7g.80gb": "1"}
    now = await here.pod("engine")
    assert container_status(now) == container_status(engine)
    assert is_ready(now)


async def test_a_pod_shows_its_node_by_its_token(here: Room) -> None:
    container = a_container("kubectl auth whoami -o json > /dev/termination-log")
    pod = await here.ended(
        a_pod("who", container, restartPolicy="Never", automountServiceAccountToken=True)
    )

    words = container_status(pod)["state"]["terminated"]["message"]
    extra = json.loads(words)["status"]["userInfo"]["extra"]
    assert extra["authentication.kubernetes.io/node-name"] == [pod["spec"]["nodeName"]]
