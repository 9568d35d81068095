"""Which pod holds which device, asked of the kubelet over its socket (PodResources v1).

The messages are those of k8s.io/kubelet/pkg/apis/podresources/v1, as far as they are read.
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

from tessera.domain.cutting import Holders
from tessera.ports import KubeletError

METHOD = "/v1.PodResourcesLister/List"
_VENDOR = "nvidia.com/"
_SHARED = "::"
"""Devices that several containers share have a number behind this."""
_TIMEOUT_SECONDS = 5
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 5000))
"""No proxy stands before a socket, and a kubelet that restarts is back in seconds."""
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
"""Fields by name, number, and message; without one they are strings."""


def messages() -> dict[str, Any]:
    """The classes of all messages by name."""
    file = FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    file.message_type.extend(_message(name, fields) for name, fields in _MESSAGES.items())
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}")) for name in _MESSAGES}


def _message(name: str, fields: tuple[tuple[str, int, str], ...]) -> DescriptorProto:
    message = DescriptorProto(name=name)
    for field, number, of in fields:
        told = message.field.add(name=field, number=number)
        plural = of or field.endswith("_ids")
        told.label = (
            FieldDescriptorProto.LABEL_REPEATED if plural else FieldDescriptorProto.LABEL_OPTIONAL
        )
        told.type = FieldDescriptorProto.TYPE_MESSAGE if of else FieldDescriptorProto.TYPE_STRING
        if of:
            told.type_name = f".v1.{of}"
    return message


class KubeletPods:
    """`PodDevices` over the kubelet's socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._messages = messages()
        self._channel = grpc.aio.insecure_channel(f"unix://{socket}", options=_OPTIONS)
        self._list = self._channel.unary_unary(
            METHOD,
            request_serializer=self._messages["ListPodResourcesRequest"].SerializeToString,
            response_deserializer=self._messages["ListPodResourcesResponse"].FromString,
        )

    async def close(self) -> None:
        await self._channel.close()

    async def holders(self) -> Holders:
        try:
            told = await self._list(
                self._messages["ListPodResourcesRequest"](), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            what = f"{error.code().name} {error.details()}"
            raise KubeletError(f"the kubelet at {self._socket}: {what}") from error
        found: dict[str, set[str]] = {}
        for pod in told.pod_resources:
            for container in pod.containers:
                for devices in container.devices:
                    if devices.resource_name.startswith(_VENDOR):
                        for device in devices.device_ids:
                            holders = found.setdefault(device.partition(_SHARED)[0], set())
                            holders.add(f"{pod.namespace}/{pod.name}")
        return {device: tuple(sorted(pods)) for device, pods in sorted(found.items())}
