"""The parts of the GPU operator on one node, between their labels and the node's resources."""

import asyncio
import logging
from dataclasses import dataclass, field, replace

import aiohttp

from world.api import CONFIG_MAPS, NODES, ApiError, Json
from world.fleet import MigManagerEntry
from world.gpus.configs import MountedConfig
from world.gpus.discovery import Discovery
from world.gpus.plugin import LABEL, Plugin
from world.informer import Informer, Key
from world.kubelet import node
from world.kubelet.host import Host
from world.labels import discovery_labels
from world.mig_manager import MigManager, Pace

TICK_SECONDS = 0.1
RETRY_SECONDS = 0.5
MANAGER = "nvidia.com/gpu.deploy.mig-manager"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Operands:
    """Device plugin, feature discovery and mig-manager of one node, and its reported resources."""

    host: Host
    plugin: Plugin = field(init=False)
    manager: MigManager | None = field(init=False)
    _discovery: Discovery = field(init=False)
    _config: MountedConfig = field(init=False)
    _node: Informer = field(init=False)
    _maps: Informer = field(init=False)
    _labels: dict[str, str] | None = None
    """Of the node; None while it is not in the API."""
    _unwritten: dict[str, str | None] = field(default_factory=dict)
    _written_resources: tuple[dict[str, str], dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        spec, hardware, api = self.host.node, self.host.hardware, self.host.machine.api
        entry = spec.mig_manager or MigManagerEntry()
        self.plugin = Plugin(
            look=hardware.devices, offered=None if self.host.new else hardware.devices()
        )
        self._discovery = Discovery(
            look=self._discovery_labels,
            last_labels=None if self.host.new else self._discovery_labels(),
        )
        self.manager = _manager(self.host)
        self._config = MountedConfig(entry.lag_seconds)
        self._written_resources = self.host.capacity(), self.host.allocatable()
        this_node = {"fieldSelector": f"metadata.name={spec.name}"}
        this_map = {"fieldSelector": f"metadata.name={entry.config}"}
        self._node = Informer(api, NODES.path(), self._node_changed, this_node)
        self._maps = Informer(api, CONFIG_MAPS.path(entry.namespace), self._map_changed, this_map)

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
        """Reconcile while the node is connected: a silent one reads and writes nothing."""
        while True:
            await self.host.connected.wait()
            try:
                await self._reconcile()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("GPUs of %s: %s", self.host.node.name, error)
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(TICK_SECONDS)

    async def _reconcile(self) -> None:
        """Write the labels, which stay pending after a failure, and the present resources."""
        labels, now = self._labels, asyncio.get_running_loop().time()
        if labels is None:
            return
        self.plugin.step(labels.get(LABEL), now)
        self.host.devices.offer(self.host.hardware.healthy(self.plugin.offered or ()))
        self._unwritten |= self._discovery.step(labels, now) or {}
        self._unwritten |= self._manager_labels(labels, now)
        api, name = self.host.machine.api, self.host.node.name
        if self._unwritten:
            await api.patch(NODES.path(name=name), {"metadata": {"labels": self._unwritten}})
            self._unwritten = {}
        resources = self.host.capacity(), self.host.allocatable()
        if resources != self._written_resources:
            await node.patch_status(
                api, name, {"capacity": resources[0], "allocatable": resources[1]}
            )
            self._written_resources = resources

    def _manager_labels(self, labels: dict[str, str], now: float) -> dict[str, str]:
        """Return the labels of mig-manager, which does not start without its ConfigMap."""
        config, gpu_driver = self.config(), self.host.hardware.gpu_driver
        deployed = labels.get(MANAGER) == "true"
        if self.manager is None or gpu_driver is None or config is None or not deployed:
            return {}
        return dict(self.manager.step(labels, config, gpu_driver, now) or {})

    def _discovery_labels(self) -> dict[str, str]:
        """Return the labels of feature discovery without those that the fleet file sets."""
        current_node = replace(self.host.node, gpus=self.host.hardware.layouts())
        fleet_labels = self.host.node.labels
        return {
            key: value
            for key, value in discovery_labels(current_node).items()
            if key not in fleet_labels
        }

    def _node_changed(self, _: Key, body: Json | None) -> None:
        self._labels = None if body is None else body["metadata"].get("labels", {})

    def _map_changed(self, _: Key, body: Json | None) -> None:
        text = None if body is None else body.get("data", {}).get("config.yaml", "")
        self._config.arrive(text, asyncio.get_running_loop().time())


def _manager(host: Host) -> MigManager | None:
    entry = host.node.mig_manager
    if entry is None or host.hardware.gpu_driver is None:
        return None
    return MigManager(pace=Pace().times(entry.pace))
