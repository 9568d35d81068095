"""A listener for every port of every Service."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from world.api import SERVICES, Api, Json
from world.informer import Informer, Key
from world.proxy.endpoints import endpoints
from world.proxy.forward import Address, listen

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ServiceProxy:
    """Listens where Services are; chooses among pods as they are at each new connection."""

    api: Api
    pods: Callable[[], Iterable[Json]]
    fixed: Mapping[Key, Address]
    """Backends of Services without a selector: programs of the world itself."""
    stand_in: Callable[[], list[Address]] = list
    """Who answers for pods that are only said to run."""
    informer: Informer = field(init=False)
    _listeners: dict[Address, asyncio.Server] = field(default_factory=dict)
    _connection_counts: dict[Address, int] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.informer = Informer(self.api, SERVICES.path(), lambda *_: self._changed.set())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.informer.follow())
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._settle()

    def backends(self, key: Key, number: int) -> list[Address]:
        """Where the port of a Service leads just now."""
        service = self.informer.objects.get(key)
        if service is None:
            return []
        if key in self.fixed:
            return [self.fixed[key]]
        port = next(
            (
                service_port
                for service_port in service["spec"]["ports"]
                if service_port["port"] == number
            ),
            None,
        )
        if port is None:
            return []
        return sorted(endpoints(service, port, self.pods())) or self.stand_in()

    async def _settle(self) -> None:
        key_by_address = dict(_addresses(self.informer.objects))
        for address in self._listeners.keys() - key_by_address.keys():
            self._listeners.pop(address).close()
        for address in key_by_address.keys() - self._listeners.keys():
            await self._open(address, key_by_address[address])

    async def _open(self, address: Address, key: Key) -> None:
        def choose() -> list[Address]:
            backends = self.backends(key, address[1])
            count = self._connection_counts[address] = self._connection_counts.get(address, 0) + 1
            first = count % len(backends) if backends else 0
            return backends[first:] + backends[:first]

        try:
            self._listeners[address] = await listen(address, choose)
        except OSError as error:
            # Ports below 1024 want root; everything else of the Service works.
            log.warning("Service %s/%s is not served on port %s: %s", *key, address[1], error)


def _addresses(services: Mapping[Key, Json]) -> Iterable[tuple[Address, Key]]:
    for key, service in services.items():
        address = service["spec"].get("clusterIP")
        if address and address != "None":
            for port in service["spec"].get("ports", []):
                if port.get("protocol", "TCP") == "TCP":
                    yield (address, port["port"]), key
