"""The GPUs of a node for tests: how they are partitioned, and which calls fail."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from fakegpu.silicon import Code, Gpu, RefusedError, Silicon
from world.gpus.operands import Operands
from world.mig_manager import Pace


@dataclass(frozen=True, slots=True)
class GpuControl:
    operands: Mapping[str, Operands]

    async def look(self, request: web.Request) -> web.Response:
        """The GPUs by index: mode, and slices with their places."""
        return web.json_response([_gpu_body(gpu) for gpu in self._silicon(request).gpus])

    async def act(self, request: web.Request) -> web.Response:
        silicon, wanted = self._silicon(request), await request.json()
        try:
            match request.match_info["act"]:
                case "fail":
                    silicon.fail(wanted["call"], Code[wanted["code"]], times=wanted["times"])
                case "attach":
                    silicon.attach(wanted["device"], wanted["process"])
                case _:
                    silicon.detach(wanted["device"], wanted["process"])
        except (KeyError, RefusedError) as error:
            raise web.HTTPNotFound(text=f"there is no {error}") from error
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
        wanted: dict[str, Any] = await request.json()
        pace = wanted.pop("pace", None)
        if pace is not None:
            manager.pace = Pace().times(pace)
        try:
            manager.edges = dataclasses.replace(manager.edges, **wanted)
        except TypeError as error:
            raise web.HTTPNotFound(text=str(error)) from error
        return web.Response()

    def _operands(self, request: web.Request) -> Operands:
        name = request.match_info["node"]
        if name not in self.operands:
            raise web.HTTPNotFound(text=f"no live node with GPUs is named {name}")
        return self.operands[name]

    def _silicon(self, request: web.Request) -> Silicon:
        silicon = self._operands(request).host.hardware.silicon
        if silicon is None:
            raise web.HTTPNotFound(text=f"{request.match_info['node']} has no GPU with MIG")
        return silicon


def _gpu_body(gpu: Gpu) -> dict[str, Any]:
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
