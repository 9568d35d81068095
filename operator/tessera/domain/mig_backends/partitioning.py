"""The operations of a node agent that bring a GPU to its desired layout.

Only idle instances are destroyed and matching ones are not touched. Planning again after some of
the operations gives the remaining ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tessera.api.node_layout import DesiredGpu, GpuFault, MigMode, ObservedGpu, ObservedSlice
from tessera.api.text import counted
from tessera.domain.hardware.gpu_layouts import SlicePlacement, format_placement, layout_error
from tessera.domain.hardware.gpu_models import GpuModel

# namespace/name of the pods that use a device, by the device's UUID.
PodsByDevice: TypeAlias = Mapping[str, tuple[str, ...]]

# Pods of one device that the status and messages list.
_MAX_PODS_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverInstance:
    """A GPU instance as the driver reports it."""

    placement: SlicePlacement
    uuid: str = ""
    """UUID of the MIG device that fills it; empty while it has no such compute instance."""
    partial_devices: tuple[str, ...] = ()
    """UUIDs of MIG devices that fill a part of it; Tessera creates none."""
    memory_mib: int = 0
    processes: int = 0

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.uuid, *self.partial_devices) if self.uuid else self.partial_devices


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverGpu:
    """A GPU as the driver reports it."""

    index: int
    uuid: str
    product: str
    """Product name with dashes instead of blanks."""
    memory_mib: int
    mode: MigMode
    gpu_model: GpuModel | None = None
    """Its MIG geometry; only read in MIG mode."""
    instances: tuple[DriverInstance, ...] = ()
    """GPU instances by start."""
    read_error: str | None = None
    """Why its instances are unknown; None if they are known."""


@dataclass(frozen=True, slots=True)
class GpuInventory:
    """The GPUs of a node and the version of their driver."""

    driver: str
    gpus: tuple[DriverGpu, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceOperation:
    """The destruction of a GPU instance, or the creation or completion of one."""

    action: Literal["create", "destroy"]
    placement: SlicePlacement

    def describe(self) -> str:
        return f"{self.action} {format_placement(self.placement)}"


@dataclass(frozen=True, slots=True)
class GpuProblem:
    """Why a GPU does not have its desired layout, and what to do."""

    fault: GpuFault
    message: str


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """The operations that are possible now, in this order, and what blocks the others."""

    operations: tuple[InstanceOperation, ...] = ()
    problem: GpuProblem | None = None


def plan_partitioning(
    gpu: DriverGpu, wanted: DesiredGpu, pods_by_device: PodsByDevice
) -> PartitionPlan:
    """Plan the operations from the observed to the desired layout around instances in use."""
    if problem := blocking_problem(gpu, wanted):
        return PartitionPlan(problem=problem)
    gpu_model = gpu.gpu_model
    if gpu_model is None:
        return PartitionPlan()
    target = {_canonical_placement(gpu_model, placement) for placement in _wanted_layout(wanted)}
    existing = {
        _canonical_placement(gpu_model, instance.placement): instance for instance in gpu.instances
    }
    removable = [
        instance
        for placement, instance in existing.items()
        # An instance that other software divided into smaller devices is created again.
        if placement not in target or instance.partial_devices
    ]
    in_use = [
        instance
        for instance in removable
        if _pods_using(gpu, instance, pods_by_device) or instance.processes
    ]
    operations = [
        InstanceOperation("destroy", instance.placement)
        for instance in removable
        if instance not in in_use
    ]
    missing = sorted(
        placement
        for placement in target
        if placement not in existing or not existing[placement].uuid
    )
    in_use_placements = tuple(instance.placement for instance in in_use)
    operations += [
        InstanceOperation("create", placement)
        for placement in missing
        if placement not in in_use_placements
        and layout_error(gpu_model, (*in_use_placements, placement)) is None
    ]
    return PartitionPlan(tuple(operations), _in_use_problem(gpu, in_use, pods_by_device))


def blocking_problem(gpu: DriverGpu, wanted: DesiredGpu) -> GpuProblem | None:
    """Return why no operation on the GPU is possible; None if some may be."""
    if gpu.mode in ("Enabling", "Disabling"):
        return GpuProblem(
            "ResetRequired",
            f"MIG mode is {gpu.mode} until the GPU is reset: drain the GPU, then run nvidia-smi "
            f"--gpu-reset -i {gpu.index} on the node, or reboot the node",
        )
    if gpu.read_error is not None:
        return GpuProblem("QueryFailed", gpu.read_error)
    if gpu.mode != "Enabled" or gpu.gpu_model is None:
        if not wanted.slices:
            return None
        return GpuProblem(
            "PartitionFailed",
            f"MIG mode is {gpu.mode}, and Tessera never changes it: run nvidia-smi -i {gpu.index} "
            "-mig 1 on the node",
        )
    layout = _wanted_layout(wanted)
    for placement in layout:
        if gpu.gpu_model.find_profile(placement.profile) is None:
            known = ", ".join(gi_profile.name for gi_profile in gpu.gpu_model.profiles)
            message = f"{gpu.product} has no profile {placement.profile}; supported: {known}"
            return GpuProblem("UnknownProfile", message)
    error = layout_error(gpu.gpu_model, layout)
    message = f"the layout is not possible: {error}"
    return GpuProblem("PartitionFailed", message) if error else None


def _wanted_layout(wanted: DesiredGpu) -> list[SlicePlacement]:
    return [SlicePlacement(requested.start, requested.profile) for requested in wanted.slices]


def gpu_status(
    gpu: DriverGpu, pods_by_device: PodsByDevice, problem: GpuProblem | None = None
) -> ObservedGpu:
    """Return the GPU's entry in the status of the NodeLayout."""
    if problem is None:
        problem = blocking_problem(gpu, DesiredGpu(uuid=gpu.uuid))
    return ObservedGpu(
        index=gpu.index,
        uuid=gpu.uuid,
        product=gpu.product,
        memory_mib=gpu.memory_mib,
        mode=gpu.mode,
        slices=tuple(
            ObservedSlice(
                profile=instance.placement.profile,
                start=instance.placement.start,
                uuid=instance.uuid,
                memory_mib=instance.memory_mib,
                pods=tuple(sorted(set(_pods_on_instance(instance, pods_by_device))))[
                    :_MAX_PODS_SHOWN
                ],
                processes=instance.processes,
            )
            for instance in gpu.instances
        ),
        pods=pods_by_device.get(gpu.uuid, ())[:_MAX_PODS_SHOWN],
        fault=problem.fault if problem else None,
        # The CRD limits messages to 500 characters.
        message=problem.message[:500] if problem else "",
    )


def _canonical_placement(gpu_model: GpuModel, placement: SlicePlacement) -> SlicePlacement:
    """Return the placement with the GPU model's own name of the profile."""
    gi_profile = gpu_model.find_profile(placement.profile)
    return placement if gi_profile is None else SlicePlacement(placement.start, gi_profile.name)


def _pods_on_instance(instance: DriverInstance, pods_by_device: PodsByDevice) -> Iterator[str]:
    for device in instance.devices:
        yield from pods_by_device.get(device, ())


def _pods_using(
    gpu: DriverGpu, instance: DriverInstance, pods_by_device: PodsByDevice
) -> list[str]:
    return sorted({*_pods_on_instance(instance, pods_by_device), *pods_by_device.get(gpu.uuid, ())})


def _in_use_problem(
    gpu: DriverGpu, instances_in_use: list[DriverInstance], pods_by_device: PodsByDevice
) -> GpuProblem | None:
    if not instances_in_use:
        return None
    reasons = []
    for instance in instances_in_use:
        pods = _pods_using(gpu, instance, pods_by_device)
        processes = counted(instance.processes, "process", "processes")
        users = ", ".join(pods[:_MAX_PODS_SHOWN]) if pods else f"{processes} outside of pods"
        reasons.append(f"{format_placement(instance.placement)} is in use by {users}")
    message = f"{'; '.join(reasons)}. A GPU instance is destroyed as soon as it is idle."
    return GpuProblem("InUse", message)
