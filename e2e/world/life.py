"""All parts of a world put together, and taken apart again."""

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
from world.gpus.driver import serve_driver
from world.gpus.hardware import hardware
from world.gpus.operands import Operands
from world.gpus.pod_resources import serve_pod_resources
from world.ground import Ground, ground
from world.kubelet import images, node
from world.kubelet.container import Container
from world.kubelet.devices import Devices
from world.kubelet.events import Events
from world.kubelet.instances import Sessions
from world.kubelet.kubelet import Kubelet
from world.kubelet.log_server import serve_logs
from world.kubelet.stand_in import stand_in
from world.kubelet.surroundings import Host, Machine
from world.kubelet.tokens import Tokens
from world.labels import resources
from world.places import sockets
from world.plan import Facts, Plan
from world.proxy.services import Services
from world.proxy.slices import Slices
from world.sessions import janitor
from world.slots import free_port

REGISTERED_AT_ONCE = 50
Kubelets = Mapping[str, Kubelet]


async def live(plan: Plan) -> None:
    """Run until cancelled, or until a part fails."""
    began = time.monotonic()
    async with (
        janitor(plan.folder / "pods", lifeline=plan.lifeline) as sessions,
        ground(plan) as base,
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
            group.create_task(Slices(base.api, services).run())
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
    plan: Plan, base: Ground, sessions: Sessions, log_port: int
) -> AsyncIterator[Kubelets]:
    """The kubelets of all live nodes; at the end nothing of theirs runs."""
    found: dict[str, Kubelet] = {}
    # Each probe makes a connection of its own, so it also sees whether new ones are accepted.
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        exporter = Exporter(session, found)
        machine = Machine(
            api=base.api,
            slot=plan.slot,
            folder=plan.folder,
            tools=plan.binaries,
            images=images.table(exporter=exporter.serve, vllm=plan.vllm),
            tokens=Tokens(base.api, base.plane.server, base.plane.keys.own.certificate),
            events=Events(base.api),
            session=session,
            sessions=sessions,
        )
        for index, spec in enumerate(one for one in plan.nodes if one.live):
            host = _host(machine, spec, plan.slot.node(index))
            found[spec.name] = Kubelet(host, plan.beats, log_port)
        try:
            yield found
        finally:
            await asyncio.gather(*(kubelet.end() for kubelet in found.values()))


def _host(machine: Machine, spec: Node, address: str) -> Host:
    found = Devices()
    found.offer((there := hardware(spec)).devices())
    return Host(machine=machine, node=spec, address=address, hardware=there, devices=found)


@contextlib.asynccontextmanager
async def _operands(plan: Plan, kubelets: Kubelets) -> AsyncIterator[Mapping[str, Operands]]:
    """What looks after the GPUs of a node, where it has some."""
    with_gpus = {name: one for name, one in kubelets.items() if one.host.node.gpus}
    folder = sockets(plan.slot.number)
    shutil.rmtree(folder, ignore_errors=True)  # of a world that was killed
    async with contextlib.AsyncExitStack() as served:
        served.callback(shutil.rmtree, folder, ignore_errors=True)
        for kubelet in with_gpus.values():
            kubelet.host.sockets.mkdir(parents=True, mode=0o700)
            await served.enter_async_context(serve_pod_resources(kubelet))
            await served.enter_async_context(serve_driver(kubelet.host))
        yield {name: Operands(kubelet.host) for name, kubelet in with_gpus.items()}


def _services(plan: Plan, base: Ground, kubelets: Kubelets) -> Services:
    control = plan.slot.control

    def pods() -> Iterator[Json]:
        return (pod for kubelet in kubelets.values() for pod in kubelet.mirror.values())

    return Services(
        api=base.api,
        pods=pods,
        stand_in=lambda: [address for pod in pods() if (address := stand_in(pod)) is not None],
        fixed={
            ("default", "kubernetes"): (control, base.plane.api_port),
            ("monitoring", "prometheus"): (control, base.prometheus_port),
        },
    )


def _served_logs(
    base: Ground, kubelets: Kubelets, port: int
) -> contextlib.AbstractAsyncContextManager[None]:
    def find(namespace: str, pod: str, name: str) -> Container | None:
        for kubelet in kubelets.values():
            for worker, container in kubelet.containers():
                if (*worker.key, container.place.name) == (namespace, pod, name):
                    return container
        return None

    addresses = [kubelet.host.address for kubelet in kubelets.values()]
    pair = base.plane.keys.server("logs", *addresses)
    return serve_logs(find, pair, addresses, port)


async def _register(plan: Plan, base: Ground, kubelets: Kubelets) -> None:
    """Fake nodes have addresses that nobody answers, as KWOK's pods have."""
    room = asyncio.Semaphore(REGISTERED_AT_ONCE)

    async def register(spec: Node, address: str) -> None:
        async with room:
            there = resources(spec)
            await node.register(base.api, node.manifest(spec, address, 0, there, there))

    async with asyncio.TaskGroup() as group:
        for kubelet in kubelets.values():
            group.create_task(kubelet.register())
        for index, spec in enumerate(plan.fakes):
            group.create_task(register(spec, f"10.1.{index // 254}.{1 + index % 254}"))


def _facts(plan: Plan, base: Ground, control_port: int) -> Facts:
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
