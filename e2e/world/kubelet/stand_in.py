"""The image `world/stand-in`: one engine for all pods that are only said to run.

    world/stand-in [--port 8000]

Services whose pods are KWOK's lead here. It answers one-token completions of any model, and exports
the gauges of engines in the names of pods that it receives by `PUT /gauges`: a list of
`{"namespace", "pod", "service", "waiting"}`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import web

from world.api import Json
from world.kubelet.instances import Call

LABEL = "world/stand-in"
_GAUGES = ("vllm:num_requests_waiting", "vllm:num_requests_running")
_ACTIVITY = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
_MOST_BYTES = 16 * 1024 * 1024


def stand_in(pod: Json) -> tuple[str, int] | None:
    """Where it answers, if this pod is one and has an address."""
    if LABEL not in pod["metadata"].get("labels", {}):
        return None
    address = pod.get("status", {}).get("podIP")
    return (address, 8000) if address else None


@dataclass(slots=True)
class _StandIn:
    gauges: Sequence[Json] = field(default_factory=tuple)

    async def complete(self, request: web.Request) -> web.Response:
        parameters = await request.json()
        choice = {"index": 0, "text": " 1", "finish_reason": "length"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"object": "text_completion", "model": parameters["model"], "choices": [choice]}
        return web.json_response(body | {"usage": usage})

    async def take(self, request: web.Request) -> web.Response:
        self.gauges = await request.json()
        return web.Response()

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="".join(map(_lines, self.gauges)))


def _lines(gauge: Json) -> str:
    pod = {name: gauge[name] for name in ("namespace", "pod")}
    of_service = _labels(pod | {"tessera_dev_service": gauge["service"]})
    samples = "".join(f"{name}{of_service} {gauge['waiting']}\n" for name in _GAUGES)
    return f"{samples}{_ACTIVITY}{_labels(pod)} 0.5\n"


def _labels(named: dict[str, str]) -> str:
    return "{" + ",".join(f"{name}={json.dumps(value)}" for name, value in named.items()) + "}"


async def serve_stand_in(call: Call) -> None:
    """Run until asked to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args(call.arguments).port
    state = _StandIn()
    app = web.Application(client_max_size=_MOST_BYTES)
    app.router.add_post("/v1/completions", state.complete)
    app.router.add_put("/gauges", state.take)
    app.router.add_get("/metrics", state.metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, call.host, port).start()
    try:
        await call.stop.wait()
    finally:
        await runner.cleanup()
