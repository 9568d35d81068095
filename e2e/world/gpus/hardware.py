"""The GPUs of one node: their slices, and the processes on them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fakegpu.gpu_driver import FakeGpu, FakeGpuInstance, GpuDriver, RefusedError
from tessera.domain.hardware.gpu_catalog import Product
from world.fleet import GpuLayout as Layout
from world.fleet import Node
from world.gpus.power import WATTS, EnergyCounters, power, utilizations
from world.kubelet.devices import Device
from world.mig import PlacedSlice, SliceSize

FIRST_PROCESS = 10_000


class DeviceNotFoundError(OSError):
    """A container was given a device that its driver no longer knows."""


@dataclass(slots=True)
class Hardware:
    """The GPUs of one node."""

    node: Node
    gpu_driver: GpuDriver | None
    """None without GPUs."""
    energy: EnergyCounters = field(default_factory=EnergyCounters)
    _processes: Iterator[int] = field(default_factory=lambda: itertools.count(FIRST_PROCESS))

    def devices(self) -> tuple[Device, ...]:
        """What a container could be given, by GPU and start; a GPU in MIG mode only by slices."""
        product = self.node.product
        if product is None or self.gpu_driver is None:
            return ()
        devices: list[Device] = []
        for gpu in self.gpu_driver.gpus:
            if gpu.mig:
                devices += [
                    self._slice(product, gpu, instance)
                    for instance in gpu.instances
                    if instance.uuid
                ]
            else:
                devices.append(self._whole(product, gpu))
        return tuple(devices)

    def healthy(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        """Those of them whose GPU is not lost."""
        gpus = self.gpu_driver.gpus if self.gpu_driver is not None else ()
        lost = {gpu.index for gpu in gpus if gpu.lost}
        return tuple(device for device in devices if device.gpu not in lost)

    def count_energy(self, busy_devices: Iterable[tuple[Device, float]], now: float) -> None:
        """Let the GPUs count what they drew since the last time, by the activity of devices."""
        product = self.node.product
        if product is None or product.product not in WATTS or self.gpu_driver is None:
            return
        busy = utilizations(busy_devices)
        # A GPU in MIG mode without a slice has no device, and draws what an idle one does.
        watts = {
            gpu.uuid: power(product.product, busy.get(gpu.uuid, 0.0))
            for gpu in self.gpu_driver.gpus
        }
        self.energy.advance(watts, now)

    def layouts(self) -> tuple[Layout, ...]:
        """The same in the form of a fleet file."""
        if self.gpu_driver is None:
            return self.node.gpus
        slices: dict[int, list[PlacedSlice]] = {
            gpu.index: [] for gpu in self.gpu_driver.gpus if gpu.mig
        }
        for device in self.devices():
            if device.placed is not None:
                slices[device.gpu].append(device.placed)
        return tuple(tuple(slices[gpu.index]) if gpu.mig else None for gpu in self.gpu_driver.gpus)

    def begin(self, devices: Sequence[Device]) -> int:
        """A new process computes on them; its number."""
        process = next(self._processes)
        for device in devices:
            try:
                if self.gpu_driver is not None:
                    self.gpu_driver.attach(device.id, process)
            except RefusedError:
                self.end(devices, process)
                raise DeviceNotFoundError(
                    "failed to create containerd task: nvidia-container-cli: device error: "
                    f"{device.id}: unknown device"
                ) from None
        return process

    def end(self, devices: Sequence[Device], process: int) -> None:
        """The process is gone, and perhaps a device of it before."""
        for device in devices:
            if self.gpu_driver is not None:
                self.gpu_driver.detach(device.id, process)

    def _whole(self, product: Product, gpu: FakeGpu) -> Device:
        return Device(
            id=gpu.uuid,
            node=self.node.name,
            gpu=gpu.index,
            gpu_uuid=gpu.uuid,
            product=product.product,
            placed=None,
            memory_mib=product.memory_mib,
        )

    def _slice(self, product: Product, gpu: FakeGpu, instance: FakeGpuInstance) -> Device:
        kind = instance.kind
        mig_profile = SliceSize(
            compute_slices=kind.compute_slices,
            memory_slices=kind.memory_slices,
            multiprocessors=kind.multiprocessors,
            memory_mib=kind.memory_mib,
        )
        return Device(
            id=instance.uuid,
            node=self.node.name,
            gpu=gpu.index,
            gpu_uuid=gpu.uuid,
            product=product.product,
            placed=PlacedSlice(instance.profile, mig_profile, instance.start),
            memory_mib=kind.memory_mib,
        )


def hardware(node: Node) -> Hardware:
    """Create the GPUs of the fleet file: those with a list of slices are in MIG mode."""
    if node.product is None or not node.gpus:
        return Hardware(node, None)
    gpu_driver = GpuDriver(
        node.product.product,
        len(node.gpus),
        node=node.name,
        mig=[gpu is not None for gpu in node.gpus],
        layouts=[[(placed.profile, placed.start) for placed in gpu or ()] for gpu in node.gpus],
    )
    return Hardware(node, gpu_driver)
