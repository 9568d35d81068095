"""The GPUs of a node for tests: how they are partitioned, and which calls fail."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from fakegpu.gpu_driver import Code, FakeGpu, GpuDriver, RefusedError
from world.gpus.operands import Operands
from world.mig_manager import Pace


@dataclass(frozen=True, slots=True)
class GpuControl:
    operands: Mapping[str, Operands]

    async def look(self, request: web.Request) -> web.Response:
        """The GPUs by index: mode, and slices with their places."""
        return web.json_response([_gpu_body(gpu) for gpu in self._gpu_driver(request).gpus])

    async def act(self, request: web.Request) -> web.Response:
        gpu_driver = self._gpu_driver(request)
        body = await request.json() if request.can_read_body else {}
        try:
            match request.match_info["act"]:
                case "fail":
                    gpu_driver.fail(body["call"], Code[body["code"]], times=body["times"])
                case "lose":
                    gpu_driver.lose(body["gpu"], lost=body["lost"])
                case "clear":
                    gpu_driver.clear_unused()
                case "restart":
                    self._operands(request).host.hardware.energy.reset()
                case "attach":
                    gpu_driver.attach(body["device"], body["process"])
                case _:
                    gpu_driver.detach(body["device"], body["process"])
        except (LookupError, RefusedError) as error:
            raise web.HTTPNotFound(text=f"there is no {error}") from error
        return web.Response()

    async def plugin(self, request: web.Request) -> web.Response:
        """How long the device plugin takes from now on."""
        plugin, body = self._operands(request).plugin, await request.json()
        plugin.start_seconds, plugin.stop_seconds = body["start_seconds"], body["stop_seconds"]
        return web.Response()

    async def config(self, request: web.Request) -> web.Response:
        """What has arrived of the ConfigMap on this node."""
        text = self._operands(request).config()
        if text is None:
            raise web.HTTPNotFound(text="no ConfigMap has arrived")
        return web.Response(text=text)

    async def manage(self, request: web.Request) -> web.Response:
        """Switches of the mig-manager, and its pace."""
        manager = self._operands(request).manager
        if manager is None:
            raise web.HTTPNotFound(text=f"no mig-manager on {request.match_info['node']}")
        switches: dict[str, Any] = await request.json()
        pace = switches.pop("pace", None)
        if pace is not None:
            manager.pace = Pace().times(pace)
        try:
            manager.edges = dataclasses.replace(manager.edges, **switches)
        except TypeError as error:
            raise web.HTTPNotFound(text=str(error)) from error
        return web.Response()

    def _operands(self, request: web.Request) -> Operands:
        name = request.match_info["node"]
        if name not in self.operands:
            raise web.HTTPNotFound(text=f"no live node with GPUs is named {name}")
        return self.operands[name]

    def _gpu_driver(self, request: web.Request) -> GpuDriver:
        gpu_driver = self._operands(request).host.hardware.gpu_driver
        if gpu_driver is None:
            raise web.HTTPNotFound(text=f"{request.match_info['node']} has no GPU with MIG")
        return gpu_driver


def _gpu_body(gpu: FakeGpu) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "mig": gpu.mig,
        "slices": [
            {
                "profile": instance.profile,
                "start": instance.start,
                "uuid": instance.uuid,
                "processes": len(instance.attached),
            }
            for instance in gpu.instances
        ],
    }
