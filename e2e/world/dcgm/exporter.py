"""The coroutine behind the image of dcgm-exporter."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from world.dcgm.activity import Meters, engine_url
from world.dcgm.text import HeldDevices, page
from world.kubelet.devices import Holder
from world.kubelet.host import Host
from world.kubelet.instances import Call
from world.kubelet.kubelet import Kubelet

PORT = 9400
SAMPLE_SECONDS = 1.0


@dataclass(slots=True)
class Exporter:
    """Serves the devices of the node that its pod runs on."""

    session: aiohttp.ClientSession
    kubelets: Mapping[str, Kubelet]
    _activity: dict[str, dict[Holder, float]] = field(default_factory=dict)
    _meters: dict[str, Meters] = field(default_factory=dict)
    """By node; they outlive pods, so that nothing is missed between two of them."""

    async def serve(self, call: Call) -> None:
        async def serve_page(_: web.Request) -> web.Response:
            host = self.kubelets[call.node].host
            activity, counters = self._activity.get(call.node, {}), host.hardware.energy.by_uuid
            return web.Response(text=page(_held_devices(host), activity, counters))

        app = web.Application()
        for path in ("/metrics", "/health"):
            app.router.add_get(path, serve_page)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, call.host, PORT).start()
            async with asyncio.TaskGroup() as group:
                sampling = group.create_task(self._sample(call.node))
                await call.stop.wait()
                sampling.cancel()
        finally:
            await runner.cleanup()

    async def _sample(self, node: str) -> None:
        meters = self._meters.setdefault(node, Meters(self.session))
        while True:
            activity = await meters.sample(dict(self._engines(node)))
            self._activity[node] = activity
            host = self.kubelets[node].host
            busy_devices = [
                (device, activity.get(holder, 0.0))
                for device, holder in _held_devices(host)
                if holder is not None
            ]
            host.hardware.count_energy(busy_devices, asyncio.get_running_loop().time())
            await asyncio.sleep(SAMPLE_SECONDS)

    def _engines(self, node: str) -> list[tuple[Holder, str]]:
        kubelet = self.kubelets[node]
        holders = {holder for _, holder in kubelet.host.devices.held_devices()}
        return [
            (holder, engine_url(worker.pod, holder.container, worker.address))
            for holder in holders
            if (worker := kubelet.workers.get(holder.uid)) is not None
        ]


def _held_devices(host: Host) -> HeldDevices:
    return [(device, host.devices.holder(device.id)) for device in host.hardware.devices()]
