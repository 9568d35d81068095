"""One process's session with the driver, in plain values: handles are numbers.

Method names are those of NVML's C functions without their versions. A handle of an
object that no longer exists answers NOT_FOUND, and one from before a reset or
`GpuDriver.invalidate_handles` answers INVALID_ARGUMENT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakegpu.gpu_driver import (
    Code,
    FakeComputeInstance,
    FakeGpu,
    FakeGpuInstance,
    GpuDriver,
    RefusedError,
)
from fakegpu.profiles import FakeGpuProfile

Plain = int | str | None | list["Plain"] | dict[str, "Plain"]

# NVML's constants of compute profiles -> slices; here their ids are the constants.
_COMPUTE_SLICES = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7}
_MIB = 1 << 20
_ALREADY_WORKING = ("nvmlDeviceCreate", "nvmlDeviceSetMigMode", "nvmlGpuInstanceCreate")


@dataclass(frozen=True, slots=True)
class _Target:
    """What a handle stands for."""

    epoch: int
    gpu: FakeGpu
    instance: FakeGpuInstance | None = None
    compute: FakeComputeInstance | None = None


class NvmlSession:
    """One process's calls; any number of sessions share a `GpuDriver`."""

    def __init__(self, driver: GpuDriver) -> None:
        self._driver = driver
        self._targets: list[_Target] = []
        self._initializations = 0
        self._epoch = 0

    def call(self, name: str, *arguments: Any) -> Plain:
        """One function by its name in C; RefusedError is its error code."""
        function: Callable[..., Plain] | None = getattr(self, name, None)
        if function is None or not name.startswith("nvml"):
            raise RefusedError(Code.NOT_SUPPORTED)
        if not self._initializations and name != "nvmlInitWithFlags":
            raise RefusedError(Code.UNINITIALIZED)
        if name.startswith(_ALREADY_WORKING) or name.endswith("Destroy"):
            return function(*arguments)
        with self._driver.call(name):
            return function(*arguments)

    def nvmlInitWithFlags(self, _flags: int) -> Plain:
        self._initializations += 1
        self._epoch = self._driver.epoch
        return None

    def nvmlShutdown(self) -> Plain:
        self._initializations -= 1
        return None

    def nvmlSystemGetDriverVersion(self) -> Plain:
        return self._driver.driver_version

    def nvmlDeviceGetCount(self) -> Plain:
        return len(self._driver.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Plain:
        if not 0 <= index < len(self._driver.gpus):
            raise RefusedError(Code.INVALID_ARGUMENT)
        return self._handle(self._driver.gpus[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Plain:
        for gpu in self._driver.gpus:
            if gpu.uuid == uuid:
                return self._handle(gpu)
            for instance in gpu.instances:
                for compute in instance.computes:
                    if compute.uuid == uuid:
                        return self._handle(gpu, instance, compute)
        raise RefusedError(Code.NOT_FOUND)

    def nvmlDeviceGetUUID(self, device: int) -> Plain:
        target = self._resolve(device)
        return target.compute.uuid if target.compute else target.gpu.uuid

    def nvmlDeviceGetName(self, device: int) -> Plain:
        target = self._resolve(device)
        name = target.gpu.model.name
        return f"{name} MIG {target.instance.profile}" if target.instance else name

    def nvmlDeviceGetIndex(self, device: int) -> Plain:
        return self._gpu(device).index

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Plain:
        target = self._resolve(device)
        mib = target.instance.kind.memory_mib if target.instance else target.gpu.model.memory_mib
        return {"total": mib * _MIB, "free": mib * _MIB, "used": 0}

    def nvmlDeviceGetMigMode(self, device: int) -> Plain:
        gpu = self._gpu(device)
        if not gpu.model.profiles:
            raise RefusedError(Code.NOT_SUPPORTED)
        return [int(gpu.mig), int(gpu.pending)]

    def nvmlDeviceSetMigMode(self, device: int, mode: int) -> Plain:
        gpu = self._gpu(device)
        if not gpu.model.profiles:
            raise RefusedError(Code.NOT_SUPPORTED)
        return self._driver.set_mode(gpu.index, enabled=bool(mode))

    def nvmlDeviceGetGpuInstanceProfileInfo(self, device: int, constant: int) -> Plain:
        gpu = self._gpu(device)
        for kind in gpu.model.profiles:
            if kind.value == constant:
                return {
                    "id": kind.id,
                    "sliceCount": kind.compute_slices,
                    "instanceCount": 1 if kind.media else len(gpu.model.starts(kind)),
                    "multiprocessorCount": kind.multiprocessors,
                    "jpegCount": int(kind.media),
                    "memorySizeMB": kind.memory_mib,
                    "name": f"MIG {kind.name}",
                }
        raise RefusedError(Code.NOT_SUPPORTED)

    def nvmlDeviceGetGpuInstancePossiblePlacements(self, device: int, profile: int) -> Plain:
        gpu = self._gpu(device)
        kind = self._kind(gpu, profile)
        return [[start, kind.memory_slices] for start in gpu.model.starts(kind)]

    def nvmlDeviceGetGpuInstanceRemainingCapacity(self, device: int, profile: int) -> Plain:
        gpu = self._gpu(device)
        kind = self._kind(gpu, profile)
        return min(len(self._driver.free(gpu.index, kind)), 1 if kind.media else 8)

    def nvmlDeviceCreateGpuInstance(self, device: int, profile: int) -> Plain:
        gpu = self._gpu(device)
        return self._handle(gpu, self._driver.create_gpu_instance(gpu.index, profile))

    def nvmlDeviceCreateGpuInstanceWithPlacement(
        self, device: int, profile: int, start: int, size: int
    ) -> Plain:
        gpu = self._gpu(device)
        if size != self._kind(gpu, profile).memory_slices:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return self._handle(gpu, self._driver.create_gpu_instance(gpu.index, profile, start))

    def nvmlGpuInstanceDestroy(self, instance: int) -> Plain:
        gpu, gpu_instance = self._instance(instance)
        self._driver.destroy_gpu_instance(gpu.index, gpu_instance.id)
        return None

    def nvmlDeviceGetGpuInstances(self, device: int, profile: int) -> Plain:
        gpu = self._gpu(device)
        if not gpu.mig:
            raise RefusedError(Code.NOT_SUPPORTED)
        kind = self._kind(gpu, profile)
        return [
            self._handle(gpu, gpu_instance)
            for gpu_instance in gpu.instances
            if gpu_instance.kind is kind
        ]

    def nvmlDeviceGetGpuInstanceById(self, device: int, instance: int) -> Plain:
        gpu = self._gpu(device)
        return self._handle(gpu, self._driver.instance(gpu.index, instance))

    def nvmlGpuInstanceGetInfo(self, instance: int) -> Plain:
        gpu, gpu_instance = self._instance(instance)
        return {
            "device": self._handle(gpu),
            "id": gpu_instance.id,
            "profileId": gpu_instance.kind.id,
            "placement": [gpu_instance.start, gpu_instance.kind.memory_slices],
        }

    def nvmlGpuInstanceGetComputeInstanceProfileInfo(
        self, instance: int, constant: int, _engine: int
    ) -> Plain:
        _, gpu_instance = self._instance(instance)
        slices = _COMPUTE_SLICES.get(constant, 0)
        if not 0 < slices <= gpu_instance.kind.compute_slices:
            raise RefusedError(Code.NOT_SUPPORTED)
        count = gpu_instance.kind.compute_slices // slices
        return {"id": constant, "sliceCount": slices, "instanceCount": count}

    def nvmlGpuInstanceCreateComputeInstance(self, instance: int, profile: int) -> Plain:
        gpu, gpu_instance = self._instance(instance)
        slices = _COMPUTE_SLICES.get(profile, 0)
        if not 0 < slices <= gpu_instance.kind.compute_slices:
            raise RefusedError(Code.INVALID_ARGUMENT)
        compute_instance = self._driver.create_compute_instance(gpu.index, gpu_instance.id, slices)
        return self._handle(gpu, gpu_instance, compute_instance)

    def nvmlComputeInstanceDestroy(self, compute: int) -> Plain:
        gpu, instance, compute_instance = self._compute(compute)
        self._driver.destroy_compute_instance(gpu.index, instance.id, compute_instance.id)
        return None

    def nvmlGpuInstanceGetComputeInstances(self, instance: int, profile: int) -> Plain:
        gpu, gpu_instance = self._instance(instance)
        slices = _COMPUTE_SLICES.get(profile)
        return [
            self._handle(gpu, gpu_instance, compute_instance)
            for compute_instance in gpu_instance.computes
            if compute_instance.slices == slices
        ]

    def nvmlComputeInstanceGetInfo(self, compute: int) -> Plain:
        gpu, instance, compute_instance = self._compute(compute)
        constant = next(
            key for key, slices in _COMPUTE_SLICES.items() if slices == compute_instance.slices
        )
        return {
            "device": self._handle(gpu, instance, compute_instance),
            "gpuInstance": self._handle(gpu, instance),
            "id": compute_instance.id,
            "profileId": constant,
            "placement": [0, compute_instance.slices],
        }

    def nvmlDeviceIsMigDeviceHandle(self, device: int) -> Plain:
        return int(self._resolve(device).compute is not None)

    def nvmlDeviceGetGpuInstanceId(self, device: int) -> Plain:
        return self._compute(device)[1].id

    def nvmlDeviceGetComputeInstanceId(self, device: int) -> Plain:
        return self._compute(device)[2].id

    def nvmlDeviceGetMaxMigDeviceCount(self, device: int) -> Plain:
        return self._gpu(device).model.compute_slices

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: int, index: int) -> Plain:
        """Numbered without gaps here; instances without a compute instance have none."""
        gpu = self._gpu(device)
        pairs = [(instance, compute) for instance in gpu.instances for compute in instance.computes]
        if index >= len(pairs):
            raise RefusedError(Code.NOT_FOUND)
        return self._handle(gpu, *pairs[index])

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: int) -> Plain:
        return self._handle(self._compute(device)[0])

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> Plain:
        """Return the processes of a MIG device, or of a GPU with those on its instances."""
        target = self._resolve(device)
        if target.instance and target.compute:
            holders = [(target.compute.attached, target.instance.id, target.compute.id)]
        else:
            none = (1 << 32) - 1
            holders = [(target.gpu.attached, none, none)] + [
                (compute.attached, instance.id, compute.id)
                for instance in target.gpu.instances
                for compute in instance.computes
            ]
        return [
            {
                "pid": process if isinstance(process, int) else _pid(process),
                "usedGpuMemory": _MIB,
                "gpuInstanceId": instance,
                "computeInstanceId": compute,
            }
            for attached, instance, compute in holders
            for process in sorted(attached, key=str)
        ]

    def _handle(
        self,
        gpu: FakeGpu,
        instance: FakeGpuInstance | None = None,
        compute: FakeComputeInstance | None = None,
    ) -> int:
        self._targets.append(_Target(self._epoch, gpu, instance, compute))
        return len(self._targets)

    def _resolve(self, handle: int) -> _Target:
        """Return the object of a handle; numbers begin at 1, since 0 is no handle."""
        if not 0 < handle <= len(self._targets):
            raise RefusedError(Code.INVALID_ARGUMENT)
        target = self._targets[handle - 1]
        if target.epoch != self._driver.epoch:
            raise RefusedError(Code.INVALID_ARGUMENT)
        if target.gpu.lost:
            raise RefusedError(Code.GPU_IS_LOST)
        if target.instance and not any(
            target.instance is existing for existing in target.gpu.instances
        ):
            raise RefusedError(Code.NOT_FOUND)
        computes = target.instance.computes if target.instance else []
        if target.compute and not any(target.compute is existing for existing in computes):
            raise RefusedError(Code.NOT_FOUND)
        return target

    def _gpu(self, handle: int) -> FakeGpu:
        target = self._resolve(handle)
        if target.instance is not None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return target.gpu

    def _instance(self, handle: int) -> tuple[FakeGpu, FakeGpuInstance]:
        target = self._resolve(handle)
        if target.instance is None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return target.gpu, target.instance

    def _compute(self, handle: int) -> tuple[FakeGpu, FakeGpuInstance, FakeComputeInstance]:
        target = self._resolve(handle)
        if target.instance is None or target.compute is None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return target.gpu, target.instance, target.compute

    @staticmethod
    def _kind(gpu: FakeGpu, profile: int) -> FakeGpuProfile:
        kind = gpu.model.by_id(profile)
        if kind is None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return kind


def _pid(name: str) -> int:
    """A number for a process that was only named; always the same."""
    return 1000 + sum(name.encode()) % 30000
