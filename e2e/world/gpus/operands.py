"""The parts of the GPU operator on one node, between their labels and the node's resources."""

import asyncio
import logging
from dataclasses import dataclass, field, replace

import aiohttp

from world.api import CONFIG_MAPS, NODES, ApiError, Json
from world.fleet import MigManagerEntry
from world.gpus.configs import Config
from world.gpus.discovery import Discovery
from world.gpus.plugin import LABEL, Plugin
from world.kubelet import node
from world.kubelet.surroundings import Host
from world.labels import discovered
from world.mig_manager import MigManager, Pace
from world.mirror import Key, Mirror

TICK_SECONDS = 0.1
RETRY_SECONDS = 0.5
MANAGER = "nvidia.com/gpu.deploy.mig-manager"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Operands:
    """Device plugin, feature discovery and mig-manager of one node, and what its kubelet tells."""

    host: Host
    plugin: Plugin = field(init=False)
    manager: MigManager | None = field(init=False)
    _discovery: Discovery = field(init=False)
    _config: Config = field(init=False)
    _node: Mirror = field(init=False)
    _maps: Mirror = field(init=False)
    _labels: dict[str, str] | None = None
    """Of the node; None while it is not in the API."""
    _unwritten: dict[str, str | None] = field(default_factory=dict)
    _told: tuple[dict[str, str], dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        spec, hardware, api = self.host.node, self.host.hardware, self.host.machine.api
        entry = spec.mig_manager or MigManagerEntry()
        self.plugin = Plugin(look=hardware.devices, offered=hardware.devices())
        self._discovery = Discovery(look=self._discovered, told=self._discovered())
        self.manager = _manager(self.host)
        self._config = Config(entry.lag_seconds)
        self._told = self.host.capacity(), self.host.allocatable()
        this_node = {"fieldSelector": f"metadata.name={spec.name}"}
        this_map = {"fieldSelector": f"metadata.name={entry.config}"}
        self._node = Mirror(api, NODES.path(), self._node_changed, this_node)
        self._maps = Mirror(api, CONFIG_MAPS.path(entry.namespace), self._map_changed, this_map)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._node.follow())
            if self.manager is not None:
                group.create_task(self._maps.follow())
            group.create_task(self._work())

    def config(self) -> str | None:
        """The configuration as it has arrived; None without one."""
        return self._config.at(asyncio.get_running_loop().time())

    async def _work(self) -> None:
        """A silent node hears nothing and tells nothing."""
        while True:
            await self.host.connected.wait()
            try:
                await self._turn()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("GPUs of %s: %s", self.host.node.name, error)
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(TICK_SECONDS)

    async def _turn(self) -> None:
        """Labels that were not written stay to be written; resources are told as they are."""
        labels, now = self._labels, asyncio.get_running_loop().time()
        if labels is None:
            return
        self.plugin.step(labels.get(LABEL), now)
        self.host.devices.offer(self.plugin.offered or ())
        self._unwritten |= self._discovery.step(labels, now) or {}
        self._unwritten |= self._managed(labels, now)
        api, name = self.host.machine.api, self.host.node.name
        if self._unwritten:
            await api.patch(NODES.path(name=name), {"metadata": {"labels": self._unwritten}})
            self._unwritten = {}
        here = self.host.capacity(), self.host.allocatable()
        if here != self._told:
            await node.tell(api, name, {"capacity": here[0], "allocatable": here[1]})
            self._told = here

    def _managed(self, labels: dict[str, str], now: float) -> dict[str, str]:
        """A mig-manager without its ConfigMap does not even begin."""
        config, silicon = self.config(), self.host.hardware.silicon
        deployed = labels.get(MANAGER) == "true"
        if self.manager is None or silicon is None or config is None or not deployed:
            return {}
        return dict(self.manager.step(labels, config, silicon, now) or {})

    def _discovered(self) -> dict[str, str]:
        """Labels of the fleet file are nobody's to change."""
        there = replace(self.host.node, gpus=self.host.hardware.layouts())
        own = self.host.node.labels
        return {key: value for key, value in discovered(there).items() if key not in own}

    def _node_changed(self, _: Key, found: Json | None) -> None:
        self._labels = None if found is None else found["metadata"].get("labels", {})

    def _map_changed(self, _: Key, found: Json | None) -> None:
        text = None if found is None else found.get("data", {}).get("config.yaml", "")
        self._config.arrive(text, asyncio.get_running_loop().time())


def _manager(host: Host) -> MigManager | None:
    entry = host.node.mig_manager
    if entry is None or host.hardware.silicon is None:
        return None
    return MigManager(pace=Pace().times(entry.pace))
