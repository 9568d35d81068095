"""GPUs that are cut anew while the world runs, and all that looks at them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import yaml

import world as worlds
from world.api import NODES, Api, Json
from world.mig_manager import CLIENTS, CONFIG, PAUSED, STATE
from world.testing import Room, a_container, a_pod, eventually, is_ready

pytestmark = pytest.mark.world
FLEET = """
nodes:
- {name: control, kind: cpu}
- name: a100
  product: NVIDIA-A100-SXM4-80GB
  gpus: [[], [], whole]
  migManager: {lagSeconds: 0, pace: 0.02}
- {name: bare, product: NVIDIA-H100-80GB-HBM3, gpus: [[]], migManager: false}
"""
PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
SMALL, HALF = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
HALVES = {"3g.40gb": 2}
THIRDS = {"2g.20gb": 3, "1g.10gb": 1}
SMALLS = {"1g.10gb": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[worlds.World]:
    fleet = tmp_path_factory.mktemp("mig") / "fleet.yaml"
    fleet.write_text(FLEET)
    with worlds.start(fleet=fleet) as found:
        yield found
        log = (found.folder / "logs" / "world.log").read_text()
    assert "ERROR" not in log, log


@dataclass(slots=True)
class Cutter:
    """Asks the mig-manager of the node, as an operator does: a fresh name for every ask."""

    world: worlds.World
    api: Api
    entries: dict[str, list[Json]] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=itertools.count)

    async def node(self, name: str = "a100") -> Json:
        return await self.api.get(NODES.path(name=name))

    async def label(self, labels: Mapping[str, str]) -> None:
        await self.api.patch(NODES.path(name="a100"), {"metadata": {"labels": dict(labels)}})

    async def ask(self, layouts: Mapping[int, Mapping[str, int]]) -> None:
        name = f"plan-{next(self.names)}"
        self.entries[name] = [
            {"devices": [gpu], "mig-enabled": True, "mig-devices": dict(slices)}
            for gpu, slices in layouts.items()
        ]
        await self.write()
        await self.label({CONFIG: name, STATE: "asked"})

    async def write(self) -> None:
        text = yaml.safe_dump({"version": "v1", "mig-configs": self.entries})
        meta = {"name": "tessera-mig", "namespace": "gpu-operator"}
        found = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
        await self.api.apply_manifest(found | {"data": {"config.yaml": text}})
        await eventually(self.arrived, lambda it: it == text)

    async def arrived(self) -> str:
        return self.world.mig_config("a100")

    async def answered(self, state: str) -> Json:
        return await eventually(self.node, lambda it: it["metadata"]["labels"].get(STATE) == state)

    async def offers(self, wanted: Mapping[str, int]) -> Json:
        """Wait for the allocatable GPUs and slices; all others are at zero."""
        return await eventually(self.node, lambda it: allocatable(it) == wanted)

    async def cut(self, layouts: Mapping[int, Mapping[str, int]]) -> None:
        """Until it is done, and offered."""
        await self.ask(layouts)
        await self.answered("success")
        await self.offers(self.cut_now())

    def cut_now(self) -> dict[str, int]:
        """What there is, in the words of allocatable."""
        found = {"nvidia.com/gpu": 1}
        for gpu in self.world.gpus("a100"):
            for one in gpu["slices"]:
                name = f"nvidia.com/mig-{one['profile']}"
                found[name] = found.get(name, 0) + 1
        return found


def allocatable(node: Json) -> dict[str, int]:
    """GPUs and slices that are offered; without those at zero."""
    found = node["status"]["allocatable"].items()
    return {name: int(count) for name, count in found if "nvidia" in name and count != "0"}


def label(node: Json, name: str) -> str | None:
    found: str | None = node["metadata"]["labels"].get(f"nvidia.com/{name}")
    return found


@pytest.fixture
async def cutter(api: Api, world: worlds.World) -> Cutter:
    """With two halves on the first GPU and small slices on the second."""
    world.mig_manager("a100", deaf=False, stuck=False, lies=False, fails=0, reboots=False)
    found = Cutter(world, api, names=_names)
    await found.cut({0: HALVES, 1: SMALLS})
    return found


_names = itertools.count()


def asking(resource: str) -> Json:
    return a_container(resources={"limits": {resource: "1"}})


async def test_a_new_configuration_is_cut_offered_and_labelled(cutter: Cutter) -> None:
    await cutter.ask({0: THIRDS})
    await cutter.answered("success")

    node = await cutter.offers({"nvidia.com/gpu": 1, SMALL: 4, "nvidia.com/mig-2g.20gb": 3})
    assert node["status"]["allocatable"][HALF] == "0"  # never forgotten
    node = await eventually(cutter.node, lambda it: label(it, "mig-2g.20gb.count") == "3")
    assert label(node, "mig-1g.10gb.count") == "4"
    assert label(node, "mig-3g.40gb.count") is None
    assert label(node, "gpu.count") == "3"


async def test_pods_on_other_gpus_go_on_and_new_ones_get_the_new_slices(
    cutter: Cutter, here: Room
) -> None:
    old = await here.ready(a_pod("old", asking(SMALL)))

    await cutter.cut({0: THIRDS})
    new = await here.ready(a_pod("new", asking("nvidia.com/mig-2g.20gb")))

    assert is_ready(new)
    now = await here.pod("old")
    assert now["status"]["containerStatuses"] == old["status"]["containerStatuses"]


async def test_a_slice_in_use_is_not_destroyed(cutter: Cutter, here: Room) -> None:
    await here.ready(a_pod("engine", asking(HALF)))
    (used,) = (one for one in cutter.world.gpus("a100")[0]["slices"] if one["processes"])

    await cutter.ask({0: THIRDS})
    await cutter.answered("failed")

    assert used in cutter.world.gpus("a100")[0]["slices"]
    assert is_ready(await here.pod("engine"))


async def test_a_slice_is_free_once_its_pod_is_gone(cutter: Cutter, here: Room) -> None:
    await here.ended(a_pod("short", asking(HALF) | a_container("exit 0"), restartPolicy="Never"))

    await cutter.cut({0: THIRDS})


async def test_a_process_that_is_no_pods_keeps_its_slice_too(cutter: Cutter) -> None:
    device = cutter.world.gpus("a100")[0]["slices"][0]["uuid"]
    cutter.world.compute("a100", device, "nvsm")

    await cutter.ask({0: THIRDS})
    await cutter.answered("failed")

    cutter.world.compute("a100", device, "nvsm", begin=False)
    await cutter.cut({0: THIRDS})


async def test_while_the_device_plugin_is_away_nobody_gets_a_device(
    cutter: Cutter, here: Room
) -> None:
    await here.ready(a_pod("old", asking(SMALL)))
    await cutter.label({PLUGIN: PAUSED})
    await cutter.offers({})

    # Bound by hand, since the scheduler would not.
    refused = await here.ended(a_pod("new", asking(SMALL), nodeName="a100"))
    still = is_ready(await here.pod("old"))
    await cutter.label({PLUGIN: "true"})
    await cutter.offers(cutter.cut_now())

    assert refused["status"]["reason"] == "UnexpectedAdmissionError"
    assert f"cannot allocate unhealthy devices {SMALL}" in refused["status"]["message"]
    assert still


async def test_an_answer_stays_until_the_next_ask_is_taken_up(cutter: Cutter) -> None:
    cutter.world.mig_manager("a100", pace=1)
    name = f"plan-{next(cutter.names)}"
    cutter.entries[name] = [{"devices": [0], "mig-enabled": True, "mig-devices": THIRDS}]
    await cutter.write()

    await cutter.label({CONFIG: name})
    node = await cutter.node()
    cutter.world.mig_manager("a100", pace=0.02)

    assert node["metadata"]["labels"][STATE] == "success"
    await cutter.answered("pending")
    await cutter.answered("success")


async def test_a_name_that_has_not_arrived_fails_and_is_not_tried_again(cutter: Cutter) -> None:
    name = f"plan-{next(cutter.names)}"
    await cutter.label({CONFIG: name, STATE: "asked"})
    await cutter.answered("failed")

    cutter.entries[name] = [{"devices": [0], "mig-enabled": True, "mig-devices": THIRDS}]
    await cutter.write()
    await cutter.label({CONFIG: name, STATE: "asked"})  # no event: the same value

    fresh = f"plan-{next(cutter.names)}"
    cutter.entries[fresh] = cutter.entries[name]
    await cutter.write()
    assert (await cutter.node())["metadata"]["labels"][STATE] == "asked"
    await cutter.label({CONFIG: fresh})
    await cutter.answered("success")


@pytest.mark.full
async def test_one_that_is_stuck_leaves_the_device_plugin_away(cutter: Cutter) -> None:
    cutter.world.mig_manager("a100", stuck=True)

    await cutter.ask({0: THIRDS})
    await cutter.offers({})

    node = await cutter.node()
    assert label(node, "gpu.deploy.device-plugin") == PAUSED
    assert label(node, "mig.config.state") == "pending"
    # Nobody but a person or an operator brings them back.
    await cutter.label(dict.fromkeys(CLIENTS, "true"))
    await cutter.offers(cutter.cut_now())


@pytest.mark.full
async def test_one_that_lies_says_success_without_devices(cutter: Cutter) -> None:
    cutter.world.mig_manager("a100", lies=True)

    await cutter.ask({0: THIRDS})
    await cutter.answered("success")

    node = await cutter.offers({"nvidia.com/gpu": 1, SMALL: 3, HALF: 2})
    assert label(node, "mig-3g.40gb.count") == "2"


@pytest.mark.full
async def test_one_that_fails_leaves_the_gpu_empty_and_a_fresh_name_mends_it(
    cutter: Cutter,
) -> None:
    cutter.world.mig_manager("a100", fails=1)

    await cutter.ask({0: THIRDS})
    await cutter.answered("failed")
    assert cutter.world.gpus("a100")[0]["slices"] == []

    await cutter.cut({0: THIRDS})


@pytest.mark.full
async def test_one_that_reboots_says_so(cutter: Cutter) -> None:
    cutter.world.mig_manager("a100", reboots=True)

    await cutter.ask({0: THIRDS})

    await cutter.answered("rebooting")
    await cutter.answered("success")


@pytest.mark.full
async def test_a_deaf_one_says_nothing(cutter: Cutter) -> None:
    cutter.world.mig_manager("a100", deaf=True)
    await cutter.ask({0: THIRDS})
    before = cutter.cut_now()

    cutter.world.mig_manager("a100", deaf=False)

    await cutter.answered("success")
    assert before == {"nvidia.com/gpu": 1, SMALL: 3, HALF: 2}


@pytest.mark.full
async def test_a_driver_that_refuses_is_heard(cutter: Cutter) -> None:
    cutter.world.fail("a100", "nvmlDeviceCreateGpuInstance", "INSUFFICIENT_RESOURCES")

    await cutter.ask({0: THIRDS})

    await cutter.answered("failed")


async def test_a_node_may_have_gpus_in_mig_mode_with_nothing_cut(cutter: Cutter) -> None:
    node = await cutter.node("bare")

    assert allocatable(node) == {}
    assert label(node, "gpu.count") == "1"
    assert label(node, "gpu.deploy.mig-manager") is None
    assert cutter.world.gpus("bare")[0]["mig"]


async def test_the_kubelet_tells_which_pod_holds_which_slice(cutter: Cutter, here: Room) -> None:
    await here.ready(a_pod("engine", asking(HALF)))
    (used,) = (one for one in cutter.world.gpus("a100")[0]["slices"] if one["processes"])

    found = await pod_resources(cutter.world.folder / "nodes" / "a100")

    assert f"{here.namespace}".encode() in found
    assert b"engine" in found
    assert used["uuid"].encode() in found


async def pod_resources(files: Path) -> bytes:
    socket = (files / "var/lib/kubelet/pod-resources").resolve() / "kubelet.sock"
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        ask = channel.unary_unary("/v1.PodResourcesLister/List")
        found: bytes = await ask(b"")
        return found
