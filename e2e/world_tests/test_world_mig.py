"""GPUs that are repartitioned while the world runs, and everything that observes them."""

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
from world.testing import WorldNamespace, a_container, a_pod, eventually, is_ready

pytestmark = pytest.mark.world
FLEET = """
nodes:
- {name: control, kind: cpu}
- name: a100
  product: NVIDIA-A100-SXM4-80GB
  gpus: [[], [], whole]
  migManager: {lagSeconds: 0, pace: 0.02}
- name: bare
  product: NVIDIA-H100-80GB-HBM3
  gpus: [[]]
  migManager: false
  resources: {nvidia.com/hostdev: 8}
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
    with worlds.start(fleet=fleet) as world:
        yield world
        log = (world.folder / "logs" / "world.log").read_text()
    assert "ERROR" not in log, log


@dataclass(slots=True)
class Partitioner:
    """Requests partitions from the mig-manager of the node, each under a new name."""

    world: worlds.World
    api: Api
    entries: dict[str, list[Json]] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=itertools.count)

    async def node(self, name: str = "a100") -> Json:
        return await self.api.get(NODES.path(name=name))

    async def label(self, labels: Mapping[str, str]) -> None:
        await self.api.patch(NODES.path(name="a100"), {"metadata": {"labels": dict(labels)}})

    async def request(self, layouts: Mapping[int, Mapping[str, int]]) -> None:
        name = f"plan-{next(self.names)}"
        self.entries[name] = [
            {"devices": [gpu], "mig-enabled": True, "mig-devices": dict(slices)}
            for gpu, slices in layouts.items()
        ]
        await self.write()
        await self.label({CONFIG: name, STATE: "requested"})

    async def write(self) -> None:
        text = yaml.safe_dump({"version": "v1", "mig-configs": self.entries})
        meta = {"name": "tessera-mig", "namespace": "gpu-operator"}
        config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
        await self.api.apply_manifest(config_map | {"data": {"config.yaml": text}})

        async def config_has_arrived() -> None:
            assert self.world.mig_config("a100") == text

        await eventually(config_has_arrived)

    async def wait_for_state(self, state: str) -> None:
        async def state_is_reported() -> None:
            assert (await self.node())["metadata"]["labels"].get(STATE) == state

        await eventually(state_is_reported)

    async def wait_for_resources(self, expected: Mapping[str, int]) -> Json:
        """Wait for the allocatable GPUs and slices; all others are at zero."""

        async def resources_are_offered() -> Json:
            node = await self.node()
            assert allocatable(node) == expected
            return node

        return await eventually(resources_are_offered)

    async def partition(self, layouts: Mapping[int, Mapping[str, int]]) -> None:
        """Request a partition, and wait until its slices are offered."""
        await self.request(layouts)
        await self.wait_for_state("success")
        await self.wait_for_resources(self.current_resources())

    def current_resources(self) -> dict[str, int]:
        """Count the GPUs and slices of the driver, by the names of allocatable."""
        counts = {"nvidia.com/gpu": 1}
        for gpu in self.world.gpus("a100"):
            for instance in gpu["slices"]:
                name = f"nvidia.com/mig-{instance['profile']}"
                counts[name] = counts.get(name, 0) + 1
        return counts


def allocatable(node: Json) -> dict[str, int]:
    """GPUs and slices that are offered; without those at zero."""
    resources = node["status"]["allocatable"].items()
    return {name: int(count) for name, count in resources if "nvidia" in name and count != "0"}


def nvidia_label(node: Json, name: str) -> str | None:
    value: str | None = node["metadata"]["labels"].get(f"nvidia.com/{name}")
    return value


@pytest.fixture
async def partitioner(api: Api, world: worlds.World) -> Partitioner:
    """Requests for a node with two halves on the first GPU and small slices on the second."""
    world.mig_manager("a100", deaf=False, stuck=False, lies=False, fails=0, reboots=False)
    partitioner = Partitioner(world, api, names=_names)
    await partitioner.partition({0: HALVES, 1: SMALLS})
    return partitioner


_names = itertools.count()


def a_gpu_container(resource: str) -> Json:
    return a_container(resources={"limits": {resource: "1"}})


async def test_a_new_configuration_is_partitioned_offered_and_labeled(
    partitioner: Partitioner,
) -> None:
    await partitioner.request({0: THIRDS})
    await partitioner.wait_for_state("success")

    node = await partitioner.wait_for_resources(
        {"nvidia.com/gpu": 1, SMALL: 4, "nvidia.com/mig-2g.20gb": 3}
    )
    assert node["status"]["allocatable"][HALF] == "0"  # never forgotten

    async def slices_are_labeled() -> None:
        node = await partitioner.node()
        assert nvidia_label(node, "mig-2g.20gb.count") == "3"
        assert nvidia_label(node, "mig-1g.10gb.count") == "4"
        assert nvidia_label(node, "mig-3g.40gb.count") is None
        assert nvidia_label(node, "gpu.count") == "3"

    await eventually(slices_are_labeled)


async def test_pods_on_other_gpus_go_on_and_new_ones_get_the_new_slices(
    partitioner: Partitioner, namespace: WorldNamespace
) -> None:
    old = await namespace.start_pod(a_pod("old", a_gpu_container(SMALL)))

    await partitioner.partition({0: THIRDS})
    new = await namespace.start_pod(a_pod("new", a_gpu_container("nvidia.com/mig-2g.20gb")))

    assert is_ready(new)
    pod = await namespace.read_pod("old")
    assert pod["status"]["containerStatuses"] == old["status"]["containerStatuses"]


async def test_a_slice_in_use_is_not_destroyed(
    partitioner: Partitioner, namespace: WorldNamespace
) -> None:
    await namespace.start_pod(a_pod("engine", a_gpu_container(HALF)))
    (used_instance,) = (
        instance
        for instance in partitioner.world.gpus("a100")[0]["slices"]
        if instance["processes"]
    )

    await partitioner.request({0: THIRDS})
    await partitioner.wait_for_state("failed")

    assert used_instance in partitioner.world.gpus("a100")[0]["slices"]
    assert is_ready(await namespace.read_pod("engine"))


@pytest.mark.smoke
async def test_a_slice_is_free_once_its_pod_is_gone(
    partitioner: Partitioner, namespace: WorldNamespace
) -> None:
    await namespace.run_pod(
        a_pod("short", a_gpu_container(HALF) | a_container("exit 0"), restartPolicy="Never")
    )

    await partitioner.partition({0: THIRDS})


async def test_a_process_outside_of_pods_keeps_its_slice_too(partitioner: Partitioner) -> None:
    device = partitioner.world.gpus("a100")[0]["slices"][0]["uuid"]
    partitioner.world.compute("a100", device, "nvsm")

    await partitioner.request({0: THIRDS})
    await partitioner.wait_for_state("failed")

    partitioner.world.compute("a100", device, "nvsm", begin=False)
    await partitioner.partition({0: THIRDS})


async def test_while_the_device_plugin_is_away_no_pod_gets_a_device(
    partitioner: Partitioner, namespace: WorldNamespace
) -> None:
    await namespace.start_pod(a_pod("old", a_gpu_container(SMALL)))
    await partitioner.label({PLUGIN: PAUSED})
    await partitioner.wait_for_resources({})

    # Bound by hand, since the scheduler would not.
    rejected_pod = await namespace.run_pod(a_pod("new", a_gpu_container(SMALL), nodeName="a100"))
    old_is_ready = is_ready(await namespace.read_pod("old"))
    await partitioner.label({PLUGIN: "true"})
    await partitioner.wait_for_resources(partitioner.current_resources())

    assert rejected_pod["status"]["reason"] == "UnexpectedAdmissionError"
    assert f"cannot allocate unhealthy devices {SMALL}" in rejected_pod["status"]["message"]
    assert old_is_ready


async def test_a_state_stays_until_the_next_request_is_taken_up(partitioner: Partitioner) -> None:
    partitioner.world.mig_manager("a100", pace=5)
    name = f"plan-{next(partitioner.names)}"
    partitioner.entries[name] = [{"devices": [0], "mig-enabled": True, "mig-devices": THIRDS}]
    await partitioner.write()

    await partitioner.label({CONFIG: name})
    node = await partitioner.node()
    partitioner.world.mig_manager("a100", pace=0.1)

    assert node["metadata"]["labels"][STATE] == "success"
    await partitioner.wait_for_state("pending")
    partitioner.world.mig_manager("a100", pace=0.02)
    await partitioner.wait_for_state("success")


async def test_a_name_that_has_not_arrived_fails_and_is_not_tried_again(
    partitioner: Partitioner,
) -> None:
    name = f"plan-{next(partitioner.names)}"
    await partitioner.label({CONFIG: name, STATE: "requested"})
    await partitioner.wait_for_state("failed")

    partitioner.entries[name] = [{"devices": [0], "mig-enabled": True, "mig-devices": THIRDS}]
    await partitioner.write()
    await partitioner.label({CONFIG: name, STATE: "requested"})  # no event: the same value

    fresh = f"plan-{next(partitioner.names)}"
    partitioner.entries[fresh] = partitioner.entries[name]
    await partitioner.write()
    assert (await partitioner.node())["metadata"]["labels"][STATE] == "requested"
    await partitioner.label({CONFIG: fresh})
    await partitioner.wait_for_state("success")


@pytest.mark.full
async def test_a_mig_manager_that_is_stuck_leaves_the_device_plugin_away(
    partitioner: Partitioner,
) -> None:
    partitioner.world.mig_manager("a100", stuck=True)

    await partitioner.request({0: THIRDS})
    await partitioner.wait_for_resources({})

    node = await partitioner.node()
    assert nvidia_label(node, "gpu.deploy.device-plugin") == PAUSED
    assert nvidia_label(node, "mig.config.state") == "pending"
    # Only a person or an operator starts them again.
    await partitioner.label(dict.fromkeys(CLIENTS, "true"))
    await partitioner.wait_for_resources(partitioner.current_resources())


@pytest.mark.full
async def test_a_mig_manager_that_lies_reports_success_without_devices(
    partitioner: Partitioner,
) -> None:
    partitioner.world.mig_manager("a100", lies=True)

    await partitioner.request({0: THIRDS})
    await partitioner.wait_for_state("success")

    node = await partitioner.wait_for_resources({"nvidia.com/gpu": 1, SMALL: 3, HALF: 2})
    assert nvidia_label(node, "mig-3g.40gb.count") == "2"


@pytest.mark.full
async def test_a_mig_manager_that_fails_leaves_the_gpu_empty_and_a_new_name_fixes_it(
    partitioner: Partitioner,
) -> None:
    partitioner.world.mig_manager("a100", fails=1)

    await partitioner.request({0: THIRDS})
    await partitioner.wait_for_state("failed")
    assert partitioner.world.gpus("a100")[0]["slices"] == []

    await partitioner.partition({0: THIRDS})


@pytest.mark.full
async def test_a_mig_manager_that_reboots_reports_it(partitioner: Partitioner) -> None:
    partitioner.world.mig_manager("a100", reboots=True)

    await partitioner.request({0: THIRDS})

    await partitioner.wait_for_state("rebooting")
    await partitioner.wait_for_state("success")


@pytest.mark.full
async def test_a_mig_manager_that_ignores_a_request_reports_nothing(
    partitioner: Partitioner,
) -> None:
    partitioner.world.mig_manager("a100", deaf=True)
    await partitioner.request({0: THIRDS})
    before = partitioner.current_resources()

    partitioner.world.mig_manager("a100", deaf=False)

    await partitioner.wait_for_state("success")
    assert before == {"nvidia.com/gpu": 1, SMALL: 3, HALF: 2}


@pytest.mark.full
async def test_a_refusal_of_the_driver_fails_the_request(partitioner: Partitioner) -> None:
    partitioner.world.fail("a100", "nvmlDeviceCreateGpuInstance", "INSUFFICIENT_RESOURCES")

    await partitioner.request({0: THIRDS})

    await partitioner.wait_for_state("failed")


@pytest.mark.full
async def test_a_slow_device_plugin_comes_and_goes_late(partitioner: Partitioner) -> None:
    partitioner.world.device_plugin("a100", start_seconds=2, stop_seconds=5)
    offered = partitioner.current_resources()

    await partitioner.label({PLUGIN: PAUSED})
    while_it_stops = allocatable(await partitioner.node())
    await partitioner.wait_for_resources({})
    await partitioner.label({PLUGIN: "true"})
    await partitioner.wait_for_resources(offered)

    partitioner.world.device_plugin("a100", start_seconds=1)
    assert while_it_stops == offered


async def test_a_lost_gpu_is_not_offered_and_slices_without_a_use_go_with_a_reset(
    partitioner: Partitioner,
) -> None:
    offered = partitioner.current_resources()

    partitioner.world.lose_gpu("a100", 0)
    await partitioner.wait_for_resources({"nvidia.com/gpu": 1, SMALL: 3})
    partitioner.world.repair_gpu("a100", 0)
    await partitioner.wait_for_resources(offered)
    partitioner.world.clear_slices("a100")

    assert [gpu["slices"] for gpu in partitioner.world.gpus("a100")] == [[], [], []]


async def test_a_node_may_have_gpus_in_mig_mode_without_instances(partitioner: Partitioner) -> None:
    node = await partitioner.node("bare")

    assert allocatable(node) == {"nvidia.com/hostdev": 8}
    assert nvidia_label(node, "gpu.count") == "1"
    assert nvidia_label(node, "gpu.deploy.mig-manager") is None
    assert partitioner.world.gpus("bare")[0]["mig"]


async def test_the_kubelet_reports_which_pod_uses_which_slice(
    partitioner: Partitioner, namespace: WorldNamespace
) -> None:
    await namespace.start_pod(a_pod("engine", a_gpu_container(HALF)))
    (used_instance,) = (
        instance
        for instance in partitioner.world.gpus("a100")[0]["slices"]
        if instance["processes"]
    )

    message = await list_pod_resources(partitioner.world.folder / "nodes" / "a100")

    assert f"{namespace.name}".encode() in message
    assert b"engine" in message
    assert used_instance["uuid"].encode() in message


async def list_pod_resources(files: Path) -> bytes:
    socket = (files / "var/lib/kubelet/pod-resources").resolve() / "kubelet.sock"
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        list_pods = channel.unary_unary("/v1.PodResourcesLister/List")
        message: bytes = await list_pods(b"")
        return message
