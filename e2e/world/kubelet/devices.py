"""Which pod holds which GPU or slice of a node."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from world.api import Json
from world.fleet import Node
from world.kubelet.quantities import number
from world.mig import Placed

PREFIX = "nvidia.com/"
_NAMESPACE = uuid.UUID("2f3c7a66-0f6b-4f0c-9f0e-6f6e1a0b7c11")


class NoDeviceError(Exception):
    """A pod asks for more than is free; the text is the one that kubelets give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One uncut GPU, or one MIG slice."""

    node: str
    gpu: int
    product: str
    placed: Placed | None
    memory_mib: int

    @property
    def gpu_uuid(self) -> str:
        return f"GPU-{uuid.uuid5(_NAMESPACE, f'{self.node}/{self.gpu}')}"

    @property
    def id(self) -> str:
        """The identity under which the device plugin offers it."""
        if self.placed is None:
            return self.gpu_uuid
        own = f"{self.node}/{self.gpu}/{self.placed.start}/{self.placed.profile}"
        return f"MIG-{uuid.uuid5(_NAMESPACE, own)}"

    @property
    def resource(self) -> str:
        return f"{PREFIX}gpu" if self.placed is None else self.placed.resource

    @property
    def kind(self) -> str:
        """What the look-alike engine is told: product, and profile of a slice."""
        return self.product if self.placed is None else f"{self.product}/{self.placed.profile}"


@dataclass(frozen=True, slots=True)
class Holder:
    """The container that a device is given to."""

    uid: str
    namespace: str
    pod: str
    container: str


@dataclass(slots=True)
class Devices:
    """The devices of one node; a container keeps its own through restarts."""

    all: tuple[Device, ...]
    _held: dict[str, Holder] = field(default_factory=dict)

    def admit(self, pod: Json) -> None:
        """Give a pod all that it asks for, or raise `NoDeviceError` and give nothing."""
        granted: dict[str, Holder] = {}
        for container in pod["spec"]["containers"] + _sidecars(pod):
            holder = _holder(pod, container["name"])
            for resource, count in _wanted(container):
                granted |= dict.fromkeys(self._free(resource, count, granted), holder)
        self._held |= granted

    def release(self, uid: str) -> None:
        self._held = {key: holder for key, holder in self._held.items() if holder.uid != uid}

    def of(self, uid: str, container: str) -> list[Device]:
        held = self._held
        mine = (one for one in self.all if one.id in held and held[one.id].uid == uid)
        return [one for one in mine if held[one.id].container == container]

    def holders(self) -> Iterator[tuple[Device, Holder | None]]:
        for device in self.all:
            yield device, self._held.get(device.id)

    def _free(self, resource: str, count: int, granted: Mapping[str, Holder]) -> list[str]:
        taken = self._held.keys() | granted.keys()
        free = [one.id for one in self.all if one.resource == resource and one.id not in taken]
        if len(free) < count:
            raise NoDeviceError(
                f"Allocate failed due to requested number of devices unavailable for {resource}. "
                f"Requested: {count}, Available: {len(free)}, which is unexpected"
            )
        return free[:count]


def inventory(node: Node) -> tuple[Device, ...]:
    """The devices of a node by GPU, slices by their start."""
    if node.product is None:
        return ()
    found: list[Device] = []
    for index, gpu in enumerate(node.gpus):
        for placed in gpu if gpu is not None else (None,):
            memory = node.product.memory_mib if placed is None else placed.slice.memory_mib
            found.append(
                Device(
                    node=node.name,
                    gpu=index,
                    product=node.product.product,
                    placed=placed,
                    memory_mib=memory,
                )
            )
    return tuple(found)


def told(devices: list[Device]) -> dict[str, str]:
    """What a container learns of its devices; the first name is the device plugin's own."""
    if not devices:
        return {}
    return {
        "NVIDIA_VISIBLE_DEVICES": ",".join(device.id for device in devices),
        "TESSERA_SIM_DEVICE": devices[0].kind,
        "TESSERA_SIM_DEVICES": str(len(devices)),
    }


def _sidecars(pod: Json) -> list[Json]:
    found = pod["spec"].get("initContainers", [])
    return [container for container in found if container.get("restartPolicy") == "Always"]


def _wanted(container: Json) -> Iterator[tuple[str, int]]:
    for resource, quantity in sorted(container.get("resources", {}).get("limits", {}).items()):
        if resource.startswith(PREFIX):
            yield resource, int(number(str(quantity)))


def _holder(pod: Json, container: str) -> Holder:
    meta = pod["metadata"]
    return Holder(meta["uid"], meta["namespace"], meta["name"], container)
