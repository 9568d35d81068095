"""The page of the simulated DCGM exporter."""

from pathlib import Path

import pytest

from world.dcgm.activity import Reading, engine_url, share
from world.dcgm.text import page
from world.fleet import read
from world.gpus.hardware import hardware
from world.kubelet.devices import Device, Holder
from world.testing import a_container, a_pod


@pytest.fixture
def devices(tmp_path: Path) -> tuple[Device, ...]:
    """A GPU with one slice, and a GPU without MIG."""
    path = tmp_path / "fleet.yaml"
    path.write_text("nodes: [{name: n, product: NVIDIA-H100-80GB-HBM3, gpus: [[3g.40gb], whole]}]")
    (node,) = read(path)
    return hardware(node).devices()


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

    lines = page([(instance, holder), (gpu, None)], {holder: 0.5}).splitlines()

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
    lines = page([(device, None) for device in devices], {}).splitlines()

    utilization_lines = [line for line in lines if line.startswith("DCGM_FI_DEV_GPU_UTIL{")]
    assert len(utilization_lines) == 1
    assert 'gpu="1"' in utilization_lines[0]


def test_an_engine_is_asked_at_its_http_port() -> None:
    ports = [{"containerPort": 1}, {"name": "http", "containerPort": 2}]
    named = a_pod("p", a_container(ports=ports))
    unnamed = a_pod("p", a_container(ports=[]))

    assert engine_url(named, "main", "127.0.0.9") == "http://127.0.0.9:2"
    assert engine_url(unnamed, "main", "127.0.0.9") == "http://127.0.0.9:8000"
