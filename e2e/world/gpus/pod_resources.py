"""The kubelet's PodResources service: which pod holds which device, on a socket of the node.

    rpc List(ListPodResourcesRequest) returns (ListPodResourcesResponse)    of v1.PodResourcesLister

The few messages are written as bytes here, apart from those that the agent reads them with.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc

from world.kubelet.devices import Device
from world.kubelet.kubelet import Kubelet

FOLDER = "var/lib/kubelet/pod-resources"
SOCKET = "kubelet.sock"
SERVICE = "v1.PodResourcesLister"

# Devices by container.
Holdings = Mapping[str, Iterable[Device]]


@contextlib.asynccontextmanager
async def serve_pod_resources(kubelet: Kubelet) -> AsyncIterator[None]:
    """Under the node's own file system, where a `hostPath` finds it."""
    host = kubelet.host
    inside = host.files / FOLDER
    inside.parent.mkdir(parents=True)
    inside.symlink_to(host.sockets)

    async def list_pods(_request: bytes, _context: Any) -> bytes:
        return listing(
            (
                *worker.key,
                {
                    container.context.name: host.devices.held_by(worker.uid, container.context.name)
                    for container in worker.containers()
                },
            )
            for worker in kubelet.workers.values()
            if worker.active
        )

    server = grpc.aio.server()
    methods = {"List": grpc.unary_unary_rpc_method_handler(list_pods)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(f"unix:{host.sockets / SOCKET}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=None)


def listing(pods: Iterable[tuple[str, str, Holdings]]) -> bytes:
    """A `ListPodResourcesResponse`: namespace, name and devices of each pod."""
    return b"".join(_field(1, _pod(*pod)) for pod in pods)


def _pod(namespace: str, name: str, holdings: Holdings) -> bytes:
    containers = (_field(3, _container(*holding)) for holding in holdings.items())
    return _field(1, name.encode()) + _field(2, namespace.encode()) + b"".join(containers)


def _container(name: str, devices: Iterable[Device]) -> bytes:
    ids_by_resource: dict[str, list[str]] = {}
    for device in devices:
        ids_by_resource.setdefault(device.resource, []).append(device.id)
    fields = (_field(2, _devices(*entry)) for entry in ids_by_resource.items())
    return _field(1, name.encode()) + b"".join(fields)


def _devices(resource: str, ids: Iterable[str]) -> bytes:
    return _field(1, resource.encode()) + b"".join(
        _field(2, device_id.encode()) for device_id in ids
    )


def _field(number: int, value: bytes) -> bytes:
    """A field of the wire type for texts and messages: tag, length, bytes."""
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
