"""What the containers of one node are given."""

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from world.api import Api
from world.fleet import Node
from world.folders import sockets
from world.gpus.hardware import Hardware
from world.kubelet.devices import Devices
from world.kubelet.events import EventRecorder
from world.kubelet.images import ImageEntry
from world.kubelet.instances import Sessions
from world.kubelet.tokens import Tokens
from world.labels import basic_resources
from world.slots import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What all nodes share, since they are one process."""

    api: Api
    slot: Slot
    folder: Path
    tools: Path
    """The folder of the world's programs, kubectl among them."""
    images: Sequence[ImageEntry]
    tokens: Tokens
    events: EventRecorder
    session: aiohttp.ClientSession
    """For probes and samples: a connection each, as kubelets do it."""
    sessions: Sessions
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def next_address(self) -> str:
        return self.slot.pod(next(self._numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One live node, seen from its pods."""

    machine: Machine
    node: Node
    address: str
    hardware: Hardware
    devices: Devices
    new: bool = False
    """Its device plugin and feature discovery have not begun when it registers."""
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while the node is silent: nothing is then sent to the API or received from it."""

    def capacity(self) -> dict[str, str]:
        return basic_resources(self.node) | _texts(self.devices.capacity())

    def allocatable(self) -> dict[str, str]:
        return basic_resources(self.node) | _texts(self.devices.allocatable())

    @property
    def sockets(self) -> Path:
        """Outside the world's folder: the path of a socket has room for 107 characters."""
        return sockets(self.machine.slot.number) / self.node.name

    @property
    def driver(self) -> Path:
        """The socket on which the driver of its GPUs answers."""
        return self.sockets / "nvml"

    @property
    def files(self) -> Path:
        """Stands for the node's own file system."""
        return self.machine.folder / "nodes" / self.node.name


def _texts(counts: Mapping[str, int]) -> dict[str, str]:
    return {resource: str(count) for resource, count in counts.items()}
