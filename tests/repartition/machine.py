"""A node with GPUs: its kubelet, its device plugin, and what partitions the GPUs."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

from typing_extensions import override

from fakegpu.gpu_driver import GpuDriver, Moment, ProfilePlacement
from fakegpu.nvml import nvml
from tessera.adapters.kube import object_parsing as wire
from tessera.adapters.nvml.gpus import NvmlGpus
from tessera.api.node_layout import NodeLayoutStatus
from tessera.domain.hardware.device import GPU
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.hardware.gpu_models import WHOLE_GPU
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL
from tessera.domain.mig_backends.gpu_clients import MIG_MANAGER_LABEL
from tessera.domain.observed.node_layout import HEARTBEAT_INTERVAL, ObservedNodeLayout
from tessera.domain.observed.snapshot import Pod
from tessera.node_agent.reconcile import NodeAgent
from tessera.resources.api_resources import CONFIG_MAPS, NODES
from tessera.resources.manifest import ObjectKey
from tests.node_agent.nodes import A100, MemoryLocks
from tests.repartition.crashes import CrashInjector, KillableLayout, KillableProcess, KilledError
from tests.repartition.kube import Kube
from world.mig_manager import MigManager

# Ticks from the device of an engine to its readiness.
STARTING = 5
# Seconds until a node sees a write to a ConfigMap.
LAG = 60.0


class InvariantError(AssertionError):
    """A service lost a replica or a slice that it must keep."""


class RecordingGpuDriver(GpuDriver):
    """Records attempts to destroy an instance in use, which the driver refuses.

    A GPU whose layout is None is not in MIG mode.
    """

    def __init__(self, node: str, layouts: Sequence[Sequence[ProfilePlacement] | None]) -> None:
        self.refused_destructions: list[str] = []
        super().__init__(
            A100,
            len(layouts),
            node=node,
            mig=[layout is not None for layout in layouts],
            layouts=[layout or [] for layout in layouts],
        )

    @property
    def whole_gpus(self) -> Mapping[str, str]:
        """The GPUs outside MIG mode, with the word for all of one, by UUID."""
        return {gpu.uuid: WHOLE_GPU for gpu in self.gpus if not gpu.mig}

    @override
    def destroy(self, gpu_index: int, which: int | str) -> None:
        instance = next(
            instance for instance in self.gpus[gpu_index].instances if which == instance.start
        )
        self._note(instance.attached)
        super().destroy(gpu_index, which)

    @override
    def destroy_compute_instance(self, gpu_index: int, instance_id: int, compute_id: int) -> None:
        self._note(self.instance(gpu_index, instance_id).attached)
        super().destroy_compute_instance(gpu_index, instance_id, compute_id)

    def _note(self, attached: Collection[int | str]) -> None:
        self.refused_destructions += [
            f"the slice of {holder} on {self.node}" for holder in sorted(map(str, attached))
        ]


@cache
def _module(node: str) -> ModuleType:
    return nvml(GpuDriver(A100, 1, node=node))


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
        status_body = status.model_dump(by_alias=True, exclude_none=True, mode="json")
        self.kube.set(self.key, status=status_body)

    async def wait_for_change(self) -> None:
        raise NotImplementedError


@dataclass(slots=True, kw_only=True)
class SimulatedNode:
    """One node, with NVIDIA's mig-manager as `manager`, or an agent if `has_agent`."""

    name: str
    kube: Kube
    gpu_driver: RecordingGpuDriver
    injector: CrashInjector
    manager: MigManager | None = None
    has_agent: bool = False
    agent_partitions: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of profiles in the device plugin that differ from the usual ones."""
    plugin_stop: float = 0.0
    """Seconds until the device plugin is gone after its label forbids it."""
    plugin_start: float = 10.0
    """Seconds until it runs after its label allows it; 10 to 60 on real nodes."""
    plugin_away: bool = False
    """Its pod is gone, as while it is upgraded, whatever the label of the node says."""
    agent_away: bool = False
    """The agent does not run, and its NodeLayout stays as it was."""
    other_resources: dict[str, str] = field(default_factory=dict)
    """Allocatable resources of other device plugins, such as nvidia.com/hostdev."""
    device_by_pod: dict[ObjectKey, str] = field(default_factory=dict)
    """Devices by the pod that uses them."""
    deaths: int = 0
    _since: dict[ObjectKey, int] = field(default_factory=dict)
    _devices: dict[str, str] | None = None
    """Profiles of the devices that the plugin found when it started, by UUID."""
    _plugin_due: float = 0.0
    _plugin_gone: float | None = None
    """When the plugin that was paused is gone, whatever the label says by then."""
    _now: float = 0.0
    _files: list[tuple[float, str]] = field(default_factory=list)
    _manager_started: float | None = 0.0
    _agent: tuple[NodeAgent, KillableProcess] | None = None
    _seen: object = None
    _locks: MemoryLocks = field(default_factory=MemoryLocks)

    def __post_init__(self) -> None:
        labels = {
            "pool": "a100",
            "nvidia.com/gpu.product": A100,
            "nvidia.com/gpu.count": str(len(self.gpu_driver.gpus)),
            "nvidia.com/gpu.replicas": "0",
            "nvidia.com/mig.capable": "true",
            DEVICE_PLUGIN_LABEL: "true",
            FEATURE_DISCOVERY_LABEL: "true",
        }
        status = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {}}
        body = {"metadata": {"name": self.name, "labels": labels}, "status": status}
        self.kube.put(NODES, body, "kubelet")
        self.gpu_driver.watch(self._check_devices_exist)
        self._discover_devices()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(NODES.plural, "", self.name)

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.kube.objects[self.key]["metadata"]["labels"]
        return labels

    @property
    def allocatable(self) -> dict[str, str]:
        allocatable: dict[str, str] = self.kube.objects[self.key]["status"]["allocatable"]
        return dict(allocatable)

    def layouts(self) -> dict[int, Layout]:
        return {
            gpu.index: tuple(
                sorted(
                    SlicePlacement(instance.start, instance.profile) for instance in gpu.instances
                )
            )
            for gpu in self.gpu_driver.gpus
            if gpu.mig
        }

    async def step(self, seconds: float) -> None:
        """Step every process of the node, except the agent."""
        self._now += seconds
        self._run_device_plugin()
        self._run_mig_manager()
        await self._run_pods()
        self._run_device_plugin()

    # The kubelet

    async def _run_pods(self) -> None:
        for key, pod in list(self.kube.pods()):
            if pod.node != self.name:
                continue
            if pod.terminating:
                await self._finish_pod(key)
            elif key in self.device_by_pod:
                self._since[key] += 1
                self.kube.ready(key, up=self._since[key] >= STARTING)
            elif self._devices is not None:
                self._admit(key, pod)

    async def _finish_pod(self, key: ObjectKey) -> None:
        """End a pod over two ticks: it terminates in one and is removed in the next."""
        if self._since.get(key, -1) >= 0:
            self._since[key] = -1
            return
        uuid = self.device_by_pod.pop(key, None)
        if uuid is not None and uuid not in self.gpu_driver.whole_gpus:
            self.gpu_driver.detach(uuid, key.name)
        await self.kube.drop(key)

    def _admit(self, key: ObjectKey, pod: Pod) -> None:
        """Give a pod any free device; its process starts at once."""
        (resource,) = pod.devices
        free = [
            uuid
            for uuid, profile in (self._devices or {}).items()
            if self._resource(profile) == resource and uuid not in self.device_by_pod.values()
        ]
        if not free:
            return
        uuid = self.kube.rng.choice(sorted(free))
        if uuid not in self._profiles_by_uuid():
            raise InvariantError(
                f"{key.name} got a device of {self.name} that is not there any more"
            )
        self.device_by_pod[key], self._since[key] = uuid, 0
        if uuid not in self.gpu_driver.whole_gpus:
            self.gpu_driver.attach(uuid, key.name)
        self.kube.address(key)

    def _profiles_by_uuid(self) -> Mapping[str, str]:
        return {
            instance.uuid: instance.profile
            for gpu in self.gpu_driver.gpus
            for instance in gpu.instances
        } | dict(self.gpu_driver.whole_gpus)

    def _check_devices_exist(self) -> None:
        lost = set(self.device_by_pod.values()) - self._profiles_by_uuid().keys()
        if lost:
            pods = sorted(key.name for key, uuid in self.device_by_pod.items() if uuid in lost)
            raise InvariantError(f"the slices of {', '.join(pods)} on {self.name} were destroyed")

    # The device plugin and feature discovery

    def add_resource(self, name: str, count: int) -> None:
        """Offer a resource of another device plugin."""
        self.other_resources[name] = str(count)
        self.kube.set(self.key, "status", allocatable=self.allocatable | self.other_resources)

    def reboot(self) -> None:
        """Lose all slices; the device plugin looks before anything creates them again."""
        for gpu in self.gpu_driver.gpus:
            self.gpu_driver.clear(gpu.index)
        self._discover_devices()

    def _run_device_plugin(self) -> None:
        paused = self.plugin_away or self.labels[DEVICE_PLUGIN_LABEL] != "true"
        if paused and self._devices is not None and self._plugin_gone is None:
            self._plugin_gone = self._now + self.plugin_stop
        if self._plugin_gone is not None and self._now >= self._plugin_gone:
            self._devices = self._plugin_gone = None
            self._set_allocatable(Counter())
        if paused or self._plugin_gone is not None:
            self._plugin_due = self._now + self.plugin_start
        elif self._devices is None and self._now >= self._plugin_due:
            self._discover_devices()

    def _discover_devices(self) -> None:
        self._devices = dict(self._profiles_by_uuid())
        resources = Counter(self._resource(profile) for profile in self._devices.values())
        self._set_allocatable(resources)
        counts = {f"{name}.count": str(count) for name, count in resources.items() if name != GPU}
        other_labels = {
            key: value
            for key, value in self.labels.items()
            if not (key.startswith("nvidia.com/mig-") and key.endswith(".count"))
        }
        discovered = {"nvidia.com/gfd.timestamp": str(int(self.kube.at.timestamp()))}
        self.kube.set(self.key, "metadata", labels=other_labels | counts | discovered)

    def _resource(self, profile: str) -> str:
        if profile == WHOLE_GPU:
            return GPU
        return f"nvidia.com/mig-{self.names.get(profile, profile).replace('+', '.')}"

    def _set_allocatable(self, resources: Mapping[str, int]) -> None:
        known = dict.fromkeys(self.allocatable, "0")
        offered = known | {name: str(count) for name, count in resources.items()}
        self.kube.set(self.key, "status", allocatable=offered | self.other_resources)

    # NVIDIA's mig-manager

    def _run_mig_manager(self) -> None:
        if self.labels.get(MIG_MANAGER_LABEL) == "false":
            self._manager_started = None
            return
        if self.manager is None:
            return
        if self._manager_started is None:
            self._manager_started = self._now  # its pod mounts the file as it is now
        file = self._file()
        while labels := self._next_labels(file):
            self.kube.set(self.key, "metadata", "labels", **labels)

    def _next_labels(self, file: str | None) -> Mapping[str, str] | None:
        """Return the next labels that mig-manager writes; an empty step continues."""
        assert self.manager is not None
        while (
            labels := self.manager.step(self.labels, file, self.gpu_driver, self._now)
        ) is not None:
            if labels:
                return labels
        return None

    def _file(self) -> str | None:
        texts = [
            body["data"]["config.yaml"]
            for key, body in self.kube.objects.items()
            if key.plural == CONFIG_MAPS.plural and "config.yaml" in body.get("data", {})
        ]
        text = texts[0] if texts else ""
        if text and (not self._files or self._files[-1][1] != text):
            self._files.append((self._now, text))
        seen_until = max(self._now - LAG, self._manager_started or 0.0)
        visible = [text for written, text in self._files if written <= seen_until]
        return visible[-1] if visible else None

    # The agent

    async def run_agent(self) -> None:
        """Run a cycle of the agent if anything changed or is unfinished."""
        if not self.has_agent or self.agent_away:
            return
        layout = ClusterLayout(self.kube, self.name)
        node_layout = await layout.read()
        seen = (self.gpu_driver.version, dict(self.device_by_pod), node_layout.generation)
        status = node_layout.status
        heartbeat = node_layout.heartbeat
        expired = heartbeat is None or self.kube.at - heartbeat >= HEARTBEAT_INTERVAL
        unfinished = (
            expired
            or status is None
            or (
                self.agent_partitions
                and (
                    status.observed_generation != node_layout.generation
                    or any(gpu.fault for gpu in status.gpus)
                )
            )
        )
        if self._agent is not None and seen == self._seen and not unfinished:
            return
        self._seen = seen
        if self._agent is None:
            process = KillableProcess(f"agent of {self.name}", self.injector)
            gpus = NvmlGpus(nvml(self.gpu_driver, _module(self.name)))
            own = KillableLayout(layout, process)
            self._agent = (
                NodeAgent(
                    gpus,
                    self,
                    own,
                    self._locks,
                    lambda: self.kube.at,
                    can_partition=self.agent_partitions,
                ),
                process,
            )
        await self._reconcile_agent(*self._agent)

    async def _reconcile_agent(self, agent: NodeAgent, process: KillableProcess) -> None:
        def on_call(_number: int, name: str, moment: Moment) -> None:
            process.check(name, moment)

        self.gpu_driver.on_call = on_call
        try:
            agent.invalidate_layout()
            await agent.reconcile()
        except KilledError:
            self.deaths += 1
            self._agent = None
        finally:
            self.gpu_driver.on_call = lambda _number, _name, _moment: None

    async def holders(self) -> Mapping[str, tuple[str, ...]]:
        """`PodDevices` of the kubelet."""
        return {uuid: (f"{key.namespace}/{key.name}",) for key, uuid in self.device_by_pod.items()}
