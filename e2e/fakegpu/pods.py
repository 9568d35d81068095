"""The kubelet's word on who holds which device: PodResources v1 on a unix socket."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tessera.adapters.pod_resources import message_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Devices of one resource that a container holds."""

    namespace: str
    pod: str
    container: str = "engine"
    resource: str
    devices: tuple[str, ...]


async def serve_pods(granted: Callable[[], Iterable[Grant]], path: Path) -> "grpc.aio.Server":
    """Listening when it returns; every question is answered with what is granted then."""
    known = message_classes()

    async def answered(_request: Any, _context: Any) -> Any:
        told = known["ListPodResourcesResponse"]()
        for grant in granted():
            pod = told.pod_resources.add(name=grant.pod, namespace=grant.namespace)
            container = pod.containers.add(name=grant.container)
            container.devices.add(resource_name=grant.resource, device_ids=grant.devices)
        return told

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        answered,
        request_deserializer=known["ListPodResourcesRequest"].FromString,
        response_serializer=known["ListPodResourcesResponse"].SerializeToString,
    )
    lister = grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler})
    server.add_generic_rpc_handlers((lister,))
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    return server
