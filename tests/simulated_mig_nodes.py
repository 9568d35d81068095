"""Simulated nodes with fake GPUs, which carry out the requests of geometry backends."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from fakegpu.gpu_driver import FakeGpu, FakeGpuInstance, GpuDriver
from tessera.api.node_layout import DesiredGpu, NodeLayoutSpec, NodeLayoutStatus
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera.domain.hardware.pools import discover
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    GeometryBackend,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.mig_backends.partitioning import DriverGpu as SeenByDriver
from tessera.domain.mig_backends.partitioning import DriverInstance as SeenInstance
from tessera.domain.mig_backends.partitioning import GpuProblem, gpu_status, plan_partitioning
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Node, Pool
from tessera.resources.mig_objects import configuration
from tests.builders import A100, a_pool, at
from world.mig_manager import MigManager

# Seconds between two cycles.
CYCLE_SECONDS = 5.0


@dataclass(slots=True, kw_only=True)
class SimulatedMigNode:
    """One node: its kubelet, device plugin and feature discovery, and what partitions its GPUs."""

    gpu_driver: GpuDriver
    manager: MigManager | None = None
    has_agent: bool = False
    """An agent reports the layout."""
    agent_partitions: bool = False
    """The agent also partitions."""
    lag: float = 60.0
    """Seconds until the node sees a write to the ConfigMap."""
    now: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    allocatable: dict[str, int] = field(default_factory=dict)
    generation: int = 1
    spec: NodeLayoutSpec = field(default_factory=NodeLayoutSpec)
    _files: list[tuple[float, str]] = field(default_factory=list)
    _plugin: bool = False
    _plugin_due: float = 0.0

    def __post_init__(self) -> None:
        self.labels |= {
            "pool": "a100",
            "nvidia.com/gpu.product": A100,
            "nvidia.com/gpu.count": str(len(self.gpu_driver.gpus)),
            "nvidia.com/gpu.replicas": "0",
            "nvidia.com/mig.capable": "true",
            DEVICE_PLUGIN_LABEL: "true",
            FEATURE_DISCOVERY_LABEL: "true",
        }
        self._discover_devices()

    @property
    def at(self) -> datetime:
        return at(self.now)

    def observed(self, pool: Pool | None = None) -> MigNode:
        """Return the node as the operator sees it."""
        node = Node(
            name="a100-0",
            labels=dict(self.labels),
            schedulable=True,
            allocatable=dict(self.allocatable),
        )
        (view,) = discover([pool or a_pool()], [node], date(2026, 11, 20))
        node_layout = ObservedNodeLayout(
            name=node.name, generation=self.generation, spec=self.spec, status=self._status()
        )
        (mig_node,) = mig_nodes(view, [node], [node_layout] if self.has_agent else [])
        return mig_node

    def writes(self, request: BackendRequest) -> Iterator[Callable[[], None]]:
        """Yield the writes of a cycle, in order."""
        if request.configs:
            file = configuration("gpu-operator", [request], {}).body["data"]["config.yaml"]
            yield lambda: self._files.append((self.now, file))
        if request.layout_spec is not None and request.layout_spec != self.spec:
            yield lambda: self._write_spec(request.layout_spec or NodeLayoutSpec())
        if request.labels:
            yield lambda: self._write_labels(request.labels)

    def pass_time(self, seconds: float = CYCLE_SECONDS) -> None:
        """Step every process of the node."""
        self.now += seconds
        self._run_device_plugin()
        if self.manager is not None:
            visible = [text for written, text in self._files if written <= self.now - self.lag]
            file = visible[-1] if visible else None
            while (
                new_labels := self.manager.step(self.labels, file, self.gpu_driver, self.now)
            ) is not None:
                self.labels |= new_labels
        if self.agent_partitions:
            for gpu in self.spec.gpus:
                self._partition(
                    next(fake_gpu for fake_gpu in self.gpu_driver.gpus if fake_gpu.uuid == gpu.uuid)
                )
        self._run_device_plugin()

    def layouts(self) -> Mapping[int, Layout]:
        return {gpu.index: _layout(gpu.instances) for gpu in self.gpu_driver.gpus}

    def _write_spec(self, spec: NodeLayoutSpec) -> None:
        self.spec = spec
        self.generation += 1

    def _write_labels(self, labels: Mapping[str, str | None]) -> None:
        for key, value in labels.items():
            if value is None:
                self.labels.pop(key, None)
            else:
                self.labels[key] = value

    def _run_device_plugin(self) -> None:
        """Stop the device plugin, or start it: it discovers devices 10 s after it may start."""
        if self.labels[DEVICE_PLUGIN_LABEL] != "true":
            self._plugin = False
            self.allocatable = dict.fromkeys(self.allocatable, 0)
            self._plugin_due = self.now + 10
        elif not self._plugin and self.now >= self._plugin_due:
            self._discover_devices()

    def _discover_devices(self) -> None:
        self._plugin = True
        counts = Counter(
            instance.profile for gpu in self.gpu_driver.gpus for instance in gpu.instances
        )
        self.allocatable = dict.fromkeys(self.allocatable, 0)
        self.allocatable |= {
            f"nvidia.com/mig-{name.replace('+', '.')}": count for name, count in counts.items()
        }
        self.labels = {
            key: value for key, value in self.labels.items() if not key.endswith(".count")
        }
        self.labels |= {
            f"nvidia.com/mig-{name.replace('+', '.')}.count": str(count)
            for name, count in counts.items()
        }
        self.labels["nvidia.com/gpu.count"] = str(len(self.gpu_driver.gpus))
        self.labels["nvidia.com/gfd.timestamp"] = str(int(self.at.timestamp()))

    def _partition(self, gpu: FakeGpu) -> None:
        """Partition a GPU as the agent does."""
        for operation in plan_partitioning(_read_gpu(gpu), self._desired(gpu), {}).operations:
            if operation.action == "destroy":
                self.gpu_driver.destroy(gpu.index, operation.placement.start)
            else:
                self.gpu_driver.create(
                    gpu.index, operation.placement.profile, operation.placement.start
                )

    def _desired(self, gpu: FakeGpu) -> DesiredGpu:
        return next(desired for desired in self.spec.gpus if desired.uuid == gpu.uuid)

    def _status(self) -> NodeLayoutStatus:
        desired_uuids = {gpu.uuid for gpu in self.spec.gpus} if self.agent_partitions else set()
        return NodeLayoutStatus(
            observed_generation=self.generation,
            partitioning_enabled=self.agent_partitions,
            gpus=tuple(
                gpu_status(reading, {}, self._problem(gpu) if gpu.uuid in desired_uuids else None)
                for gpu in self.gpu_driver.gpus
                if (reading := _read_gpu(gpu))
            ),
        )

    def _problem(self, gpu: FakeGpu) -> GpuProblem | None:
        return plan_partitioning(_read_gpu(gpu), self._desired(gpu), {}).problem


def _read_gpu(gpu: FakeGpu) -> SeenByDriver:
    return SeenByDriver(
        index=gpu.index,
        uuid=gpu.uuid,
        product=A100,
        memory_mib=81920,
        mode="Enabled" if gpu.mig else "Disabled",
        gpu_model=find_gpu_model(A100) if gpu.mig else None,
        instances=tuple(
            SeenInstance(
                placement=SlicePlacement(instance.start, instance.profile),
                uuid=instance.uuid,
                processes=len(instance.attached),
            )
            for instance in gpu.instances
        ),
    )


def _layout(instances: Sequence[FakeGpuInstance]) -> Layout:
    return tuple(sorted(SlicePlacement(instance.start, instance.profile) for instance in instances))


@dataclass(slots=True, kw_only=True)
class BackendRun:
    """The backend's part of a unit of a rollout; it counts the writes."""

    backend: GeometryBackend
    node: SimulatedMigNode
    desired: LayoutsByGpu
    attempt: int = 1
    since: datetime | None = None
    writes: int = 0
    status: BackendStatus = field(default_factory=BackendStatus)

    def run(
        self, cycles: int = 400, killed_at_write: int | None = None, max_attempts: int = 5
    ) -> BackendStatus:
        """Request and poll until it is done or no attempt is left.

        The operator dies before the write number `killed_at_write`, and another one continues.
        """
        self.since = self.since or self.node.at
        for _ in range(cycles):
            mig_node = self.node.observed()
            self.status = self.backend.status(
                mig_node, self.desired, self.attempt, self.since, self.node.at
            )
            if self.status.done:
                break
            if self.status.retry and self.attempt < max_attempts:
                self.attempt, self.since = self.attempt + 1, self.node.at
            elif self.status.problem is not None and self.status.retry:
                break
            for write in self.node.writes(
                self.backend.request(mig_node, self.desired, self.attempt, self.node.at)
            ):
                self.writes += 1
                if self.writes - 1 == killed_at_write:
                    break
                write()
            self.node.pass_time()
        return self.status
