"""The image `world/http`: a tiny server for tests of everything around a container.

    world/http [--port 8000] [--delay SECONDS] [--drain SECONDS] [--busy]

`/` answers with the name of the pod, `/env` with the environment, `/fail` makes `/health` answer
503 and `/heal` undoes it, `/exit?code=N` ends the container. Ready after the delay; when asked to
stop, it goes on for the drain time. `/metrics` counts the requests to `/`, or shows the page of the
variable METRICS_PAGE and ignores the arguments; with `--busy`, `/sim/busy` answers like an engine
that never rests.
"""

import argparse
import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from world.kubelet.instances import Call

PAGE_VARIABLE = "METRICS_PAGE"


@dataclass(slots=True)
class _Server:
    call: Call
    busy: bool
    requests: int = 0
    healthy: bool = True
    end: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0

    async def name(self, _: web.Request) -> web.Response:
        self.requests += 1
        return web.Response(text=self.call.env.get("HOSTNAME", self.call.host))

    async def env(self, _: web.Request) -> web.Response:
        return web.json_response(dict(self.call.env))

    async def metrics(self, _: web.Request) -> web.Response:
        counted = f"world_requests_total {self.requests}\n"
        return web.Response(text=self.call.env.get(PAGE_VARIABLE, counted))

    async def busy_seconds(self, _: web.Request) -> web.Response:
        if not self.busy:
            raise web.HTTPNotFound
        return web.json_response({"busy_seconds": asyncio.get_running_loop().time()})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def set_health(self, request: web.Request) -> web.Response:
        self.healthy = request.path == "/heal"
        return web.Response()

    async def exit(self, request: web.Request) -> web.Response:
        self.code = int(request.query.get("code", "0"))
        self.end.set()
        return web.Response()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self.name)
        app.router.add_get("/env", self.env)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/sim/busy", self.busy_seconds)
        app.router.add_get("/health", self.health)
        app.router.add_get("/exit", self.exit)
        for path in ("/fail", "/heal"):
            app.router.add_get(path, self.set_health)
        return app


async def serve_http(call: Call) -> None:
    # As an engine it gets the arguments of one.
    arguments = () if PAGE_VARIABLE in call.env else call.arguments
    options = _parser().parse_args(arguments)
    server = _Server(call, busy=options.busy)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await asyncio.sleep(options.delay)
        await web.TCPSite(runner, call.host, options.port).start()
        print(f"serving on {call.host}:{options.port}")
        await _first_of(call.stop, server.end)
        if call.stop.is_set():
            print("stopping")
            await asyncio.sleep(options.drain)
    finally:
        await runner.cleanup()
    raise SystemExit(server.code)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("world/http")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--delay", type=float, default=0)
    parser.add_argument("--drain", type=float, default=0)
    parser.add_argument("--busy", action="store_true")
    return parser
