"""Starts all parts of a world, and ends them."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping

import aiohttp

from world.api import Json
from world.autoscaling import karpenter
from world.autoscaling.autoscaler import Autoscaler
from world.autoscaling.groups import group_state
from world.claims import Claims
from world.control import serve_control
from world.dcgm.exporter import Exporter
from world.fleet import Node
from world.folders import service_names
from world.infrastructure import Infrastructure, start_infrastructure
from world.kubelet import images, node
from world.kubelet.container import Container
from world.kubelet.events import EventRecorder
from world.kubelet.host import Machine
from world.kubelet.instances import Sessions
from world.kubelet.kubelet import Kubelet
from world.kubelet.log_server import serve_logs
from world.kubelet.stand_in import stand_in
from world.kubelet.tokens import Tokens
from world.labels import resources
from world.machines import Machines, machines
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
            _machines(plan, base, sessions, log_port) as booted,
            _served_logs(plan, base, booted.kubelets, log_port),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(base.programs.watch())
            group.create_task(Claims(base.api, plan.folder / "claims").run())
            services = _services(plan, base, booted.kubelets)
            group.create_task(services.run())
            group.create_task(EndpointSliceWriter(base.api, services).run())
            plan.progress(f"registering {len(plan.nodes)} nodes")
            await _register(plan, base, group, booted)
            autoscaler = Autoscaler(
                api=base.api,
                machines=booted,
                states={spec.name: group_state(spec) for spec in plan.played_groups},
                tasks=group,
            )
            if plan.played_groups:
                group.create_task(autoscaler.run())
            await _start_karpenter(plan, base, group, booted)
            async with serve_control(autoscaler, base.programs, plan.slot.control, control_port):
                plan.progress(f"started in {time.monotonic() - began:.1f} s")
                plan.announce(_facts(plan, base, control_port))
                await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _machines(
    plan: Plan, base: Infrastructure, sessions: Sessions, log_port: int
) -> AsyncIterator[Machines]:
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
        async with machines(machine, plan.beats, log_port, kubelets, plan.addresses) as booted:
            yield booted


def _services(plan: Plan, base: Infrastructure, kubelets: Kubelets) -> ServiceProxy:
    control = plan.slot.control

    def pods() -> Iterator[Json]:
        return (pod for kubelet in kubelets.values() for pod in kubelet.informer.values())

    return ServiceProxy(
        api=base.api,
        names=service_names(plan.folder),
        pods=pods,
        stand_in=lambda: [address for pod in pods() if (address := stand_in(pod)) is not None],
        fixed={
            ("default", "kubernetes"): (control, base.plane.api_port),
            ("monitoring", "prometheus"): (control, base.prometheus_port),
        },
    )


def _served_logs(
    plan: Plan, base: Infrastructure, kubelets: Kubelets, port: int
) -> contextlib.AbstractAsyncContextManager[None]:
    def find(namespace: str, pod: str, name: str) -> Container | None:
        for kubelet in kubelets.values():
            for worker, container in kubelet.containers():
                if (*worker.key, container.context.name) == (namespace, pod, name):
                    return container
        return None

    pair = base.plane.keys.server("logs", *plan.addresses)
    return serve_logs(find, pair, plan.addresses, port)


async def _register(
    plan: Plan, base: Infrastructure, group: asyncio.TaskGroup, booted: Machines
) -> None:
    """Register all nodes; addresses of fake ones do not answer, as those of KWOK's pods."""
    room = asyncio.Semaphore(REGISTERED_AT_ONCE)

    async def register(spec: Node, address: str) -> None:
        async with room:
            capacity = resources(spec)
            await node.register(base.api, node.manifest(spec, address, 0, capacity, capacity))

    async with asyncio.TaskGroup() as registering:
        for spec in plan.nodes:
            if spec.live:
                registering.create_task(booted.boot(group, spec))
        for index, spec in enumerate(plan.fakes):
            address = f"10.1.{index // 254}.{1 + index % 254}"
            registering.create_task(register(spec, address))


async def _start_karpenter(
    plan: Plan, base: Infrastructure, tasks: asyncio.TaskGroup, booted: Machines
) -> None:
    if plan.karpenter is None:
        return
    groups = {spec.name: spec for spec in plan.groups if spec.autoscaler == "karpenterCore"}
    machines_of = karpenter.KarpenterMachines(
        api=base.api, machines=booted, groups=groups, tasks=tasks
    )
    tasks.create_task(machines_of.run())
    await karpenter.start(
        base.api, base.plane, base.programs, plan.karpenter, tuple(groups.values())
    )


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
