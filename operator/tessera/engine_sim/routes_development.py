"""Routes of development mode (`VLLM_SERVER_DEV_MODE=1`)."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tessera.engine_sim.bodies import invalid, missing, parse_json
from tessera.engine_sim.desk import Desk
from tessera.engine_sim.errors import ApiError, internal
from tessera.engine_sim.launch import VERSION
from tessera.engine_sim.operations import SLEEP, WEIGHTS, Operations
from tessera.engine_sim.replies import reply
from tessera.engine_sim.runner import Runner

Handler = Callable[[web.Request], Awaitable[web.Response]]

_DEEPEST = 2
_PAUSES = ("abort", "wait", "keep")
_NO_TRANSFER = (
    "Call to collective_rpc method failed: Worker failed with error 'Weight transfer not "
    "configured. Please set weight_transfer_config to enable weight transfer.', please check the "
    "stack trace above for the root cause"
)


class Development:
    """Sleep, pause, caches; weights cannot be transferred."""

    def __init__(self, desk: Desk, runner: Runner, operations: Operations) -> None:
        self._desk = desk
        self._condition = desk.condition
        self._runner = runner
        self._operations = operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/sleep", self._sleep),
            web.post("/wake_up", self._wake),
            web.get("/is_sleeping", self._is_sleeping, allow_head=False),
            web.post("/release_kv_cache_memory", self._release),
            web.post("/pause", self._pause),
            web.post("/resume", self._resume),
            web.get("/is_paused", self._is_paused, allow_head=False),
            web.post("/abort_requests", self._abort),
            web.post("/reset_prefix_cache", self._reset),
            web.post("/reset_mm_cache", self._nothing),
            web.post("/reset_encoder_cache", self._nothing),
            web.post("/collective_rpc", self._call),
            web.get("/server_info", self._info, allow_head=False),
            web.get("/get_world_size", self._world, allow_head=False),
            *self._weight_routes(),
        ]

    def _weight_routes(self) -> list[web.RouteDef]:
        return [
            web.post("/init_weight_transfer_engine", _needs("init_info")),
            web.post("/shutdown_weight_transfer_engine", self._shut_down),
            web.post("/start_weight_update", self._no_transfer("start")),
            web.post("/start_draft_weight_update", self._no_transfer("start_draft")),
            web.post("/update_weights", _needs("update_info")),
            web.post("/finish_weight_update", self._no_transfer("finish")),
            web.post("/update_weight_version", _needs("new_version")),
            web.get("/weight_info", self._weights, allow_head=False),
            web.post("/weight_checker", _needs("action")),
        ]

    async def _sleep(self, request: web.Request) -> web.Response:
        level = _level(request)
        with self._operations.recorded(SLEEP, "sleep"):
            await self._stand(_mode(request))
            if level:
                self._condition.sleep(level)
        return reply({"status": "sleeping", "level": level})

    async def _wake(self, request: web.Request) -> web.Response:
        tags = request.query.getall("tags", []) or None
        with self._operations.recorded(SLEEP, "wake"):
            awake = self._condition.wake(tags)
        return reply({"status": "awake" if awake else "sleeping", "tags": tags})

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return reply({"is_sleeping": bool(self._condition.asleep)})

    async def _release(self, _: web.Request) -> web.Response:
        with self._operations.recorded(SLEEP, "release_kv_cache_memory"):
            if not self._runner.paused:
                told = "Call to release_kv_cache_memory method failed: release_kv_cache_memory()"
                raise internal(f"{told} requires a completed pause first")
            self._runner.forget()
        return reply({"status": "kv_cache_released"})

    async def _pause(self, request: web.Request) -> web.Response:
        await self._stand(_mode(request))
        return reply({"status": "paused"})

    async def _resume(self, _: web.Request) -> web.Response:
        self._runner.resume()
        return reply({"status": "resumed"})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return reply({"is_paused": self._runner.paused})

    async def _stand(self, mode: str) -> None:
        """Abort who is in the engine, wait for them, or keep them where they are."""
        if mode == "wait":
            await self._runner.finish()
            return
        self._runner.pause()
        if mode == "abort":
            self._runner.abort_running()

    async def _abort(self, request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        ended = self._desk.abort(set(body.get("request_ids") or ()))
        return reply({"status": "aborted", "aborted": ended})

    async def _reset(self, _: web.Request) -> web.Response:
        self._runner.forget()
        return reply({"success": True})

    async def _nothing(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _call(self, request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        if "method" not in body:
            raise ApiError(400, "Missing 'method' in request body", "Bad Request")
        raise internal("Call to collective_rpc method failed: this look-alike has no workers")

    async def _info(self, request: web.Request) -> web.Response:
        launch = self._desk.launch
        told: Any = {"model_config": {"model": launch.arguments.named_model}}
        if request.query.get("config_format", "text") != "json":
            told = f"model='{launch.arguments.named_model}', served_model_name={launch.names[0]}"
        env = {"VLLM_SERVER_DEV_MODE": True}
        system = {"vllm_version": VERSION, "is_cuda_available": False}
        return reply({"vllm_config": told, "vllm_env": env, "system_env": system})

    async def _world(self, _: web.Request) -> web.Response:
        return reply({"world_size": self._desk.launch.place.devices})

    async def _weights(self, _: web.Request) -> web.Response:
        return reply({"weight_version": "default"})

    async def _shut_down(self, _: web.Request) -> web.Response:
        with self._operations.recorded(WEIGHTS, "shutdown"):
            return reply({"message": "Weight transfer shut down"})

    def _no_transfer(self, operation: str) -> Handler:
        async def refused(_: web.Request) -> web.Response:
            with self._operations.recorded(WEIGHTS, operation):
                raise internal(_NO_TRANSFER)

        return refused


def _needs(field: str) -> Handler:
    """A route that no body satisfies: without the field it says so, with it that it cannot."""

    async def refused(request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        if field not in body:
            raise missing(field)
        raise internal(_NO_TRANSFER)

    return refused


def _level(request: web.Request) -> int:
    given = request.query.get("level", "1")
    try:
        level = int(given)
    except ValueError:
        told = "Input should be a valid integer, unable to parse string as an integer"
        raise _wrong("int_parsing", "level", told, given) from None
    if level < 0:
        told = "Input should be greater than or equal to 0"
        raise _wrong("greater_than_equal", "level", told, given)
    if level > _DEEPEST:
        told = f"Input should be less than or equal to {_DEEPEST}"
        raise _wrong("less_than_equal", "level", told, given)
    return level


def _mode(request: web.Request) -> str:
    given = request.query.get("mode", _PAUSES[0])
    if given not in _PAUSES:
        told = "Input should be 'abort', 'wait' or 'keep'"
        raise _wrong("literal_error", "mode", told, given)
    return given


def _wrong(kind: str, name: str, message: str, given: str) -> ApiError:
    return invalid([{"type": kind, "loc": f"query.{name}", "msg": message, "input": given}])
