"""The GPUs of one node with their driver: MIG instances, processes on them, and faults.

    driver = GpuDriver("NVIDIA-A100-SXM4-80GB", 8, node="gpu-1", layouts=[[("3g.40gb", 4)], []])
    driver.gpus[0].instances[0]           # profile, start, uuid, attached
    instance = driver.create(0, "1g.10gb")    # at the start that the driver chooses; or start=2
    driver.attach(instance.uuid, 4711)    # from now on it is IN_USE
    driver.destroy(0, instance.start)     # by start or by UUID; RefusedError(Code.IN_USE) here
    driver.clear(0)                       # all instances of the GPU, or none when one is in use
    driver.watch(callback)                # after every change; `driver.version` counts them

The rules are written here again and not taken from the planner, so that the two can be compared:
an instance begins at a multiple of its size in memory, every compute slice stands at the memory
slice of its number, nothing overlaps, and there is one set of media engines.

Faults: `fail`, `lose`, `ignore_destroy`, `invalidate_handles` and `on_call`. Everything may be
called from any thread.
"""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from fakegpu.profiles import FakeGpuModel, FakeGpuProfile, model_of

_NAMESPACE = uuid.UUID("7d1f9f3c-0c47-4f5e-8a52-3a4c1f7b2a90")

Moment = Literal["before", "after"]
ProfilePlacement = tuple[str, int]


class Code(IntEnum):
    """What the driver answers, in NVML's numbers."""

    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    TIMEOUT = 10
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    IN_USE = 19
    INSUFFICIENT_RESOURCES = 23
    UNKNOWN = 999


class RefusedError(Exception):
    """The driver said no."""

    def __init__(self, code: int) -> None:
        super().__init__(Code(code).name)
        self.code = int(code)


@dataclass(slots=True, kw_only=True)
class FakeComputeInstance:
    """A compute instance: what a MIG device is."""

    id: int
    slices: int
    uuid: str
    """New with every one that is made."""
    attached: set[int | str] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class FakeGpuInstance:
    """A GPU instance; incomplete while it has no compute instance."""

    id: int
    kind: FakeGpuProfile
    start: int
    computes: list[FakeComputeInstance] = field(default_factory=list)

    @property
    def profile(self) -> str:
        return self.kind.name

    @property
    def uuid(self) -> str:
        """The UUID of its MIG device; empty while it has no compute instance."""
        return self.computes[0].uuid if self.computes else ""

    @property
    def attached(self) -> frozenset[int | str]:
        """Process ids or names of what computes on it."""
        return frozenset(process for compute in self.computes for process in compute.attached)

    @property
    def memory(self) -> range:
        return range(self.start, self.start + self.kind.memory_slices)


@dataclass(slots=True, kw_only=True)
class FakeGpu:
    """One GPU."""

    index: int
    uuid: str
    model: FakeGpuModel
    mig: bool
    pending: bool
    """The mode that it has after the next reset."""
    instances: list[FakeGpuInstance] = field(default_factory=list)
    attached: set[int | str] = field(default_factory=set)
    """What computes on the whole GPU."""
    lost: bool = False
    """It has fallen off the bus (XID 79): all that is asked about it answers GPU_IS_LOST."""

    @property
    def busy(self) -> bool:
        return bool(self.attached) or any(instance.attached for instance in self.instances)


@dataclass(slots=True, kw_only=True)
class _Fault:
    name: str
    code: int
    times: int
    moment: Moment


class GpuDriver:
    """See the head of this module."""

    def __init__(
        self,
        product: str,
        count: int,
        *,
        node: str = "node",
        mig: bool | Sequence[bool] = True,
        layouts: Sequence[Sequence[ProfilePlacement]] = (),
    ) -> None:
        self.model = model_of(product)
        modes = [mig] * count if isinstance(mig, bool) else list(mig)
        modes = [mode and bool(self.model.profiles) for mode in modes]
        self.node = node
        self.driver_version = "580.95.05"
        self.version = 0
        self.epoch = 0
        """Handles of an earlier epoch are invalid."""
        self.on_call: Callable[[int, str, Moment], None] = lambda _number, _name, _moment: None
        """Called with the number of every call of the driver; what it raises ends the caller."""
        self.calls = 0
        self._lock = threading.RLock()
        self._faults: list[_Fault] = []
        self._ignored_destroys: list[tuple[int, int]] = []
        self._watchers: list[Callable[[], None]] = []
        self._created_count = 0
        self.gpus = [
            FakeGpu(
                index=index,
                uuid=f"GPU-{uuid.uuid5(_NAMESPACE, f'{node}/{index}')}",
                model=self.model,
                mig=mode,
                pending=mode,
            )
            for index, mode in enumerate(modes)
        ]
        for index, layout in enumerate(layouts):
            for profile, start in layout:
                self.create(index, profile, start)

    def create(self, gpu_index: int, profile: str, start: int | None = None) -> FakeGpuInstance:
        """A GPU instance with the compute instance that fills it; neither when one is refused."""
        kind = self.model.by_name(profile)
        if kind is None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        instance = self.create_gpu_instance(gpu_index, kind.id, start)
        try:
            self.create_compute_instance(gpu_index, instance.id, kind.compute_slices)
        except RefusedError:
            self.destroy_gpu_instance(gpu_index, instance.id)
            raise
        return instance

    def destroy(self, gpu_index: int, which: int | str) -> None:
        """By start or UUID: its compute instances, then itself."""
        matches = [
            instance
            for instance in self.gpus[gpu_index].instances
            if which in (instance.start, instance.uuid or None)
        ]
        if not matches:
            raise RefusedError(Code.NOT_FOUND)
        if matches[0].attached:
            raise RefusedError(Code.IN_USE)
        for compute in tuple(matches[0].computes):
            self.destroy_compute_instance(gpu_index, matches[0].id, compute.id)
        self.destroy_gpu_instance(gpu_index, matches[0].id)

    def clear(self, gpu_index: int) -> None:
        """Every instance of the GPU; none where one is in use."""
        if any(instance.attached for instance in self.gpus[gpu_index].instances):
            raise RefusedError(Code.IN_USE)
        for instance in tuple(self.gpus[gpu_index].instances):
            self.destroy(gpu_index, instance.start)

    def clear_unused(self) -> None:
        """Every instance that is not in use, on all GPUs."""
        for gpu in self.gpus:
            for instance in tuple(gpu.instances):
                if not instance.attached:
                    self.destroy(gpu.index, instance.start)

    def lose(self, gpu_index: int, *, lost: bool = True) -> None:
        """Lose a GPU, or have it again as it was."""
        with self._lock:
            self.gpus[gpu_index].lost = lost
            self._changed()

    def attach(self, which: str, process: int | str) -> None:
        """A process or a pod begins to compute on a MIG device or a whole GPU, by UUID."""
        with self._lock:
            self._attached(which).add(process)
            self._changed()

    def detach(self, which: str, process: int | str | None = None) -> None:
        """End a process, or all of them without a name; an unknown device is no error."""
        with self._lock:
            try:
                attached = self._attached(which)
            except RefusedError:
                return
            attached -= set(attached) if process is None else {process}
            self._changed()

    def watch(self, callback: Callable[[], None]) -> None:
        """Called after every change, in the thread that made it."""
        self._watchers.append(callback)

    def fail(self, name: str, code: Code, *, times: int = 1, moment: Moment = "before") -> None:
        """Let the next calls of this NVML function fail; `after` it has done its work all the same.

        `nvmlDeviceCreateGpuInstance` and `...WithPlacement` are two names.
        """
        self._faults.append(_Fault(name=name, code=code, times=times, moment=moment))

    def ignore_destroy(self, gpu_index: int, start: int) -> None:
        """Let the next destruction of this instance report success without doing it."""
        self._ignored_destroys.append((gpu_index, start))

    def invalidate_handles(self) -> None:
        """Invalidate all handles until the library is initialized again."""
        self.epoch += 1

    def reset(self, gpu_index: int) -> None:
        """Reset the GPU: a mode that waits comes, and instances go. IN_USE while it computes."""
        with self._lock:
            gpu = self.gpus[gpu_index]
            if gpu.busy:
                raise RefusedError(Code.IN_USE)
            # The mode is a property of the board on Ampere, and of the loaded driver since Hopper.
            gpu.mig = gpu.pending if gpu.model.mode_needs_reset else False
            gpu.pending = gpu.mig
            gpu.instances.clear()
            self.invalidate_handles()
            self._changed()

    # What follows are the calls of the driver, each under the name that NVML gives it.

    def set_mode(self, gpu_index: int, enabled: bool) -> int:
        """The activation status: 0, or RESET_REQUIRED where the mode waits for a reset."""
        with self.call("nvmlDeviceSetMigMode"):
            gpu = self.gpus[gpu_index]
            gpu.pending = enabled
            if gpu.mig == enabled:
                return 0
            if gpu.model.mode_needs_reset:
                self._changed()
                return int(Code.RESET_REQUIRED)
            if gpu.busy:
                gpu.pending = gpu.mig
                return int(Code.IN_USE)
            gpu.mig = enabled
            gpu.instances.clear()
            self._changed()
            return 0

    def create_gpu_instance(
        self, gpu_index: int, profile_id: int, start: int | None = None
    ) -> FakeGpuInstance:
        placed = "" if start is None else "WithPlacement"
        with self.call(f"nvmlDeviceCreateGpuInstance{placed}"):
            gpu = self._mig_gpu(gpu_index)
            kind = gpu.model.by_id(profile_id)
            if kind is None or (start is not None and start not in gpu.model.starts(kind)):
                raise RefusedError(Code.INVALID_ARGUMENT)
            starts = [
                candidate for candidate in self.free(gpu_index, kind) if start in (None, candidate)
            ]
            if not starts:
                raise RefusedError(Code.INSUFFICIENT_RESOURCES)
            instance = FakeGpuInstance(
                id=gpu.model.instance_id(kind, starts[-1]), kind=kind, start=starts[-1]
            )
            gpu.instances.append(instance)
            gpu.instances.sort(key=lambda known_instance: known_instance.start)
            self._changed()
            return instance

    def create_compute_instance(
        self, gpu_index: int, instance_id: int, slices: int
    ) -> FakeComputeInstance:
        with self.call("nvmlGpuInstanceCreateComputeInstance"):
            instance = self.instance(gpu_index, instance_id)
            used = {known_compute.id for known_compute in instance.computes}
            if (
                sum(known_compute.slices for known_compute in instance.computes) + slices
                > instance.kind.compute_slices
            ):
                raise RefusedError(Code.INSUFFICIENT_RESOURCES)
            self._created_count += 1
            name = f"{self.node}/{gpu_index}/{self._created_count}"
            compute = FakeComputeInstance(
                id=min(set(range(len(used) + 1)) - used),
                slices=slices,
                uuid=f"MIG-{uuid.uuid5(_NAMESPACE, name)}",
            )
            instance.computes.append(compute)
            self._changed()
            return compute

    def destroy_compute_instance(self, gpu_index: int, instance_id: int, compute_id: int) -> None:
        with self.call("nvmlComputeInstanceDestroy"):
            instance = self.instance(gpu_index, instance_id)
            compute = next(
                (
                    known_compute
                    for known_compute in instance.computes
                    if known_compute.id == compute_id
                ),
                None,
            )
            if compute is None:
                raise RefusedError(Code.NOT_FOUND)
            if compute.attached:
                raise RefusedError(Code.IN_USE)
            instance.computes.remove(compute)
            self._changed()

    def destroy_gpu_instance(self, gpu_index: int, instance_id: int) -> None:
        with self.call("nvmlGpuInstanceDestroy"):
            instance = self.instance(gpu_index, instance_id)
            if instance.computes:
                raise RefusedError(Code.IN_USE)
            if (gpu_index, instance.start) in self._ignored_destroys:
                self._ignored_destroys.remove((gpu_index, instance.start))
                return
            self.gpus[gpu_index].instances.remove(instance)
            self._changed()

    def instance(self, gpu_index: int, instance_id: int) -> FakeGpuInstance:
        """By its id on the GPU."""
        for instance in self._present_gpu(gpu_index).instances:
            if instance.id == instance_id:
                return instance
        raise RefusedError(Code.NOT_FOUND)

    def free(self, gpu_index: int, kind: FakeGpuProfile) -> list[int]:
        """Where another instance of the profile may begin now, ascending."""
        gpu = self.gpus[gpu_index]
        taken = {slot for instance in gpu.instances for slot in instance.memory}
        if kind.media and any(instance.kind.media for instance in gpu.instances):
            return []
        return [
            start
            for start in gpu.model.starts(kind)
            if taken.isdisjoint(range(start, start + kind.memory_slices))
        ]

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Around every call of the driver: one at a time, numbered, and with its faults."""
        with self._lock:
            self.calls += 1
            number = self.calls
            self.on_call(number, name, "before")
            self._fault(name, "before")
            yield
            self._fault(name, "after")
            self.on_call(number, name, "after")

    def _fault(self, name: str, moment: Moment) -> None:
        for fault in self._faults:
            if (fault.name, fault.moment) == (name, moment):
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                raise RefusedError(fault.code)

    def _present_gpu(self, gpu_index: int) -> FakeGpu:
        gpu = self.gpus[gpu_index]
        if gpu.lost:
            raise RefusedError(Code.GPU_IS_LOST)
        return gpu

    def _mig_gpu(self, gpu_index: int) -> FakeGpu:
        gpu = self._present_gpu(gpu_index)
        if not gpu.mig:
            raise RefusedError(Code.NOT_SUPPORTED)
        return gpu

    def _attached(self, which: str) -> set[int | str]:
        for gpu in self.gpus:
            if gpu.uuid == which:
                return gpu.attached
            for instance in gpu.instances:
                for compute in instance.computes:
                    if compute.uuid == which:
                        return compute.attached
        raise RefusedError(Code.NOT_FOUND)

    def _changed(self) -> None:
        self.version += 1
        for callback in self._watchers:
            callback()
