"""One process's session with the driver, in plain values: handles are numbers.

Method names are those of NVML's C functions without their versions. A handle of something that is
gone answers NOT_FOUND, and one from before a reset or `Silicon.stale` answers INVALID_ARGUMENT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakegpu.profiles import Profile
from fakegpu.silicon import Code, Compute, Gpu, Instance, RefusedError, Silicon

Plain = int | str | None | list["Plain"] | dict[str, "Plain"]

# NVML's constants of compute profiles -> slices; here their ids are the constants.
_COMPUTE_SLICES = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7}
_MIB = 1 << 20
_ALREADY_WORKING = ("nvmlDeviceCreate", "nvmlDeviceSetMigMode", "nvmlGpuInstanceCreate")


@dataclass(frozen=True, slots=True)
class _Thing:
    """What a handle stands for."""

    epoch: int
    gpu: Gpu
    instance: Instance | None = None
    compute: Compute | None = None


class Session:
    """Any number may share a `Silicon`."""

    def __init__(self, silicon: Silicon) -> None:
        self._silicon = silicon
        self._things: list[_Thing] = []
        self._begun = 0
        self._epoch = 0

    def call(self, name: str, *arguments: Any) -> Plain:
        """One function by its name in C; RefusedError is its error code."""
        found: Callable[..., Plain] | None = getattr(self, name, None)
        if found is None or not name.startswith("nvml"):
            raise RefusedError(Code.NOT_SUPPORTED)
        if not self._begun and name != "nvmlInitWithFlags":
            raise RefusedError(Code.UNINITIALIZED)
        if name.startswith(_ALREADY_WORKING) or name.endswith("Destroy"):
            return found(*arguments)
        with self._silicon.call(name):
            return found(*arguments)

    def nvmlInitWithFlags(self, _flags: int) -> Plain:
        self._begun += 1
        self._epoch = self._silicon.epoch
        return None

    def nvmlShutdown(self) -> Plain:
        self._begun -= 1
        return None

    def nvmlSystemGetDriverVersion(self) -> Plain:
        return self._silicon.driver

    def nvmlDeviceGetCount(self) -> Plain:
        return len(self._silicon.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Plain:
        if not 0 <= index < len(self._silicon.gpus):
            raise RefusedError(Code.INVALID_ARGUMENT)
        return self._handle(self._silicon.gpus[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Plain:
        for gpu in self._silicon.gpus:
            if gpu.uuid == uuid:
                return self._handle(gpu)
            for instance in gpu.instances:
                for compute in instance.computes:
                    if compute.uuid == uuid:
                        return self._handle(gpu, instance, compute)
        raise RefusedError(Code.NOT_FOUND)

    def nvmlDeviceGetUUID(self, device: int) -> Plain:
        found = self._thing(device)
        return found.compute.uuid if found.compute else found.gpu.uuid

    def nvmlDeviceGetName(self, device: int) -> Plain:
        found = self._thing(device)
        name = found.gpu.model.name
        return f"{name} MIG {found.instance.profile}" if found.instance else name

    def nvmlDeviceGetIndex(self, device: int) -> Plain:
        return self._gpu(device).index

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Plain:
        found = self._thing(device)
        mib = found.instance.kind.memory_mib if found.instance else found.gpu.model.memory_mib
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
        return self._silicon.set_mode(gpu.index, enabled=bool(mode))

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
        return min(len(self._silicon.free(gpu.index, kind)), 1 if kind.media else 8)

    def nvmlDeviceCreateGpuInstance(self, device: int, profile: int) -> Plain:
        gpu = self._gpu(device)
        return self._handle(gpu, self._silicon.create_gpu_instance(gpu.index, profile))

    def nvmlDeviceCreateGpuInstanceWithPlacement(
        self, device: int, profile: int, start: int, size: int
    ) -> Plain:
        gpu = self._gpu(device)
        if size != self._kind(gpu, profile).memory_slices:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return self._handle(gpu, self._silicon.create_gpu_instance(gpu.index, profile, start))

    def nvmlGpuInstanceDestroy(self, instance: int) -> Plain:
        gpu, found = self._instance(instance)
        self._silicon.destroy_gpu_instance(gpu.index, found.id)
        return None

    def nvmlDeviceGetGpuInstances(self, device: int, profile: int) -> Plain:
        gpu = self._gpu(device)
        if not gpu.mig:
            raise RefusedError(Code.NOT_SUPPORTED)
        kind = self._kind(gpu, profile)
        return [self._handle(gpu, one) for one in gpu.instances if one.kind is kind]

    def nvmlDeviceGetGpuInstanceById(self, device: int, instance: int) -> Plain:
        gpu = self._gpu(device)
        return self._handle(gpu, self._silicon.instance(gpu.index, instance))

    def nvmlGpuInstanceGetInfo(self, instance: int) -> Plain:
        gpu, found = self._instance(instance)
        return {
            "device": self._handle(gpu),
            "id": found.id,
            "profileId": found.kind.id,
            "placement": [found.start, found.kind.memory_slices],
        }

    def nvmlGpuInstanceGetComputeInstanceProfileInfo(
        self, instance: int, constant: int, _engine: int
    ) -> Plain:
        _, found = self._instance(instance)
        slices = _COMPUTE_SLICES.get(constant, 0)
        if not 0 < slices <= found.kind.compute_slices:
            raise RefusedError(Code.NOT_SUPPORTED)
        count = found.kind.compute_slices // slices
        return {"id": constant, "sliceCount": slices, "instanceCount": count}

    def nvmlGpuInstanceCreateComputeInstance(self, instance: int, profile: int) -> Plain:
        gpu, found = self._instance(instance)
        slices = _COMPUTE_SLICES.get(profile, 0)
        if not 0 < slices <= found.kind.compute_slices:
            raise RefusedError(Code.INVALID_ARGUMENT)
        made = self._silicon.create_compute_instance(gpu.index, found.id, slices)
        return self._handle(gpu, found, made)

    def nvmlComputeInstanceDestroy(self, compute: int) -> Plain:
        gpu, instance, found = self._compute(compute)
        self._silicon.destroy_compute_instance(gpu.index, instance.id, found.id)
        return None

    def nvmlGpuInstanceGetComputeInstances(self, instance: int, profile: int) -> Plain:
        gpu, found = self._instance(instance)
        slices = _COMPUTE_SLICES.get(profile)
        return [self._handle(gpu, found, one) for one in found.computes if one.slices == slices]

    def nvmlComputeInstanceGetInfo(self, compute: int) -> Plain:
        gpu, instance, found = self._compute(compute)
        constant = next(one for one, slices in _COMPUTE_SLICES.items() if slices == found.slices)
        return {
            "device": self._handle(gpu, instance, found),
            "gpuInstance": self._handle(gpu, instance),
            "id": found.id,
            "profileId": constant,
            "placement": [0, found.slices],
        }

    def nvmlDeviceIsMigDeviceHandle(self, device: int) -> Plain:
        return int(self._thing(device).compute is not None)

    def nvmlDeviceGetGpuInstanceId(self, device: int) -> Plain:
        return self._compute(device)[1].id

    def nvmlDeviceGetComputeInstanceId(self, device: int) -> Plain:
        return self._compute(device)[2].id

    def nvmlDeviceGetMaxMigDeviceCount(self, device: int) -> Plain:
        return self._gpu(device).model.compute_slices

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: int, index: int) -> Plain:
        """Numbered without gaps here; half made instances have none."""
        gpu = self._gpu(device)
        found = [(one, compute) for one in gpu.instances for compute in one.computes]
        if index >= len(found):
            raise RefusedError(Code.NOT_FOUND)
        return self._handle(gpu, *found[index])

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: int) -> Plain:
        return self._handle(self._compute(device)[0])

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> Plain:
        """Of a MIG device its own; of a GPU all, those on its instances among them."""
        found = self._thing(device)
        if found.instance and found.compute:
            seats = [(found.compute.attached, found.instance.id, found.compute.id)]
        else:
            none = (1 << 32) - 1
            seats = [(found.gpu.attached, none, none)] + [
                (compute.attached, one.id, compute.id)
                for one in found.gpu.instances
                for compute in one.computes
            ]
        return [
            {
                "pid": process if isinstance(process, int) else _pid(process),
                "usedGpuMemory": _MIB,
                "gpuInstanceId": instance,
                "computeInstanceId": compute,
            }
            for attached, instance, compute in seats
            for process in sorted(attached, key=str)
        ]

    def _handle(
        self, gpu: Gpu, instance: Instance | None = None, compute: Compute | None = None
    ) -> int:
        self._things.append(_Thing(self._epoch, gpu, instance, compute))
        return len(self._things)

    def _thing(self, handle: int) -> _Thing:
        """Numbers begin at 1, since a handle of 0 is none."""
        if not 0 < handle <= len(self._things):
            raise RefusedError(Code.INVALID_ARGUMENT)
        found = self._things[handle - 1]
        if found.epoch != self._silicon.epoch:
            raise RefusedError(Code.INVALID_ARGUMENT)
        if found.instance and not any(found.instance is one for one in found.gpu.instances):
            raise RefusedError(Code.NOT_FOUND)
        computes = found.instance.computes if found.instance else []
        if found.compute and not any(found.compute is one for one in computes):
            raise RefusedError(Code.NOT_FOUND)
        return found

    def _gpu(self, handle: int) -> Gpu:
        found = self._thing(handle)
        if found.instance is not None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return found.gpu

    def _instance(self, handle: int) -> tuple[Gpu, Instance]:
        found = self._thing(handle)
        if found.instance is None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return found.gpu, found.instance

    def _compute(self, handle: int) -> tuple[Gpu, Instance, Compute]:
        found = self._thing(handle)
        if found.instance is None or found.compute is None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return found.gpu, found.instance, found.compute

    @staticmethod
    def _kind(gpu: Gpu, profile: int) -> Profile:
        found = gpu.model.by_id(profile)
        if found is None:
            raise RefusedError(Code.INVALID_ARGUMENT)
        return found


def _pid(name: str) -> int:
    """A number for a process that was only named; always the same."""
    return 1000 + sum(name.encode()) % 30000
