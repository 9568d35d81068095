"""A node whose GPUs, kubelet and NodeLayout are in memory, and agents on it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import ModuleType

from fakegpu.gpu_driver import GpuDriver, ProfilePlacement
from fakegpu.nvml import nvml
from tessera.adapters.nvml import NvmlGpus
from tessera.api.node_layout import DesiredGpu, NodeLayoutSpec, NodeLayoutStatus, PlacedSlice
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.node_agent.reconcile import NodeAgent
from tessera.ports import KubeletError

A100 = "NVIDIA-A100-SXM4-80GB"


class MemoryLayout:
    """`OwnLayout`; `on_call` may raise before and after everything that goes over the wire."""

    def __init__(self) -> None:
        self.layout = ObservedNodeLayout(name="gpu-1", generation=1, spec=NodeLayoutSpec())
        self.writes = 0
        self.reads = 0
        self.on_call: Callable[[str, str], None] = lambda _name, _moment: None

    async def read(self) -> ObservedNodeLayout:
        self.on_call("read", "before")
        self.reads += 1
        found = self.layout
        self.on_call("read", "after")
        return found

    async def write(self, status: NodeLayoutStatus) -> None:
        self.on_call("write", "before")
        self.writes += 1
        self.layout = replace(self.layout, status=status)
        self.on_call("write", "after")

    async def wait_for_change(self) -> None:
        raise NotImplementedError


class MemoryPods:
    """`PodDevices`."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, ...]] = {}
        self.silent = False

    async def holders(self) -> Mapping[str, tuple[str, ...]]:
        if self.silent:
            raise KubeletError("the kubelet does not answer")
        return dict(self.found)


class MemoryLocks:
    """`Locks` of one machine."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        ours = name not in self.held
        self.held.add(name)
        try:
            yield ours
        finally:
            if ours:
                self.held.remove(name)


@cache
def _module() -> ModuleType:
    return nvml(GpuDriver(A100, 1))


class GpuNode:
    """The node; only the last one that was made has a driver."""

    def __init__(
        self,
        *layouts: Sequence[ProfilePlacement],
        product: str = A100,
        mig: bool | Sequence[bool] = True,
    ) -> None:
        self.gpu_driver = GpuDriver(product, max(1, len(layouts)), mig=mig, layouts=layouts)
        self.own = MemoryLayout()
        self.pods = MemoryPods()
        self.locks = MemoryLocks()
        self._module = nvml(self.gpu_driver, _module())

    def agent(self, *, cuts: bool = True) -> NodeAgent:
        """A new process."""
        return NodeAgent(
            NvmlGpus(self._module), self.pods, self.own, self.locks, can_partition=cuts
        )

    def want(self, *layouts: Sequence[ProfilePlacement] | None) -> None:
        """The operator writes the spec; None leaves a GPU out of it."""
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
        generation = self.own.layout.generation + 1
        self.own.layout = replace(self.own.layout, generation=generation, spec=spec)

    def layout(self, gpu: int = 0) -> Layout:
        found = self.gpu_driver.gpus[gpu].instances
        assert all(one.uuid for one in found), "half made"
        return tuple(SlicePlacement(one.start, one.profile) for one in found)

    def hold(self, start: int, pod: str, gpu: int = 0) -> str:
        """A pod gets the slice there, and begins no process yet; the slice's UUID."""
        uuid = next(one.uuid for one in self.gpu_driver.gpus[gpu].instances if one.start == start)
        self.pods.found[uuid] = (pod,)
        return uuid

    @property
    def status(self) -> NodeLayoutStatus:
        assert self.own.layout.status is not None
        return self.own.layout.status
