"""The parts around a node's GPUs, without a world: plugin, discovery, devices, pod resources."""

from dataclasses import replace
from pathlib import Path

import pytest

from fakegpu.gpu_driver import GpuDriver, RefusedError
from world.api import Json
from world.fleet import read
from world.gpus.configs import MountedConfig
from world.gpus.discovery import LABEL as DISCOVERY
from world.gpus.discovery import Discovery
from world.gpus.hardware import DeviceNotFoundError, Hardware, hardware
from world.gpus.plugin import Plugin
from world.gpus.pod_resources import listing
from world.kubelet.devices import Devices, NoDeviceError
from world.labels import discovery_labels, labels
from world.testing import a_container, a_pod

SMALL, HALF = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"


@pytest.fixture
def machine(tmp_path: Path) -> Hardware:
    """A GPU with three slices, one in MIG mode without slices, and one without MIG."""
    return a_machine(tmp_path, "[[3g.40gb, 1g.10gb, 1g.10gb], [], whole]")


def a_machine(tmp_path: Path, gpus: str, **fields: str) -> Hardware:
    path = tmp_path / "fleet.yaml"
    more = "".join(f", {name}: {value}" for name, value in fields.items())
    product = "NVIDIA-A100-SXM4-80GB"
    path.write_text(f"nodes: [{{name: n, product: {product}, gpus: {gpus}{more}}}]")
    (node,) = read(path)
    return hardware(node)


def get_gpu_driver(machine: Hardware) -> GpuDriver:
    assert machine.gpu_driver is not None
    return machine.gpu_driver


def a_plugin(machine: Hardware) -> Plugin:
    return Plugin(look=machine.devices, start_seconds=2, offered=machine.devices())


def a_gpu_pod(uid: str, resource: str, count: int = 1) -> Json:
    pod = a_pod(uid, a_container(resources={"limits": {resource: str(count)}}))
    pod["metadata"] |= {"uid": uid, "namespace": "ns"}
    return pod


def test_a_gpu_in_mig_mode_is_offered_by_its_slices_alone(machine: Hardware) -> None:
    devices = Devices()
    devices.offer(machine.devices())

    assert devices.allocatable() == {"nvidia.com/gpu": 1, SMALL: 2, HALF: 1}
    assert machine.layouts()[1:] == ((), None)


def test_a_plugin_sees_new_slices_only_after_a_restart(machine: Hardware) -> None:
    plugin = a_plugin(machine)
    get_gpu_driver(machine).create(1, "7g.80gb")

    plugin.step("true", 10)
    before = plugin.offered
    plugin.step("paused", 11)
    away = plugin.offered
    plugin.step("true", 12)
    starting = plugin.offered
    plugin.step("true", 14)

    assert before is not None
    assert len(before) == 4
    assert (away, starting) == (None, None)
    assert plugin.offered is not None
    assert {device.resource for device in plugin.offered} >= {"nvidia.com/mig-7g.80gb"}


def test_a_plugin_that_is_paused_while_it_starts_starts_again(machine: Hardware) -> None:
    plugin = a_plugin(machine)

    for label, now in (("paused", 0), ("true", 1), (None, 2), ("true", 3), ("true", 4)):
        plugin.step(label, now)
    assert plugin.offered is None

    plugin.step("true", 5)
    assert plugin.offered is not None


def test_a_slow_plugin_offers_its_devices_while_it_stops(machine: Hardware) -> None:
    plugin = a_plugin(machine)
    plugin.stop_seconds = 5

    offered = []
    for label, now in (("paused", 0), ("true", 4), ("true", 5), ("true", 6), ("true", 8)):
        plugin.step(label, now)
        offered.append(plugin.offered is not None)

    # A stop that has begun is finished, and the start after it takes its own time.
    assert offered == [True, True, False, False, True]


def test_slices_of_a_lost_gpu_are_not_healthy_until_it_is_repaired(machine: Hardware) -> None:
    gpu_driver, devices = get_gpu_driver(machine), machine.devices()

    gpu_driver.lose(0)
    with pytest.raises(RefusedError, match="GPU_IS_LOST"):
        gpu_driver.create(0, "2g.20gb")
    healthy = [device.resource for device in machine.healthy(devices)]
    gpu_driver.lose(0, lost=False)

    assert healthy == ["nvidia.com/gpu"]
    assert machine.healthy(devices) == devices


def test_a_reset_takes_unused_slices_alone(machine: Hardware) -> None:
    (used,) = (device for device in machine.devices() if device.resource == HALF)
    machine.begin([used])

    get_gpu_driver(machine).clear_unused()

    assert [device.resource for device in machine.devices()] == [HALF, "nvidia.com/gpu"]


def test_resources_without_devices_stay_with_none_allocatable_and_their_last_capacity(
    machine: Hardware,
) -> None:
    devices = Devices()
    assert devices.offer(machine.devices())
    assert not devices.offer(machine.devices())

    assert devices.offer(())

    assert devices.allocatable() == {"nvidia.com/gpu": 0, SMALL: 0, HALF: 0}
    assert devices.capacity() == {"nvidia.com/gpu": 1, SMALL: 2, HALF: 1}


def test_without_a_plugin_the_admission_says_why(machine: Hardware) -> None:
    devices = Devices()
    devices.offer(machine.devices())
    devices.offer(())

    with pytest.raises(NoDeviceError, match="no healthy devices present; cannot allocate"):
        devices.admit(a_gpu_pod("a", SMALL))
    with pytest.raises(NoDeviceError, match="cannot allocate unregistered device"):
        devices.admit(a_gpu_pod("a", "nvidia.com/mig-2g.20gb"))


def test_a_pod_keeps_its_slice_while_the_plugin_is_away_and_no_other_pod_gets_it(
    machine: Hardware,
) -> None:
    devices = Devices()
    devices.offer(machine.devices())
    devices.admit(a_gpu_pod("a", SMALL))
    (device,) = devices.held_by("a", "main")

    devices.offer(())
    assert devices.held_by("a", "main") == [device]
    devices.offer(machine.devices())
    devices.admit(a_gpu_pod("b", SMALL))

    assert devices.held_by("b", "main") != [device]
    with pytest.raises(NoDeviceError, match="Requested: 1, Available: 0"):
        devices.admit(a_gpu_pod("c", SMALL))


def test_a_running_process_keeps_the_driver_from_destroying_its_slice(machine: Hardware) -> None:
    devices = [device for device in machine.devices() if device.resource == HALF]
    process = machine.begin(devices)

    with pytest.raises(RefusedError, match="IN_USE"):
        get_gpu_driver(machine).clear(0)
    machine.end(devices, process)
    get_gpu_driver(machine).clear(0)

    assert machine.layouts()[0] == ()
    machine.end(devices, process)  # no error, although its slice does not exist any more


def test_a_container_cannot_start_on_a_slice_that_does_not_exist_any_more(
    machine: Hardware,
) -> None:
    half, *others = (device for device in machine.devices() if device.gpu == 0)
    get_gpu_driver(machine).destroy(0, half.id)

    with pytest.raises(DeviceNotFoundError, match=f"{half.id}: unknown device"):
        machine.begin([*others, half])

    get_gpu_driver(machine).clear(0)  # it holds none of the others either


def test_discovery_looks_when_it_begins_and_every_minute() -> None:
    node_labels = [{"a": "1"}]
    discovery = Discovery(
        look=lambda: node_labels[0], start_seconds=2, period_seconds=60, last_labels=node_labels[0]
    )
    enabled_labels = {DISCOVERY: "true"}

    assert discovery.step(enabled_labels, 0) is None
    node_labels[0] = {"a": "2"}
    assert discovery.step(enabled_labels, 1) is None
    assert discovery.step(enabled_labels, 2) == {"a": "2"}
    node_labels[0] = {"a": "3"}
    assert discovery.step(enabled_labels, 61) is None
    assert discovery.step(enabled_labels, 62) == {"a": "3"}
    node_labels[0] = {"a": "4"}
    assert discovery.step({}, 63) is None
    assert discovery.step(enabled_labels, 64) is None
    assert discovery.step(enabled_labels, 66) == {"a": "4"}


def test_labels_of_destroyed_slices_are_removed_and_those_of_others_stay(machine: Hardware) -> None:
    before = labels(machine.node)
    get_gpu_driver(machine).clear(0)
    now = discovery_labels(replace(machine.node, gpus=machine.layouts()))
    discovery = Discovery(look=lambda: now, start_seconds=0)

    written = discovery.step(before | {"nvidia.com/mig.config": "x"}, 0)

    assert written is not None
    assert written.keys() == {key for key in before if key.startswith("nvidia.com/mig-")}
    assert set(written.values()) == {None}


def test_a_node_without_mig_manager_is_not_labeled_for_it(tmp_path: Path) -> None:
    with_it, without = (
        a_machine(tmp_path, "[whole]"),
        a_machine(tmp_path, "[whole]", migManager="false"),
    )

    key = "nvidia.com/gpu.deploy.mig-manager"
    assert labels(with_it.node)[key] == "true"
    assert key not in labels(without.node)


def test_a_configuration_arrives_late_and_in_order() -> None:
    config = MountedConfig(lag_seconds=5)

    config.arrive("one", 0)
    config.arrive("two", 1)
    config.arrive(None, 9)

    assert [config.at(now) for now in (4, 5, 6, 13, 14)] == [None, "one", "two", "two", None]


def test_pod_resources_are_encoded_as_the_kubelet_encodes_them(machine: Hardware) -> None:
    half, small, other = (device for device in machine.devices() if device.gpu == 0)
    small, other, half = sorted((half, small, other), key=lambda device: device.resource)

    message = listing([("ns", "pod", {"main": [small, other, half], "side": []})])

    assert fields(message) == [(1, fields_of(message, 1))]
    name, namespace, main, side = fields(fields_of(message, 1))
    assert (name, namespace, side) == ((1, b"pod"), (2, b"ns"), (3, b"\n\x04side"))
    assert fields(main[1])[0] == (1, b"main")
    smalls, halves = (fields(content) for _, content in fields(main[1])[1:])
    assert smalls == [(1, SMALL.encode()), (2, small.id.encode()), (2, other.id.encode())]
    assert halves == [(1, HALF.encode()), (2, half.id.encode())]


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """Numbers and contents of the fields, all of the type with a length."""
    contents = []
    while message:
        number, size, used = message[0] >> 3, 0, 1
        for shift in range(0, 35, 7):
            size |= (message[used] & 0x7F) << shift
            used += 1
            if message[used - 1] < 0x80:
                break
        contents.append((number, message[used : used + size]))
        message = message[used + size :]
    return contents


def fields_of(message: bytes, number: int) -> bytes:
    return next(content for field_number, content in fields(message) if field_number == number)
