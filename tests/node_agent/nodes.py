"""A node whose GPUs, kubelet and NodeLayout are in memory, and agents on it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import ModuleType

from fakegpu.gpu_driver import GpuDriver, ProfilePlacement
from fakegpu.nvml import nvml
from tessera.adapters.nvml.gpus import NvmlGpus
from tessera.api.node_layout import DesiredGpu, NodeLayoutSpec, NodeLayoutStatus, PlacedSlice
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.node_agent.reconcile import NodeAgent
from tessera.ports import KubeletError
from tests.builders import NOW

A100 = "NVIDIA-A100-SXM4-80GB"


class MemoryLayout:
    """`OwnLayout` in memory; `on_call` may raise before and after each request."""

    def __init__(self) -> None:
        self.layout = ObservedNodeLayout(name="gpu-1", generation=1, spec=NodeLayoutSpec())
        self.writes = 0
        self.reads = 0
        self.on_call: Callable[[str, str], None] = lambda _name, _moment: None

    async def read(self) -> ObservedNodeLayout:
        self.on_call("read", "before")
        self.reads += 1
        layout = self.layout
        self.on_call("read", "after")
        return layout

    async def write(self, status: NodeLayoutStatus) -> None:
        self.on_call("write", "before")
        self.writes += 1
        self.layout = replace(
            self.layout,
            status=status.model_copy(update={"last_heartbeat_time": None}),
            heartbeat=status.last_heartbeat_time,
        )
        self.on_call("write", "after")

    async def wait_for_change(self) -> None:
        raise NotImplementedError


class MemoryPods:
    """`PodDevices` in memory."""

    def __init__(self) -> None:
        self.holders_by_uuid: dict[str, tuple[str, ...]] = {}
        self.silent = False

    async def holders(self) -> Mapping[str, tuple[str, ...]]:
        if self.silent:
            raise KubeletError("the kubelet does not answer")
        return dict(self.holders_by_uuid)


class MemoryLocks:
    """`Locks` of one machine, in memory."""

    def __init__(self) -> None:
        self.locked: set[str] = set()

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        acquired = name not in self.locked
        self.locked.add(name)
        try:
            yield acquired
        finally:
            if acquired:
                self.locked.remove(name)


@cache
def _module() -> ModuleType:
    return nvml(GpuDriver(A100, 1))


class GpuNode:
    """The node; only the last created one has a driver."""

    def __init__(
        self,
        *layouts: Sequence[ProfilePlacement],
        product: str = A100,
        mig: bool | Sequence[bool] = True,
    ) -> None:
        self.gpu_driver = GpuDriver(product, max(1, len(layouts)), mig=mig, layouts=layouts)
        self.own_layout = MemoryLayout()
        self.pods = MemoryPods()
        self.locks = MemoryLocks()
        self.at = NOW
        self._module = nvml(self.gpu_driver, _module())

    def agent(self, *, can_partition: bool = True) -> NodeAgent:
        """Start a new agent process."""
        return NodeAgent(
            NvmlGpus(self._module),
            self.pods,
            self.own_layout,
            self.locks,
            lambda: self.at,
            can_partition=can_partition,
        )

    def set_spec(self, *layouts: Sequence[ProfilePlacement] | None) -> None:
        """Write the spec as the operator does; None leaves a GPU out of it."""
        spec = NodeLayoutSpec(
            gpus=tuple(
                DesiredGpu(
                    uuid=gpu.uuid,
                    slices=tuple(PlacedSlice(profile=name, start=start) for name, start in layout),
                )
                for gpu, layout in zip(self.gpu_driver.gpus, layouts, strict=True)
                if layout is not None
            )
        )
        generation = self.own_layout.layout.generation + 1
        self.own_layout.layout = replace(self.own_layout.layout, generation=generation, spec=spec)

    def layout(self, gpu: int = 0) -> Layout:
        instances = self.gpu_driver.gpus[gpu].instances
        assert all(instance.uuid for instance in instances), "an instance has no UUID"
        return tuple(SlicePlacement(instance.start, instance.profile) for instance in instances)

    def assign_pod(self, start: int, pod: str, gpu: int = 0) -> str:
        """Give a slice to a pod, without a process yet; return the slice's UUID."""
        uuid = next(
            instance.uuid
            for instance in self.gpu_driver.gpus[gpu].instances
            if instance.start == start
        )
        self.pods.holders_by_uuid[uuid] = (pod,)
        return uuid

    @property
    def status(self) -> NodeLayoutStatus:
        assert self.own_layout.layout.status is not None
        return self.own_layout.layout.status
