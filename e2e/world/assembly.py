"""Starts all parts of a world, and ends them."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping

import aiohttp

from world.api import Json
from world.claims import Claims
from world.control import serve_control
from world.dcgm.exporter import Exporter
from world.fleet import Node
from world.folders import sockets
from world.gpus.driver import serve_driver
from world.gpus.hardware import hardware
from world.gpus.operands import Operands
from world.gpus.pod_resources import serve_pod_resources
from world.infrastructure import Infrastructure, start_infrastructure
from world.kubelet import images, node
from world.kubelet.container import Container
from world.kubelet.devices import Devices
from world.kubelet.events import EventRecorder
from world.kubelet.host import Host, Machine
from world.kubelet.instances import Sessions
from world.kubelet.kubelet import Kubelet
from world.kubelet.log_server import serve_logs
from world.kubelet.stand_in import stand_in
from world.kubelet.tokens import Tokens
from world.labels import resources
from world.plan import Facts, Plan
from world.proxy.services import ServiceProxy
from world.proxy.slices import EndpointSliceWriter
from world.sessions import janitor
from world.slots import free_port

REGISTERED_AT_ONCE = 50
Kubelets = Mapping[str, Kubelet]


async def run_world(plan: Plan) -> None:
    """Run until cancelled, or until a part fails."""
    began = time.monotonic()
    async with (
        janitor(plan.folder / "pods", lifeline=plan.lifeline) as sessions,
        start_infrastructure(plan) as base,
    ):
        log_port, control_port = free_port(plan.slot.control), free_port(plan.slot.control)
        async with (
            _kubelets(plan, base, sessions, log_port) as kubelets,
            _served_logs(base, kubelets, log_port),
            _operands(plan, kubelets) as operands,
            serve_control(kubelets, operands, base.programs, plan.slot.control, control_port),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(base.programs.watch())
            group.create_task(Claims(base.api, plan.folder / "claims").run())
            services = _services(plan, base, kubelets)
            group.create_task(services.run())
            group.create_task(EndpointSliceWriter(base.api, services).run())
            plan.progress(f"registering {len(plan.nodes)} nodes")
            await _register(plan, base, kubelets)
            for kubelet in kubelets.values():
                group.create_task(kubelet.run())
            for part in operands.values():
                group.create_task(part.run())
            plan.progress(f"started in {time.monotonic() - began:.1f} s")
            plan.announce(_facts(plan, base, control_port))


@contextlib.asynccontextmanager
async def _kubelets(
    plan: Plan, base: Infrastructure, sessions: Sessions, log_port: int
) -> AsyncIterator[Kubelets]:
    """Start the kubelets of all live nodes; at the end none of their containers runs."""
    kubelets: dict[str, Kubelet] = {}
    # Each probe makes a connection of its own, so it also sees whether new ones are accepted.
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        exporter = Exporter(session, kubelets)
        machine = Machine(
            api=base.api,
            slot=plan.slot,
            folder=plan.folder,
            tools=plan.binaries,
            images=images.table(exporter=exporter.serve, vllm=plan.vllm),
            tokens=Tokens(base.api, base.plane.server, base.plane.keys.own.certificate),
            events=EventRecorder(base.api),
            session=session,
            sessions=sessions,
        )
        for index, spec in enumerate(live_node for live_node in plan.nodes if live_node.live):
            host = _host(machine, spec, plan.slot.node(index))
            kubelets[spec.name] = Kubelet(host, plan.beats, log_port)
        try:
            yield kubelets
        finally:
            await asyncio.gather(*(kubelet.end() for kubelet in kubelets.values()))


def _host(machine: Machine, spec: Node, address: str) -> Host:
    devices = Devices()
    devices.offer((node_hardware := hardware(spec)).devices())
    return Host(
        machine=machine, node=spec, address=address, hardware=node_hardware, devices=devices
    )


@contextlib.asynccontextmanager
async def _operands(plan: Plan, kubelets: Kubelets) -> AsyncIterator[Mapping[str, Operands]]:
    """Serve the drivers of nodes with GPUs, and yield what manages these GPUs."""
    with_gpus = {name: kubelet for name, kubelet in kubelets.items() if kubelet.host.node.gpus}
    folder = sockets(plan.slot.number)
    shutil.rmtree(folder, ignore_errors=True)  # of a world that was killed
    async with contextlib.AsyncExitStack() as served:
        served.callback(shutil.rmtree, folder, ignore_errors=True)
        for kubelet in with_gpus.values():
            kubelet.host.sockets.mkdir(parents=True, mode=0o700)
            await served.enter_async_context(serve_pod_resources(kubelet))
            await served.enter_async_context(serve_driver(kubelet.host))
        yield {name: Operands(kubelet.host) for name, kubelet in with_gpus.items()}


def _services(plan: Plan, base: Infrastructure, kubelets: Kubelets) -> ServiceProxy:
    control = plan.slot.control

    def pods() -> Iterator[Json]:
        return (pod for kubelet in kubelets.values() for pod in kubelet.informer.values())

    return ServiceProxy(
        api=base.api,
        pods=pods,
        stand_in=lambda: [address for pod in pods() if (address := stand_in(pod)) is not None],
        fixed={
            ("default", "kubernetes"): (control, base.plane.api_port),
            ("monitoring", "prometheus"): (control, base.prometheus_port),
        },
    )


def _served_logs(
    base: Infrastructure, kubelets: Kubelets, port: int
) -> contextlib.AbstractAsyncContextManager[None]:
    def find(namespace: str, pod: str, name: str) -> Container | None:
        for kubelet in kubelets.values():
            for worker, container in kubelet.containers():
                if (*worker.key, container.context.name) == (namespace, pod, name):
                    return container
        return None

    addresses = [kubelet.host.address for kubelet in kubelets.values()]
    pair = base.plane.keys.server("logs", *addresses)
    return serve_logs(find, pair, addresses, port)


async def _register(plan: Plan, base: Infrastructure, kubelets: Kubelets) -> None:
    """Register all nodes; addresses of fake ones do not answer, as those of KWOK's pods."""
    room = asyncio.Semaphore(REGISTERED_AT_ONCE)

    async def register(spec: Node, address: str) -> None:
        async with room:
            capacity = resources(spec)
            await node.register(base.api, node.manifest(spec, address, 0, capacity, capacity))

    async with asyncio.TaskGroup() as group:
        for kubelet in kubelets.values():
            group.create_task(kubelet.register())
        for index, spec in enumerate(plan.fakes):
            group.create_task(register(spec, f"10.1.{index // 254}.{1 + index % 254}"))


def _facts(plan: Plan, base: Infrastructure, control_port: int) -> Facts:
    control = plan.slot.control
    return {
        "pid": os.getpid(),
        "kubeconfig": str(base.kubeconfig),
        "server": base.plane.server,
        "prometheusUrl": f"http://{control}:{base.prometheus_port}",
        "controlUrl": f"http://{control}:{control_port}",
        "binaries": str(plan.binaries),
        "auditLog": str(base.plane.audit_log),
    }
