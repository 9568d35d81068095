"""Nodes with GPUs that exist only here, and what cuts them: the far ends of geometry backends."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from fakegpu.gpu_driver import FakeGpu, FakeGpuInstance, GpuDriver
from tessera.api.node_layout import DesiredGpu, NodeLayoutSpec, NodeLayoutStatus
from tessera.domain.hardware.pools import discover
from tessera.domain.mig.gpu_models import find_gpu_model
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tessera.domain.mig.partitioning import DriverGpu as SeenByDriver
from tessera.domain.mig.partitioning import DriverInstance as SeenInstance
from tessera.domain.mig.partitioning import GpuProblem, gpu_status, plan_partitioning
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    GeometryBackend,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Node, Pool
from tessera.resources.mig_objects import configuration
from tests.builders import A100, a_pool, at
from world.mig_manager import MigManager

# Seconds between two turns.
TURN = 5.0


@dataclass(slots=True, kw_only=True)
class FarEnd:
    """One node: its kubelet, device plugin and feature discovery, and who cuts its GPUs."""

    gpu_driver: GpuDriver
    manager: MigManager | None = None
    tells: bool = False
    """An agent looks."""
    cuts: bool = False
    """It cuts, too."""
    lag: float = 60.0
    """Until the node has what was written to the ConfigMap."""
    now: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    allocatable: dict[str, int] = field(default_factory=dict)
    generation: int = 1
    spec: NodeLayoutSpec = field(default_factory=NodeLayoutSpec)
    _files: list[tuple[float, str]] = field(default_factory=list)
    _plugin: bool = False
    _due: float = 0.0

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
        self._look()

    @property
    def at(self) -> datetime:
        return at(self.now)

    def ground(self, pool: Pool | None = None) -> MigNode:
        """As the operator sees it."""
        node = Node(
            name="a100-0",
            labels=dict(self.labels),
            schedulable=True,
            allocatable=dict(self.allocatable),
        )
        (view,) = discover([pool or a_pool()], [node], date(2026, 11, 20))
        told = ObservedNodeLayout(
            name=node.name, generation=self.generation, spec=self.spec, status=self._status()
        )
        (found,) = mig_nodes(view, [node], [told] if self.tells else [])
        return found

    def writes(self, ask: BackendRequest) -> Iterator[Callable[[], None]]:
        """What a turn writes, in its order."""
        if ask.configs:
            file = configuration("gpu-operator", [ask], {}).body["data"]["config.yaml"]
            yield lambda: self._files.append((self.now, file))
        if ask.layout_spec is not None and ask.layout_spec != self.spec:
            yield lambda: self._wish(ask.layout_spec or NodeLayoutSpec())
        if ask.labels:
            yield lambda: self._mark(ask.labels)

    def pass_time(self, seconds: float = TURN) -> None:
        """Everybody on the node does what is due."""
        self.now += seconds
        self._refresh()
        if self.manager is not None:
            here = [text for written, text in self._files if written <= self.now - self.lag]
            file = here[-1] if here else None
            while (
                told := self.manager.step(self.labels, file, self.gpu_driver, self.now)
            ) is not None:
                self.labels |= told
        if self.cuts:
            for gpu in self.spec.gpus:
                self._cut(next(one for one in self.gpu_driver.gpus if one.uuid == gpu.uuid))
        self._refresh()

    def layouts(self) -> Mapping[int, Layout]:
        return {gpu.index: _layout(gpu.instances) for gpu in self.gpu_driver.gpus}

    def _wish(self, spec: NodeLayoutSpec) -> None:
        self.spec = spec
        self.generation += 1

    def _mark(self, labels: Mapping[str, str | None]) -> None:
        for key, value in labels.items():
            if value is None:
                self.labels.pop(key, None)
            else:
                self.labels[key] = value

    def _refresh(self) -> None:
        """The device plugin sees what there is when it starts, ten seconds after it may."""
        if self.labels[DEVICE_PLUGIN_LABEL] != "true":
            self._plugin = False
            self.allocatable = dict.fromkeys(self.allocatable, 0)
            self._due = self.now + 10
        elif not self._plugin and self.now >= self._due:
            self._look()

    def _look(self) -> None:
        self._plugin = True
        found = Counter(one.profile for gpu in self.gpu_driver.gpus for one in gpu.instances)
        self.allocatable = dict.fromkeys(self.allocatable, 0)
        self.allocatable |= {
            f"nvidia.com/mig-{name.replace('+', '.')}": count for name, count in found.items()
        }
        self.labels = {
            key: value for key, value in self.labels.items() if not key.endswith(".count")
        }
        self.labels |= {
            f"nvidia.com/mig-{name.replace('+', '.')}.count": str(count)
            for name, count in found.items()
        }
        self.labels["nvidia.com/gpu.count"] = str(len(self.gpu_driver.gpus))
        self.labels["nvidia.com/gfd.timestamp"] = str(int(self.at.timestamp()))

    def _cut(self, gpu: FakeGpu) -> None:
        """One round of the agent."""
        for deed in plan_partitioning(_readout(gpu), self._wanted(gpu), {}).operations:
            if deed.action == "destroy":
                self.gpu_driver.destroy(gpu.index, deed.placement.start)
            else:
                self.gpu_driver.create(gpu.index, deed.placement.profile, deed.placement.start)

    def _wanted(self, gpu: FakeGpu) -> DesiredGpu:
        return next(one for one in self.spec.gpus if one.uuid == gpu.uuid)

    def _status(self) -> NodeLayoutStatus:
        asked = {gpu.uuid for gpu in self.spec.gpus} if self.cuts else set()
        return NodeLayoutStatus(
            observed_generation=self.generation,
            partitioning_enabled=self.cuts,
            gpus=tuple(
                gpu_status(found, {}, self._trouble(gpu) if gpu.uuid in asked else None)
                for gpu in self.gpu_driver.gpus
                if (found := _readout(gpu))
            ),
        )

    def _trouble(self, gpu: FakeGpu) -> GpuProblem | None:
        return plan_partitioning(_readout(gpu), self._wanted(gpu), {}).problem


def _readout(gpu: FakeGpu) -> SeenByDriver:
    return SeenByDriver(
        index=gpu.index,
        uuid=gpu.uuid,
        product=A100,
        memory_mib=81920,
        mode="Enabled" if gpu.mig else "Disabled",
        gpu_model=find_gpu_model(A100) if gpu.mig else None,
        instances=tuple(
            SeenInstance(
                placement=SlicePlacement(one.start, one.profile),
                uuid=one.uuid,
                processes=len(one.attached),
            )
            for one in gpu.instances
        ),
    )


def _layout(instances: Sequence[FakeGpuInstance]) -> Layout:
    return tuple(sorted(SlicePlacement(one.start, one.profile) for one in instances))


@dataclass(slots=True, kw_only=True)
class Course:
    """A unit of a rollout, as far as the backend is concerned; it counts its writes."""

    backend: GeometryBackend
    far: FarEnd
    wanted: LayoutsByGpu
    attempt: int = 1
    since: datetime | None = None
    writes: int = 0
    heard: BackendStatus = field(default_factory=BackendStatus)

    def run(self, turns: int = 400, stop: int | None = None, most: int = 5) -> BackendStatus:
        """Ask and listen until it is done or no attempt is left; the operator dies before the
        write of the number `stop`, and another goes on."""
        self.since = self.since or self.far.at
        for _ in range(turns):
            ground = self.far.ground()
            self.heard = self.backend.status(
                ground, self.wanted, self.attempt, self.since, self.far.at
            )
            if self.heard.done:
                break
            if self.heard.retry and self.attempt < most:
                self.attempt, self.since = self.attempt + 1, self.far.at
            elif self.heard.problem is not None and self.heard.retry:
                break
            for write in self.far.writes(self.backend.request(ground, self.wanted, self.attempt)):
                self.writes += 1
                if self.writes - 1 == stop:
                    break
                write()
            self.far.pass_time()
        return self.heard
