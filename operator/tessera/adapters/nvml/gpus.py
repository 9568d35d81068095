"""The GPUs of this node through NVML: their GPU instances and processes, and partitioning."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from ctypes import byref, c_uint
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, TypeVar

import pynvml

from tessera.adapters.nvml.profiles import NvmlProfile, build_gpu_model, error_name, read_profiles
from tessera.api.node_layout import GpuFault, MigMode
from tessera.api.text import counted
from tessera.domain.hardware.gpu_layouts import SlicePlacement, format_placement
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.mig_backends.partitioning import DriverGpu, DriverInstance, GpuInventory
from tessera.ports import GpuError

_MIB = 1 << 20
_FAULTS: dict[str, GpuFault] = {
    "IN_USE": "InUse",
    "RESET_REQUIRED": "ResetRequired",
    "GPU_IS_LOST": "ResetRequired",
    "NOT_SUPPORTED": "PartitionFailed",
    "INSUFFICIENT_RESOURCES": "PartitionFailed",
    "INVALID_ARGUMENT": "PartitionFailed",
    "NO_PERMISSION": "PartitionFailed",
}
_ADVICE = {
    "IN_USE": "no process is visible, so monitoring may use it: restart DCGM and dcgm-exporter",
    "RESET_REQUIRED": "drain the GPU and reset it, or reboot the node",
    "GPU_IS_LOST": "reset the GPU, or reboot the node",
    "NO_PERMISSION": "the agent has to run as root, and privileged to partition GPUs",
    "LIBRARY_NOT_FOUND": "libnvidia-ml is not in this container: see the chart value "
    "node.runtimeClassName",
    "DRIVER_NOT_LOADED": "the driver is not loaded on this node",
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _GpuProperties:
    """The properties of a GPU that stay the same while NVML is initialized."""

    product: str
    memory_mib: int
    profiles: tuple[NvmlProfile, ...] = ()
    gpu_model: GpuModel | None = None

    def profile_of(self, placement: SlicePlacement) -> NvmlProfile:
        gi_profile = self.gpu_model.find_profile(placement.profile) if self.gpu_model else None
        matches = (
            candidate
            for candidate in self.profiles
            if gi_profile and candidate.constant == gi_profile.constant
        )
        if profile := next(matches, None):
            return profile
        known = ", ".join(supported.name for supported in self.profiles)
        message = f"{self.product} has no profile {placement.profile}; supported: {known}"
        raise GpuError("UnknownProfile", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _InstanceTarget:
    """The GPU and profile of a placement, and the GPU instance there if one exists."""

    handle: Any
    properties: _GpuProperties
    profile: NvmlProfile
    instance: Any | None = None


class NvmlGpus:
    """`Gpus` over NVML, called in threads, one call at a time."""

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._initialized = False
        self._properties_by_uuid: dict[str, _GpuProperties] = {}
        # Compute instance profiles by product and profile of the GPU instance.
        self._compute_profile_cache: dict[tuple[str, str], tuple[Any, ...]] = {}

    async def read(self, gpu: str | None = None) -> GpuInventory:
        action = f"read {gpu or 'the GPUs'}"
        return await asyncio.to_thread(
            self._call_locked, lambda: self._read_inventory(gpu), action, attempts=2
        )

    async def create(self, gpu: str, placement: SlicePlacement) -> None:
        action = f"create {format_placement(placement)}"
        await asyncio.to_thread(self._call_locked, lambda: self._create(gpu, placement), action)

    async def destroy(self, gpu: str, placement: SlicePlacement) -> None:
        action = f"destroy {format_placement(placement)}"
        await asyncio.to_thread(self._call_locked, lambda: self._destroy(gpu, placement), action)

    def _call_locked(self, work: Callable[[], T], action: str, attempts: int = 1) -> T:
        with self._lock:
            for _ in range(attempts - 1):
                with contextlib.suppress(self._nvml.NVMLError):
                    return self._call_once(work)
            try:
                return self._call_once(work)
            except self._nvml.NVMLError as error:
                raise self._gpu_error(error, action) from error

    def _call_once(self, work: Callable[[], T]) -> T:
        try:
            if not self._initialized:
                self._nvml.nvmlInit()
                self._initialized = True
            return work()
        except self._nvml.NVMLError:
            # NVML is initialized again by the next call, since handles may have become stale.
            self._shut_down()
            raise

    def _shut_down(self) -> None:
        self._properties_by_uuid.clear()
        self._compute_profile_cache.clear()
        if self._initialized:
            self._initialized = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _gpu_error(self, error: Exception, action: str) -> GpuError:
        code_name = error_name(self._nvml, error)
        advice = f"; {_ADVICE[code_name]}" if code_name in _ADVICE else ""
        fault = _FAULTS.get(code_name, "QueryFailed")
        return GpuError(fault, f"{action}: NVML error {code_name}{advice}")

    def _read_inventory(self, gpu: str | None) -> GpuInventory:
        driver = self._nvml.nvmlSystemGetDriverVersion()
        if gpu is not None:
            handles = [self._nvml.nvmlDeviceGetHandleByUUID(gpu)]
        else:
            count = self._nvml.nvmlDeviceGetCount()
            handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        gpus = tuple(self._read_gpu(handle) for handle in handles)
        if any(inventory_gpu.read_error for inventory_gpu in gpus):
            self._shut_down()
        return GpuInventory(driver, gpus)

    def _read_gpu(self, handle: Any) -> DriverGpu:
        index = self._nvml.nvmlDeviceGetIndex(handle)
        mode = _mig_mode(self._nvml, handle)
        partitionable = mode in ("Enabled", "Disabling")
        uuid = self._nvml.nvmlDeviceGetUUID(handle)
        properties = self._gpu_properties(handle, uuid, partitionable=partitionable)
        gpu = DriverGpu(
            index=index,
            uuid=uuid,
            product=properties.product,
            memory_mib=properties.memory_mib,
            mode=mode,
            gpu_model=properties.gpu_model,
        )
        if not partitionable:
            return gpu
        try:
            instances = sorted(
                self._read_instances(handle, properties), key=attrgetter("placement")
            )
        except self._nvml.NVMLError as error:
            # One unreadable GPU does not hide the others.
            gpu_error = self._gpu_error(error, f"read the GPU instances of GPU {index}")
            return replace(gpu, read_error=str(gpu_error))
        return replace(gpu, instances=tuple(instances))

    def _gpu_properties(self, handle: Any, uuid: str, *, partitionable: bool) -> _GpuProperties:
        properties = self._properties_by_uuid.get(uuid)
        if properties is None:
            name = self._nvml.nvmlDeviceGetName(handle)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle).total
            properties = _GpuProperties(product=name.replace(" ", "-"), memory_mib=memory // _MIB)
        if partitionable and properties.gpu_model is None:
            profiles = read_profiles(self._nvml, handle, properties.product, properties.memory_mib)
            gpu_model = build_gpu_model(properties.product, profiles)
            properties = replace(properties, profiles=profiles, gpu_model=gpu_model)
        self._properties_by_uuid[uuid] = properties
        return properties

    def _read_instances(self, handle: Any, properties: _GpuProperties) -> Iterator[DriverInstance]:
        for profile in properties.profiles:
            for instance in self._instances_of_profile(handle, profile):
                start = self._nvml.nvmlGpuInstanceGetInfo(instance).placement.start
                yield self._read_instance(instance, properties, profile, start)

    def _read_instance(
        self, instance: Any, properties: _GpuProperties, profile: NvmlProfile, start: int
    ) -> DriverInstance:
        full_device, partial_devices, processes = "", [], 0
        for slices, compute_instance in self._compute_instances(instance, properties, profile):
            device = self._nvml.nvmlComputeInstanceGetInfo(compute_instance).device
            uuid = self._nvml.nvmlDeviceGetUUID(device)
            processes += len(self._nvml.nvmlDeviceGetComputeRunningProcesses(device))
            if slices == profile.compute_slices:
                full_device = uuid
            else:
                partial_devices.append(uuid)
        return DriverInstance(
            placement=SlicePlacement(start, profile.name),
            uuid=full_device,
            partial_devices=tuple(sorted(partial_devices)),
            memory_mib=profile.memory_mib or 0,
            processes=processes,
        )

    def _instances_of_profile(self, handle: Any, profile: NvmlProfile) -> list[Any]:
        handles, count = (self._nvml.c_nvmlGpuInstance_t * profile.max_instances)(), c_uint(0)
        self._nvml.nvmlDeviceGetGpuInstances(handle, profile.id, handles, byref(count))
        return list(handles[: count.value])

    def _compute_instances(
        self, instance: Any, properties: _GpuProperties, profile: NvmlProfile
    ) -> Iterator[tuple[int, Any]]:
        """Yield the compute instances of a GPU instance, each with its number of slices."""
        for info in self._compute_profiles(instance, properties, profile):
            handles = (self._nvml.c_nvmlComputeInstance_t * info.instanceCount)()
            count = c_uint(0)
            self._nvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, handles, byref(count))
            for compute_instance in handles[: count.value]:
                yield info.sliceCount, compute_instance

    def _compute_profiles(
        self, instance: Any, properties: _GpuProperties, profile: NvmlProfile
    ) -> tuple[Any, ...]:
        key = (properties.product, profile.constant)
        if key not in self._compute_profile_cache:
            self._compute_profile_cache[key] = tuple(self._read_compute_profiles(instance))
        return self._compute_profile_cache[key]

    def _read_compute_profiles(self, instance: Any) -> Iterator[Any]:
        shared = self._nvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
        for number in range(self._nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            try:
                yield self._nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    instance, number, shared
                )
            except self._nvml.NVMLError as error:
                if error_name(self._nvml, error) not in ("NOT_SUPPORTED", "INVALID_ARGUMENT"):
                    raise

    def _find_target(self, gpu: str, placement: SlicePlacement) -> "_InstanceTarget":
        handle = self._nvml.nvmlDeviceGetHandleByUUID(gpu)
        properties = self._gpu_properties(handle, gpu, partitionable=True)
        profile = properties.profile_of(placement)
        instances = (
            instance
            for instance in self._instances_of_profile(handle, profile)
            if self._nvml.nvmlGpuInstanceGetInfo(instance).placement.start == placement.start
        )
        return _InstanceTarget(
            handle=handle, properties=properties, profile=profile, instance=next(instances, None)
        )

    def _create(self, gpu: str, placement: SlicePlacement) -> None:
        target = self._find_target(gpu, placement)
        instance = target.instance
        if instance is None:
            nvml_placement = self._nvml.c_nvmlGpuInstancePlacement_t(
                start=placement.start, size=target.profile.memory_slices
            )
            instance = self._nvml.nvmlDeviceCreateGpuInstanceWithPlacement(
                target.handle, target.profile.id, byref(nvml_placement)
            )
        elif any(
            slices == target.profile.compute_slices
            for slices, _ in self._compute_instances(instance, target.properties, target.profile)
        ):
            return
        try:
            compute_profiles = self._compute_profiles(instance, target.properties, target.profile)
            profile_id = next(
                (
                    info.id
                    for info in compute_profiles
                    if info.sliceCount == target.profile.compute_slices
                ),
                None,
            )
            if profile_id is None:
                raise GpuError(
                    "PartitionFailed",
                    f"the driver has no compute instance profile that fills "
                    f"{format_placement(placement)}",
                )
            self._nvml.nvmlGpuInstanceCreateComputeInstance(instance, profile_id)
        except self._nvml.NVMLError:
            # A GPU instance without a compute instance is of no use and takes memory slices.
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlGpuInstanceDestroy(instance)
            raise

    def _destroy(self, gpu: str, placement: SlicePlacement) -> None:
        target = self._find_target(gpu, placement)
        if target.instance is None:
            return
        compute_instances = list(
            self._compute_instances(target.instance, target.properties, target.profile)
        )
        for _, compute_instance in compute_instances:
            device = self._nvml.nvmlComputeInstanceGetInfo(compute_instance).device
            if process_count := len(self._nvml.nvmlDeviceGetComputeRunningProcesses(device)):
                processes = counted(process_count, "process", "processes")
                raise GpuError("InUse", f"{format_placement(placement)} is in use by {processes}")
        for _, compute_instance in compute_instances:
            self._nvml.nvmlComputeInstanceDestroy(compute_instance)
        self._nvml.nvmlGpuInstanceDestroy(target.instance)


def _mig_mode(nvml: Any, handle: Any) -> MigMode:
    try:
        current, pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError as error:
        if error_name(nvml, error) != "NOT_SUPPORTED":
            raise
        return "Unsupported"
    if current != pending:
        return "Enabling" if pending else "Disabling"
    return "Enabled" if current else "Disabled"
