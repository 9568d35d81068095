"""Which pod holds which GPU or slice of a node: the kubelet's side of device plugins."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from world.api import Json
from world.kubelet.quantities import number
from world.mig import PlacedSlice

PREFIX = "nvidia.com/"


class NoDeviceError(Exception):
    """A pod asks for more than is free; the text is the one that kubelets give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One whole GPU, or one MIG slice."""

    id: str
    """The identity under which the device plugin offers it."""
    node: str
    gpu: int
    gpu_uuid: str
    product: str
    placed: PlacedSlice | None
    memory_mib: int

    @property
    def resource(self) -> str:
        return f"{PREFIX}gpu" if self.placed is None else self.placed.resource

    @property
    def kind(self) -> str:
        """The device as the simulator is given it: product, and profile of a slice."""
        return self.product if self.placed is None else f"{self.product}/{self.placed.profile}"


@dataclass(frozen=True, slots=True)
class Holder:
    """The container that a device is given to."""

    uid: str
    namespace: str
    pod: str
    container: str


HeldDevice = tuple[Device, Holder]


@dataclass(slots=True)
class Devices:
    """What is offered on one node; a container keeps its own through restarts and offers."""

    _offered: dict[str, tuple[Device, ...]] = field(default_factory=dict)
    """By resource; empty for one that was offered before."""
    _counted: dict[str, int] = field(default_factory=dict)
    _held_devices: dict[str, HeldDevice] = field(default_factory=dict)

    def offer(self, devices: Iterable[Device]) -> bool:
        """All that there is from now on; no device at all means that the plugin is away.

        Whether this changes the node. A resource that was offered once stays known.
        """
        before = self.capacity(), self.allocatable()
        offered = dict.fromkeys(self._offered, ()) | _by_resource(devices)
        self._offered = offered
        self._counted |= {resource: len(some) for resource, some in offered.items() if some}
        return before != (self.capacity(), self.allocatable())

    def capacity(self) -> dict[str, int]:
        """What was offered last, also while the plugin is away."""
        return dict(sorted(self._counted.items()))

    def allocatable(self) -> dict[str, int]:
        return {resource: len(some) for resource, some in sorted(self._offered.items())}

    def admit(self, pod: Json) -> None:
        """Give a pod all that it asks for, or raise `NoDeviceError` and give nothing."""
        granted: dict[str, HeldDevice] = {}
        for container in pod["spec"]["containers"] + _sidecars(pod):
            holder = _holder(pod, container["name"])
            for resource, count in _wanted(container):
                free = self._free(resource, count, granted)
                granted |= {device.id: (device, holder) for device in free}
        self._held_devices |= granted

    def release(self, uid: str) -> None:
        self._held_devices = {
            key: held_device
            for key, held_device in self._held_devices.items()
            if held_device[1].uid != uid
        }

    def held_by(self, uid: str, container: str) -> list[Device]:
        devices = [
            device
            for device, holder in self._held_devices.values()
            if (holder.uid, holder.container) == (uid, container)
        ]
        return sorted(devices, key=_position)

    def holder(self, device: str) -> Holder | None:
        return self._held_devices[device][1] if device in self._held_devices else None

    def held_devices(self) -> Iterator[HeldDevice]:
        yield from self._held_devices.values()

    def _free(
        self, resource: str, count: int, granted: Mapping[str, HeldDevice]
    ) -> Sequence[Device]:
        taken = self._held_devices.keys() | granted.keys()
        offered = self._offered.get(resource)
        if not offered:
            known = f"no healthy devices present; cannot allocate unhealthy devices {resource}"
            reason = f"cannot allocate unregistered device {resource}" if offered is None else known
            raise NoDeviceError(f"Allocate failed due to {reason}, which is unexpected")
        free = [device for device in offered if device.id not in taken]
        if len(free) < count:
            raise NoDeviceError(
                f"Allocate failed due to requested number of devices unavailable for {resource}. "
                f"Requested: {count}, Available: {len(free)}, which is unexpected"
            )
        return free[:count]


def device_environment(devices: list[Device]) -> dict[str, str]:
    """Return the variables of a container's devices; the first is the device plugin's own."""
    if not devices:
        return {}
    return {
        "NVIDIA_VISIBLE_DEVICES": ",".join(device.id for device in devices),
        "TESSERA_SIM_DEVICE": devices[0].kind,
        "TESSERA_SIM_DEVICES": str(len(devices)),
    }


def _by_resource(devices: Iterable[Device]) -> dict[str, tuple[Device, ...]]:
    devices_by_resource: dict[str, tuple[Device, ...]] = {}
    for device in sorted(devices, key=_position):
        devices_by_resource[device.resource] = (
            *devices_by_resource.get(device.resource, ()),
            device,
        )
    return devices_by_resource


def _position(device: Device) -> tuple[int, int]:
    return device.gpu, 0 if device.placed is None else device.placed.start


def _sidecars(pod: Json) -> list[Json]:
    init_containers = pod["spec"].get("initContainers", [])
    return [
        container for container in init_containers if container.get("restartPolicy") == "Always"
    ]


def _wanted(container: Json) -> Iterator[tuple[str, int]]:
    for resource, quantity in sorted(container.get("resources", {}).get("limits", {}).items()):
        if resource.startswith((f"{PREFIX}gpu", f"{PREFIX}mig-")):
            yield resource, int(number(str(quantity)))


def _holder(pod: Json, container: str) -> Holder:
    meta = pod["metadata"]
    return Holder(meta["uid"], meta["namespace"], meta["name"], container)
