"""EndpointSlices for the Services of APIServices.

The aggregator calls a ClusterIP only when an EndpointSlice has a ready address, and the API refuses
loopback addresses there. So the world writes one with a documentation address (192.0.2.0/24).
"""

import asyncio
import logging
from dataclasses import dataclass, field

import aiohttp

from world.api import API_SERVICES, ENDPOINT_SLICES, Api, ApiError, Json
from world.informer import Informer, Key
from world.proxy.services import ServiceProxy

ADDRESS = "192.0.2.10"
LOOK_SECONDS = 1.0
log = logging.getLogger(__name__)


@dataclass(slots=True)
class EndpointSliceWriter:
    """Looks once a second: APIServices are few, and pods come and go without telling."""

    api: Api
    services: ServiceProxy
    informer: Informer = field(init=False)
    _written: dict[Key, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.informer = Informer(self.api, API_SERVICES.path(), lambda *_: None)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.informer.follow())
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                try:
                    await self._settle()
                except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                    log.warning("EndpointSlices of APIServices: %s", error)

    async def _settle(self) -> None:
        for key in self._aggregated():
            service = self.services.informer.objects.get(key)
            if service is None:
                self._written.pop(key, None)
            elif (endpoint_slice := self._slice(key, service)) != self._written.get(key):
                await self.api.apply_manifest(endpoint_slice)
                self._written[key] = endpoint_slice

    def _aggregated(self) -> set[Key]:
        specs = [api_service["spec"].get("service") for api_service in self.informer.values()]
        return {(spec["namespace"], spec["name"]) for spec in specs if spec}

    def _slice(self, key: Key, service: Json) -> Json:
        namespace, name = key
        ports = service["spec"]["ports"]
        ready = any(self.services.backends(key, port["port"]) for port in ports)
        owner = {"apiVersion": "v1", "kind": "Service", "name": name}
        return {
            "apiVersion": ENDPOINT_SLICES.version,
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-world",
                "namespace": namespace,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "world",
                },
                "ownerReferences": [owner | {"uid": service["metadata"]["uid"]}],
            },
            "addressType": "IPv4",
            "ports": [
                {"name": port.get("name", ""), "port": port["port"], "protocol": "TCP"}
                for port in ports
            ],
            "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": ready}}],
        }
