"""A node with GPUs: its kubelet, its device plugin, and who cuts."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

from typing_extensions import override

from fakegpu.nvml import nvml
from fakegpu.silicon import Moment, Placement, Silicon
from tessera.adapters import object_parsing as wire
from tessera.adapters.nvml import NvmlGpus
from tessera.api.node_layout import NodeLayoutStatus
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Pod
from tessera.node_agent.reconcile import NodeAgent
from tessera.resources.api_resources import CONFIG_MAPS, NODE_LAYOUTS, NODES
from tessera.resources.manifest import ObjectKey
from tests.node_agent.nodes import A100, MemoryLocks
from tests.repartition.fuse import Fuse, KilledError, Life, MortalLayout
from tests.repartition.kube import Kube
from world.mig_manager import MigManager

# Ticks that an engine needs from its device to its readiness.
STARTING = 5
# Seconds until a node has what was written to a ConfigMap.
LAG = 60.0
# Seconds until the device plugin is back once it may.
RETURN = 10.0


class HarmError(AssertionError):
    """Somebody was hurt."""


class WatchedSilicon(Silicon):
    """Remembers who tried to destroy what is in use, which the driver refuses."""

    def __init__(self, node: str, layouts: Sequence[Sequence[Placement]]) -> None:
        self.tried: list[str] = []
        super().__init__(A100, len(layouts), node=node, layouts=layouts)

    @override
    def destroy(self, gpu_index: int, which: int | str) -> None:
        found = next(one for one in self.gpus[gpu_index].instances if which == one.start)
        self._note(found.attached)
        super().destroy(gpu_index, which)

    @override
    def destroy_compute_instance(self, gpu_index: int, instance_id: int, compute_id: int) -> None:
        self._note(self.instance(gpu_index, instance_id).attached)
        super().destroy_compute_instance(gpu_index, instance_id, compute_id)

    def _note(self, attached: Collection[int | str]) -> None:
        self.tried += [f"the slice of {one} on {self.node}" for one in sorted(map(str, attached))]


@cache
def _module(node: str) -> ModuleType:
    return nvml(Silicon(A100, 1, node=node))


@dataclass(slots=True)
class ClusterLayout:
    """`OwnLayout` over the cluster in memory."""

    kube: Kube
    node: str

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(NODE_LAYOUTS.plural, "", self.node)

    async def read(self) -> ObservedNodeLayout:
        if self.key not in self.kube.objects:
            self.kube.put(NODE_LAYOUTS, {"metadata": {"name": self.node}}, "tessera-node")
        return wire.parse_layout(self.kube.objects[self.key])

    async def write(self, status: NodeLayoutStatus) -> None:
        told = status.model_dump(by_alias=True, exclude_none=True, mode="json")
        self.kube.set(self.key, status=told)

    async def wait_for_change(self) -> None:
        raise NotImplementedError


@dataclass(slots=True, kw_only=True)
class Machine:
    """One node; `manager` is NVIDIA's, and an agent runs where `looks`."""

    name: str
    kube: Kube
    silicon: WatchedSilicon
    fuse: Fuse
    manager: MigManager | None = None
    looks: bool = False
    cuts: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    """What the device plugin calls profiles, where that is not their usual name."""
    held: dict[ObjectKey, str] = field(default_factory=dict)
    """Devices of pods."""
    deaths: int = 0
    _since: dict[ObjectKey, int] = field(default_factory=dict)
    _devices: dict[str, str] | None = None
    """Profiles of the devices that the plugin found when it started, by UUID."""
    _due: float = 0.0
    _now: float = 0.0
    _files: list[tuple[float, str]] = field(default_factory=list)
    _agent: tuple[NodeAgent, Life] | None = None
    _seen: object = None
    _locks: MemoryLocks = field(default_factory=MemoryLocks)

    def __post_init__(self) -> None:
        labels = {
            "pool": "a100",
            "nvidia.com/gpu.product": A100,
            "nvidia.com/gpu.count": str(len(self.silicon.gpus)),
            "nvidia.com/gpu.replicas": "0",
            "nvidia.com/mig.capable": "true",
            DEVICE_PLUGIN_LABEL: "true",
            FEATURE_DISCOVERY_LABEL: "true",
        }
        status = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {}}
        body = {"metadata": {"name": self.name, "labels": labels}, "status": status}
        self.kube.put(NODES, body, "kubelet")
        self.silicon.watch(self._must_be_there)
        self._look()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(NODES.plural, "", self.name)

    @property
    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.kube.objects[self.key]["metadata"]["labels"]
        return found

    def layouts(self) -> dict[int, Layout]:
        return {
            gpu.index: tuple(
                sorted(SlicePlacement(one.start, one.profile) for one in gpu.instances)
            )
            for gpu in self.silicon.gpus
        }

    async def step(self, seconds: float) -> None:
        """Everybody on the node does what is due, but the agent."""
        self._now += seconds
        self._refresh()
        self._manage()
        await self._run_pods()
        self._refresh()

    # The kubelet

    async def _run_pods(self) -> None:
        for key, pod in list(self.kube.pods()):
            if pod.node != self.name:
                continue
            if pod.terminating:
                await self._ended(key)
            elif key in self.held:
                self._since[key] += 1
                self.kube.ready(key, up=self._since[key] >= STARTING)
            elif self._devices is not None:
                self._admit(key, pod)

    async def _ended(self, key: ObjectKey) -> None:
        """Told to stop in one tick, gone in the next."""
        if self._since.get(key, -1) >= 0:
            self._since[key] = -1
            return
        uuid = self.held.pop(key, None)
        if uuid is not None:
            self.silicon.detach(uuid, key.name)
        await self.kube.drop(key)

    def _admit(self, key: ObjectKey, pod: Pod) -> None:
        """Any free device will do; the process begins at once."""
        (resource,) = pod.devices
        free = [
            uuid
            for uuid, profile in (self._devices or {}).items()
            if self._resource(profile) == resource and uuid not in self.held.values()
        ]
        if not free:
            return
        uuid = self.kube.lot.choice(sorted(free))
        if uuid not in self._there():
            raise HarmError(f"{key.name} got a device of {self.name} that is not there any more")
        self.held[key], self._since[key] = uuid, 0
        self.silicon.attach(uuid, key.name)

        self.kube.address(key)

    def _there(self) -> Mapping[str, str]:
        return {one.uuid: one.profile for gpu in self.silicon.gpus for one in gpu.instances}

    def _must_be_there(self) -> None:
        lost = set(self.held.values()) - self._there().keys()
        if lost:
            pods = sorted(key.name for key, uuid in self.held.items() if uuid in lost)
            raise HarmError(f"the slices of {', '.join(pods)} on {self.name} were destroyed")

    # The device plugin and feature discovery

    def _refresh(self) -> None:
        if self.labels[DEVICE_PLUGIN_LABEL] != "true":
            self._devices, self._due = None, self._now + RETURN
            self._offer(Counter())
        elif self._devices is None and self._now >= self._due:
            self._look()

    def _look(self) -> None:
        self._devices = dict(self._there())
        found = Counter(self._resource(profile) for profile in self._devices.values())
        self._offer(found)
        counts = {f"{name}.count": str(count) for name, count in found.items()}
        kept = {
            key: value
            for key, value in self.labels.items()
            if not (key.startswith("nvidia.com/mig-") and key.endswith(".count"))
        }
        discovered = {"nvidia.com/gfd.timestamp": str(int(self.kube.at.timestamp()))}
        self.kube.set(self.key, "metadata", labels=kept | counts | discovered)

    def _resource(self, profile: str) -> str:
        return f"nvidia.com/mig-{self.names.get(profile, profile).replace('+', '.')}"

    def _offer(self, found: Mapping[str, int]) -> None:
        known = dict.fromkeys(self.kube.objects[self.key]["status"]["allocatable"], "0")
        offered = known | {name: str(count) for name, count in found.items()}
        self.kube.set(self.key, "status", allocatable=offered)

    # NVIDIA's mig-manager

    def _manage(self) -> None:
        if self.manager is None:
            return
        file = self._file()
        while told := self._told(file):
            self.kube.set(self.key, "metadata", "labels", **told)

    def _told(self, file: str | None) -> Mapping[str, str] | None:
        """An empty answer is one, too: then it goes on."""
        assert self.manager is not None
        while (told := self.manager.step(self.labels, file, self.silicon, self._now)) is not None:
            if told:
                return told
        return None

    def _file(self) -> str | None:
        found = [
            body for key, body in self.kube.objects.items() if key.plural == CONFIG_MAPS.plural
        ]
        text = found[0]["data"]["config.yaml"] if found else ""
        if text and (not self._files or self._files[-1][1] != text):
            self._files.append((self._now, text))
        here = [text for written, text in self._files if written <= self._now - LAG]
        return here[-1] if here else None

    # The agent

    async def look(self) -> None:
        """A turn of the agent, where anything changed or is unfinished."""
        if not self.looks:
            return
        layout = ClusterLayout(self.kube, self.name)
        found = await layout.read()
        seen = (self.silicon.version, dict(self.held), found.generation)
        status = found.status
        unfinished = status is None or (
            self.cuts
            and (
                status.observed_generation != found.generation
                or any(gpu.fault for gpu in status.gpus)
            )
        )
        if self._agent is not None and seen == self._seen and not unfinished:
            return
        self._seen = seen
        if self._agent is None:
            life = Life(f"agent of {self.name}", self.fuse)
            gpus = NvmlGpus(nvml(self.silicon, _module(self.name)))
            own = MortalLayout(layout, life)
            self._agent = NodeAgent(gpus, self, own, self._locks, can_partition=self.cuts), life
        await self._agent_turn(*self._agent)

    async def _agent_turn(self, agent: NodeAgent, life: Life) -> None:
        def called(_number: int, name: str, moment: Moment) -> None:
            life.call(name, moment)

        self.silicon.on_call = called
        try:
            agent.invalidate_layout()
            await agent.reconcile()
        except KilledError:
            self.deaths += 1
            self._agent = None
        finally:
            self.silicon.on_call = lambda _number, _name, _moment: None

    async def holders(self) -> Mapping[str, tuple[str, ...]]:
        """`PodDevices` of the kubelet."""
        return {uuid: (f"{key.namespace}/{key.name}",) for key, uuid in self.held.items()}
