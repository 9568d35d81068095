"""The kubelet's PodResources v1 on a unix socket: which container holds which device."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tessera.adapters.pod_resources import message_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGrant:
    """Devices of one resource that a container holds."""

    namespace: str
    pod: str
    container: str = "engine"
    resource: str
    devices: tuple[str, ...]


@asynccontextmanager
async def serve_pod_resources(
    granted: Callable[[], Iterable[DeviceGrant]], path: Path
) -> AsyncIterator[None]:
    """Listen meanwhile; every request is answered with what is granted at its time."""
    known = message_classes()

    async def list_pods(_request: Any, _context: Any) -> Any:
        response = known["ListPodResourcesResponse"]()
        for grant in granted():
            pod = response.pod_resources.add(name=grant.pod, namespace=grant.namespace)
            container = pod.containers.add(name=grant.container)
            container.devices.add(resource_name=grant.resource, device_ids=grant.devices)
        return response

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        list_pods,
        request_deserializer=known["ListPodResourcesRequest"].FromString,
        response_serializer=known["ListPodResourcesResponse"].SerializeToString,
    )
    lister = grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler})
    server.add_generic_rpc_handlers((lister,))
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)
