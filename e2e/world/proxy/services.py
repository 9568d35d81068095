"""A listener for every port of every Service."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from world.api import SERVICES, Api, Json
from world.informer import Informer, Key
from world.proxy.endpoints import endpoints
from world.proxy.forward import Address, listen

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ServiceProxy:
    """Listens where Services are; chooses among pods as they are at each new connection."""

    api: Api
    names: Path
    """Where processes look up Services by name: a folder for each namespace, a file for each."""
    pods: Callable[[], Iterable[Json]]
    fixed: Mapping[Key, Address]
    """Backends of Services without a selector: programs of the world itself."""
    stand_in: Callable[[], list[Address]] = list
    """Who answers for pods that are only said to run."""
    informer: Informer = field(init=False)
    _listeners: dict[Address, asyncio.Server] = field(default_factory=dict)
    _connection_counts: dict[Address, int] = field(default_factory=dict)
    _written_names: dict[Key, str] = field(default_factory=dict)
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
        self._write_names()
        key_by_address = dict(_addresses(self.informer.objects))
        for address in self._listeners.keys() - key_by_address.keys():
            self._listeners.pop(address).close()
        for address in key_by_address.keys() - self._listeners.keys():
            await self._open(address, key_by_address[address])

    def _write_names(self) -> None:
        address_by_key = {
            key: address
            for key, service in self.informer.objects.items()
            if (address := _cluster_address(service))
        }
        for key in self._written_names.keys() - address_by_key.keys():
            self.names.joinpath(*key).unlink()
        for key, address in address_by_key.items():
            if self._written_names.get(key) != address:
                file = self.names.joinpath(*key)
                file.parent.mkdir(parents=True, exist_ok=True)
                complete = file.with_name(f".{file.name}")
                complete.write_text(address, encoding="ascii")
                complete.rename(file)
        self._written_names = address_by_key

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
        if address := _cluster_address(service):
            for port in service["spec"].get("ports", []):
                if port.get("protocol", "TCP") == "TCP":
                    yield (address, port["port"]), key


def _cluster_address(service: Json) -> str:
    """Return the address of a Service; empty for one without."""
    address: str = service["spec"].get("clusterIP", "")
    return "" if address == "None" else address
