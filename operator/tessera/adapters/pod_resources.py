"""The pods that use devices, from the kubelet's PodResources API (v1) over its socket.

The messages are the parts of k8s.io/kubelet/pkg/apis/podresources/v1 that are read.
"""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from tessera.domain.hardware.device import is_gpu_resource
from tessera.domain.mig_backends.partitioning import PodsByDevice
from tessera.ports import KubeletError

METHOD = "/v1.PodResourcesLister/List"
# Separates the UUID of a shared device (time-slicing, MPS) from the replica's number.
_REPLICA_SEPARATOR = "::"
_TIMEOUT_SECONDS = 5
# A socket has no proxy, and a restarted kubelet is back in seconds.
_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 5000))
# Fields of each message: name, number, and message type; without a type they are strings.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": (("pod_resources", 1, "PodResources"),),
    "PodResources": (
        ("name", 1, ""),
        ("namespace", 2, ""),
        ("containers", 3, "ContainerResources"),
    ),
    "ContainerResources": (("name", 1, ""), ("devices", 2, "ContainerDevices")),
    "ContainerDevices": (("resource_name", 1, ""), ("device_ids", 2, "")),
}


def message_classes() -> dict[str, Any]:
    """Return the classes of all messages by name."""
    file = FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    file.message_type.extend(_build_descriptor(name, fields) for name, fields in _MESSAGES.items())
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}")) for name in _MESSAGES}


def _build_descriptor(name: str, fields: tuple[tuple[str, int, str], ...]) -> DescriptorProto:
    message = DescriptorProto(name=name)
    for field, number, message_type in fields:
        field_descriptor = message.field.add(name=field, number=number)
        repeated = message_type or field.endswith("_ids")
        field_descriptor.label = (
            FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
        )
        field_descriptor.type = (
            FieldDescriptorProto.TYPE_MESSAGE if message_type else FieldDescriptorProto.TYPE_STRING
        )
        if message_type:
            field_descriptor.type_name = f".v1.{message_type}"
    return message


class KubeletPods:
    """`PodDevices` over the kubelet's socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._messages = message_classes()
        self._channel = grpc.aio.insecure_channel(f"unix://{socket}", options=_CHANNEL_OPTIONS)
        self._list = self._channel.unary_unary(
            METHOD,
            request_serializer=self._messages["ListPodResourcesRequest"].SerializeToString,
            response_deserializer=self._messages["ListPodResourcesResponse"].FromString,
        )

    async def close(self) -> None:
        await self._channel.close()

    async def holders(self) -> PodsByDevice:
        try:
            response = await self._list(
                self._messages["ListPodResourcesRequest"](), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            detail = f"{error.code().name} {error.details()}"
            raise KubeletError(f"the kubelet at {self._socket}: {detail}") from error
        pods_by_device: dict[str, set[str]] = {}
        for pod in response.pod_resources:
            for container in pod.containers:
                for devices in container.devices:
                    if is_gpu_resource(devices.resource_name):
                        for device in devices.device_ids:
                            device_pods = pods_by_device.setdefault(
                                device.partition(_REPLICA_SEPARATOR)[0], set()
                            )
                            device_pods.add(f"{pod.namespace}/{pod.name}")
        return {device: tuple(sorted(pods)) for device, pods in sorted(pods_by_device.items())}
