"""The page of the simulated DCGM exporter."""

from itertools import pairwise
from pathlib import Path

import pytest

from world.dcgm.activity import Reading, engine_url, share
from world.dcgm.text import page
from world.fleet import read
from world.gpus.hardware import Hardware, hardware
from world.gpus.power import power
from world.kubelet.devices import Device, Holder
from world.testing import a_container, a_pod

H100 = "NVIDIA-H100-80GB-HBM3"
IDLE, MOST = 73, 700


def a_node(folder: Path, gpus: str, product: str = H100) -> Hardware:
    path = folder / "fleet.yaml"
    path.write_text(f"nodes: [{{name: n, product: {product}, gpus: {gpus}}}]")
    (node,) = read(path)
    return hardware(node)


@pytest.fixture
def devices(tmp_path: Path) -> tuple[Device, ...]:
    """A GPU with one slice, and a GPU without MIG."""
    return a_node(tmp_path, "[[3g.40gb], whole]").devices()


def values(node: Hardware, metric: str) -> list[float]:
    """The samples of a metric on the page of a node without engines."""
    lines = page([(device, None) for device in node.devices()], {}, node.energy.by_uuid)
    return [
        float(line.rpartition(" ")[2])
        for line in lines.splitlines()
        if line.startswith(f"{metric}{{")
    ]


def watts(node: Hardware) -> list[float]:
    return values(node, "DCGM_FI_DEV_POWER_USAGE")


def millijoules(node: Hardware) -> list[float]:
    return values(node, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, Reading(5, 10), 0),
        (Reading(5, 10), Reading(5.25, 11), 0.25),
        (Reading(5, 10), Reading(7, 11), 1),  # clocks differ a little
        (Reading(5, 10), Reading(1, 11), 0),  # the engine was restarted
    ],
)
def test_activity_is_the_busy_share_between_two_readings(
    before: Reading | None, now: Reading, expected: float
) -> None:
    assert share(before, now) == expected


def test_a_used_slice_carries_its_pod_and_a_free_gpu_none(devices: tuple[Device, ...]) -> None:
    instance, gpu = devices
    holder = Holder("u", "team-a", "chat-0", "engine")

    lines = page([(instance, holder), (gpu, None)], {holder: 0.5}, {}).splitlines()

    active = [line for line in lines if line.startswith("DCGM_FI_PROF_GR_ENGINE_ACTIVE")]
    assert active == [
        f'DCGM_FI_PROF_GR_ENGINE_ACTIVE{{gpu="0",UUID="{instance.gpu_uuid}",'
        'pci_bus_id="00000000:10:00.0",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",'
        'GPU_I_PROFILE="3g.40gb",GPU_I_ID="2",hostname="n",DCGM_FI_DRIVER_VERSION="580.95.05",'
        'container="engine",namespace="team-a",pod="chat-0"} 0.500000',
        f'DCGM_FI_PROF_GR_ENGINE_ACTIVE{{gpu="1",UUID="{gpu.gpu_uuid}",'
        'pci_bus_id="00000000:11:00.0",device="nvidia1",modelName="NVIDIA H100 80GB HBM3",'
        'hostname="n",DCGM_FI_DRIVER_VERSION="580.95.05"} 0.000000',
    ]


def test_only_whole_gpus_have_a_utilization(devices: tuple[Device, ...]) -> None:
    lines = page([(device, None) for device in devices], {}, {}).splitlines()

    utilization_lines = [line for line in lines if line.startswith("DCGM_FI_DEV_GPU_UTIL{")]
    assert len(utilization_lines) == 1
    assert 'gpu="1"' in utilization_lines[0]


def test_every_instance_repeats_power_and_energy_of_its_gpu(tmp_path: Path) -> None:
    node = a_node(tmp_path, "[[3g.40gb, 1g.10gb, 1g.10gb], whole]")
    busy = [(device, 1.0) for device in node.devices() if device.placed is None]

    node.count_energy(busy, 100)
    node.count_energy(busy, 110)

    assert watts(node) == [IDLE, IDLE, IDLE, MOST]
    assert millijoules(node) == [IDLE * 10_000] * 3 + [MOST * 10_000]
    text = page([(device, None) for device in node.devices()], {}, node.energy.by_uuid)
    assert "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter\n" in text
    assert "# TYPE DCGM_FI_DEV_POWER_USAGE gauge\n" in text


def test_the_power_of_a_gpu_is_that_of_all_its_slices_by_their_multiprocessors(
    tmp_path: Path,
) -> None:
    node = a_node(tmp_path, "[[3g.40gb, 1g.10gb]]")
    wide, narrow = sorted(node.devices(), key=lambda device: -device.memory_mib)

    node.count_energy([(wide, 0.5), (narrow, 1.0)], 100)

    # 60 and 16 of 132 multiprocessors.
    assert watts(node) == pytest.approx([power(H100, 0.5 * 60 / 132 + 16 / 132)] * 2)


def test_power_rises_with_activity_and_the_first_costs_the_most() -> None:
    powers = [power(H100, tenth / 10) for tenth in range(11)]

    steps = [after - before for before, after in pairwise(powers)]
    assert (powers[0], powers[-1]) == (IDLE, MOST)
    assert powers[5] == pytest.approx(462.42, abs=0.01)  # 73 + 627 * (1 - 0.5 ** 1.4)
    assert all(step > 0 for step in steps)
    assert steps == sorted(steps, reverse=True)


def test_energy_is_power_by_time_and_begins_at_0_with_its_driver(tmp_path: Path) -> None:
    node = a_node(tmp_path, "[whole]")
    (gpu,) = node.devices()

    node.count_energy([(gpu, 0.0)], 100)
    assert millijoules(node) == [0]
    node.count_energy([(gpu, 0.0)], 104)
    node.count_energy([(gpu, 1.0)], 105)
    assert millijoules(node) == [(4 * IDLE + MOST) * 1000]

    node.energy.reset()
    assert millijoules(node) == []
    node.count_energy([(gpu, 1.0)], 200)
    assert millijoules(node) == [0]
    node.count_energy([(gpu, 1.0)], 201)
    assert millijoules(node) == [MOST * 1000]


def test_a_gpu_in_mig_mode_counts_on_while_it_has_no_slice(tmp_path: Path) -> None:
    node = a_node(tmp_path, "[[1g.10gb]]")
    node.count_energy([], 100)
    assert node.gpu_driver is not None
    node.gpu_driver.clear_unused()
    assert node.devices() == ()

    node.count_energy([], 110)
    node.gpu_driver.create(0, "3g.40gb")

    assert millijoules(node) == [IDLE * 10_000]


def test_a_product_without_a_reading_shows_neither_power_nor_energy(tmp_path: Path) -> None:
    node = a_node(tmp_path, "[whole]", product="NVIDIA-L4")

    node.count_energy([], 100)

    assert (watts(node), millijoules(node)) == ([], [])


def test_an_engine_is_asked_at_its_http_port() -> None:
    ports = [{"containerPort": 1}, {"name": "http", "containerPort": 2}]
    named = a_pod("p", a_container(ports=ports))
    unnamed = a_pod("p", a_container(ports=[]))

    assert engine_url(named, "main", "127.0.0.9") == "http://127.0.0.9:2"
    assert engine_url(unnamed, "main", "127.0.0.9") == "http://127.0.0.9:8000"
