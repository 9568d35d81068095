"""The live nodes of a world: each is there from its boot until its end."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from world.control_plane import HeartBeats
from world.errors import WorldError
from world.fleet import Node
from world.folders import sockets
from world.gpus.driver import serve_driver
from world.gpus.hardware import Hardware, hardware
from world.gpus.operands import Operands
from world.gpus.pod_resources import serve_pod_resources
from world.kubelet.devices import Devices
from world.kubelet.host import Host, Machine
from world.kubelet.kubelet import Kubelet


@dataclass(slots=True, kw_only=True)
class Machines:
    """Boots and ends live nodes."""

    machine: Machine
    beats: HeartBeats
    log_port: int
    kubelets: dict[str, Kubelet]
    operands: dict[str, Operands] = field(default_factory=dict)
    """Of the nodes with GPUs and a driver."""
    addresses: list[str]
    """Those that no node has."""
    _ends: dict[str, contextlib.AsyncExitStack] = field(default_factory=dict)

    async def boot(
        self, group: asyncio.TaskGroup, spec: Node, *, new: bool = False, driver: bool = True
    ) -> None:
        """Let a node register, and run in a task group from then on.

        On a new one the device plugin and feature discovery begin after it has registered. Without
        a driver it never has a GPU.
        """
        if not self.addresses:
            raise WorldError(f"no address is free for node {spec.name}")
        async with contextlib.AsyncExitStack() as stack:
            address = self.addresses.pop(0)
            stack.callback(self.addresses.append, address)
            kubelet = Kubelet(self._host(spec, address, new, driver), self.beats, self.log_port)
            self.kubelets[spec.name] = kubelet
            stack.callback(self.kubelets.pop, spec.name)
            running = [kubelet.run]
            if spec.gpus and driver:
                operands = await self._serve_gpus(stack, kubelet)
                running.append(operands.run)
            stack.push_async_callback(kubelet.end)
            await kubelet.register()
            tasks = [group.create_task(run()) for run in running]
            stack.push_async_callback(_cancel, tasks)
            self._ends[spec.name] = stack.pop_all()

    async def end(self, name: str) -> None:
        """The machine is gone, with all its containers; its object stays until it is deleted."""
        await self._ends.pop(name).aclose()

    async def end_all(self) -> None:
        await asyncio.gather(*(self.end(name) for name in list(self._ends)))

    def _host(self, spec: Node, address: str, new: bool, driver: bool) -> Host:
        devices = Devices()
        node_hardware = hardware(spec) if driver else Hardware(spec, None)
        if not new:
            devices.offer(node_hardware.devices())
        return Host(
            machine=self.machine,
            node=spec,
            address=address,
            hardware=node_hardware,
            devices=devices,
            new=new,
        )

    async def _serve_gpus(self, stack: contextlib.AsyncExitStack, kubelet: Kubelet) -> Operands:
        """Serve the driver of the node, and return what manages its GPUs."""
        host = kubelet.host
        stack.callback(shutil.rmtree, host.sockets, ignore_errors=True)
        host.sockets.mkdir(parents=True, mode=0o700)
        await stack.enter_async_context(serve_pod_resources(kubelet))
        await stack.enter_async_context(serve_driver(host))
        operands = self.operands[host.node.name] = Operands(host)
        stack.callback(self.operands.pop, host.node.name)
        return operands


@contextlib.asynccontextmanager
async def machines(
    machine: Machine,
    beats: HeartBeats,
    log_port: int,
    kubelets: dict[str, Kubelet],
    addresses: list[str],
) -> AsyncIterator[Machines]:
    """Yield those of a world; at the end none of their containers runs."""
    folder = sockets(machine.slot.number)
    shutil.rmtree(folder, ignore_errors=True)  # of a world that was killed
    booted = Machines(
        machine=machine, beats=beats, log_port=log_port, kubelets=kubelets, addresses=addresses
    )
    try:
        yield booted
    finally:
        await booted.end_all()
        shutil.rmtree(folder, ignore_errors=True)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
