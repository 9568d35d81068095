from pathlib import Path

import pytest

from fakegpu.pod_resources import DeviceGrant, serve_pod_resources
from tessera.adapters.pod_resources import KubeletPods, message_classes
from tessera.ports import KubeletError


def test_the_messages_are_those_of_the_kubelet() -> None:
    """The bytes are those of a kubelet, with fields that are not read: topology and CPUs."""
    devices = b"\x0a\x16nvidia.com/mig-3g.40gb\x12\x05MIG-1\x12\x05MIG-2\x1a\x04\x0a\x02\x08\x01"
    container = b"\x0a\x06engine\x12" + bytes([len(devices)]) + devices + b"\x1a\x02\x00\x01"
    pod = b"\x0a\x06chat-0\x12\x06team-a\x1a" + bytes([len(container)]) + container
    response = message_classes()["ListPodResourcesResponse"].FromString(
        b"\x0a" + bytes([len(pod)]) + pod
    )
    (pod_resources,) = response.pod_resources
    assert (pod_resources.namespace, pod_resources.name, pod_resources.containers[0].name) == (
        "team-a",
        "chat-0",
        "engine",
    )
    assert pod_resources.containers[0].devices[0].resource_name == "nvidia.com/mig-3g.40gb"
    assert list(pod_resources.containers[0].devices[0].device_ids) == ["MIG-1", "MIG-2"]


async def test_holders_are_listed_by_device(tmp_path: Path) -> None:
    granted = [
        DeviceGrant(namespace="a", pod="two", resource="nvidia.com/gpu", devices=("GPU-1::0",)),
        DeviceGrant(
            namespace="a", pod="one", resource="nvidia.com/gpu.shared", devices=("GPU-1::1",)
        ),
        DeviceGrant(namespace="b", pod="nic", resource="rdma/hca", devices=("mlx5_0",)),
        DeviceGrant(
            namespace="b", pod="mig", resource="nvidia.com/mig-1g.10gb", devices=("M1", "M2")
        ),
    ]
    async with serve_pod_resources(lambda: granted, tmp_path / "kubelet.sock"):
        pods = KubeletPods(tmp_path / "kubelet.sock")
        assert await pods.holders() == {
            "GPU-1": ("a/one", "a/two"),
            "M1": ("b/mig",),
            "M2": ("b/mig",),
        }
        await pods.close()


async def test_a_kubelet_that_is_not_there_is_an_error_that_names_its_socket(
    tmp_path: Path,
) -> None:
    pods = KubeletPods(tmp_path / "kubelet.sock")
    with pytest.raises(KubeletError, match=r"kubelet\.sock: UNAVAILABLE"):
        await pods.holders()
    await pods.close()
