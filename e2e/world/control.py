"""The control endpoint: what a test does to a world beyond the Kubernetes API."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from world.autoscaling.autoscaler import Autoscaler
from world.autoscaling.control import GroupControl
from world.errors import WorldError
from world.gpus.control import GpuControl
from world.kubelet.container import Container
from world.kubelet.kubelet import Kubelet
from world.programs import Programs


@asynccontextmanager
async def serve_control(
    autoscaler: Autoscaler,
    programs: Programs,
    address: str,
    port: int,
) -> AsyncIterator[None]:
    machines = autoscaler.machines
    control = _Control(machines.kubelets, programs)
    gpus = GpuControl(machines.operands)
    groups = GroupControl(autoscaler)
    app = web.Application()
    app.router.add_get("/containers", control.containers)
    container = "/containers/{namespace}/{pod}/{container}"
    app.router.add_post(f"{container}/{{act:kill|oom|pause|resume}}", control.container)
    app.router.add_post("/nodes/{node}/{act:silence|wake|end}", control.node)
    app.router.add_post("/programs/{program}/{act:end|start|pause|resume}", control.program)
    app.router.add_get("/gpus/{node}", gpus.look)
    app.router.add_post("/gpus/{node}/{act:fail|lose|clear|restart|attach|detach}", gpus.act)
    app.router.add_post("/device-plugins/{node}", gpus.plugin)
    app.router.add_get("/mig-managers/{node}", gpus.config)
    app.router.add_post("/mig-managers/{node}", gpus.manage)
    app.router.add_get("/node-groups/{group}", groups.look)
    app.router.add_post("/node-groups/{group}", groups.change)
    app.router.add_post("/nodes/{node}/disrupt", groups.disrupt)
    app.router.add_post("/nodes/{node}/notice", groups.notice)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
        yield
    finally:
        await runner.cleanup()


@dataclass(frozen=True, slots=True)
class _Control:
    kubelets: Mapping[str, Kubelet]
    programs: Programs

    async def containers(self, _: web.Request) -> web.Response:
        """Everything that runs just now."""
        running_containers = [
            {
                "namespace": worker.key[0],
                "pod": worker.key[1],
                "container": container.context.name,
                "node": name,
                "pid": container.pid,
                "address": worker.address,
            }
            for name, kubelet in sorted(self.kubelets.items())
            for worker, container in kubelet.containers()
            if container.running
        ]
        return web.json_response(running_containers)

    async def container(self, request: web.Request) -> web.Response:
        parameters = dict(request.match_info)
        for kubelet in self.kubelets.values():
            for worker, container in kubelet.containers():
                container_key = (*worker.key, container.context.name)
                if container_key == (
                    parameters["namespace"],
                    parameters["pod"],
                    parameters["container"],
                ):
                    _signal(container, parameters["act"])
                    return web.Response()
        raise web.HTTPNotFound(text=f"no such container runs: {'/'.join(parameters.values())}")

    async def node(self, request: web.Request) -> web.Response:
        name, act = request.match_info["node"], request.match_info["act"]
        if name not in self.kubelets:
            raise web.HTTPNotFound(text=f"no live node is named {name}")
        kubelet = self.kubelets[name]
        match act:
            case "silence":
                kubelet.silence()
            case "wake":
                await kubelet.wake()
            case _:
                await kubelet.end()
        return web.Response()

    async def program(self, request: web.Request) -> web.Response:
        name, act = request.match_info["program"], request.match_info["act"]
        try:
            match act:
                case "end":
                    await self.programs.end(name)
                case "start":
                    await self.programs.start(name)
                case "pause":
                    self.programs.pause(name)
                case _:
                    self.programs.resume(name)
        except WorldError as error:
            raise web.HTTPNotFound(text=str(error)) from error
        return web.Response()


def _signal(container: Container, act: str) -> None:
    match act:
        case "kill" | "oom":
            container.kill("OOMKilled" if act == "oom" else "")
        case _:
            try:
                container.freeze(frozen=act == "pause")
            except WorldError as error:
                raise web.HTTPConflict(text=str(error)) from error
