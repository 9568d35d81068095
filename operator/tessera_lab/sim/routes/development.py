"""Routes of development mode (`VLLM_SERVER_DEV_MODE=1`)."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tessera_lab.sim.bodies import missing_fields, parse_json, validation_error
from tessera_lab.sim.desk import GenerationDispatcher
from tessera_lab.sim.errors import EngineApiError, internal_error
from tessera_lab.sim.launch import VERSION
from tessera_lab.sim.operations import SLEEP, WEIGHTS, OperationMetrics
from tessera_lab.sim.replies import json_reply
from tessera_lab.sim.runner import EngineRunner

Handler = Callable[[web.Request], Awaitable[web.Response]]

_MAX_SLEEP_LEVEL = 2
_PAUSE_MODES = ("abort", "wait", "keep")
_NO_TRANSFER_MESSAGE = (
    "Call to collective_rpc method failed: Worker failed with error 'Weight transfer not "
    "configured. Please set weight_transfer_config to enable weight transfer.', please check the "
    "stack trace above for the root cause"
)


class DevelopmentRoutes:
    """Sleep, pause, caches; weights cannot be transferred."""

    def __init__(
        self, dispatcher: GenerationDispatcher, runner: EngineRunner, operations: OperationMetrics
    ) -> None:
        self._dispatcher = dispatcher
        self._state = dispatcher.state
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
            web.post("/reset_mm_cache", self._no_content),
            web.post("/reset_encoder_cache", self._no_content),
            web.post("/collective_rpc", self._call),
            web.get("/server_info", self._info, allow_head=False),
            web.get("/get_world_size", self._world_size, allow_head=False),
            *self._weight_routes(),
        ]

    def _weight_routes(self) -> list[web.RouteDef]:
        return [
            web.post("/init_weight_transfer_engine", _require_field("init_info")),
            web.post("/shutdown_weight_transfer_engine", self._shut_down),
            web.post("/start_weight_update", self._refuse_transfer("start")),
            web.post("/start_draft_weight_update", self._refuse_transfer("start_draft")),
            web.post("/update_weights", _require_field("update_info")),
            web.post("/finish_weight_update", self._refuse_transfer("finish")),
            web.post("/update_weight_version", _require_field("new_version")),
            web.get("/weight_info", self._weight_info, allow_head=False),
            web.post("/weight_checker", _require_field("action")),
        ]

    async def _sleep(self, request: web.Request) -> web.Response:
        level = _sleep_level(request)
        with self._operations.record(SLEEP, "sleep"):
            await self._halt(_pause_mode(request))
            if level:
                self._state.sleep(level)
        return json_reply({"status": "sleeping", "level": level})

    async def _wake(self, request: web.Request) -> web.Response:
        tags = request.query.getall("tags", []) or None
        with self._operations.record(SLEEP, "wake"):
            awake = self._state.wake(tags)
        return json_reply({"status": "awake" if awake else "sleeping", "tags": tags})

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return json_reply({"is_sleeping": bool(self._state.sleeping_tags)})

    async def _release(self, _: web.Request) -> web.Response:
        with self._operations.record(SLEEP, "release_kv_cache_memory"):
            if not self._runner.paused:
                message = "Call to release_kv_cache_memory method failed: release_kv_cache_memory()"
                raise internal_error(f"{message} requires a completed pause first")
            self._runner.reset_prefix_cache()
        return json_reply({"status": "kv_cache_released"})

    async def _pause(self, request: web.Request) -> web.Response:
        await self._halt(_pause_mode(request))
        return json_reply({"status": "paused"})

    async def _resume(self, _: web.Request) -> web.Response:
        self._runner.resume()
        return json_reply({"status": "resumed"})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return json_reply({"is_paused": self._runner.paused})

    async def _halt(self, mode: str) -> None:
        """Abort who is in the engine, wait for them, or keep them where they are."""
        if mode == "wait":
            await self._runner.finish_and_pause()
            return
        self._runner.pause()
        if mode == "abort":
            self._runner.abort_running()

    async def _abort(self, request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        ended = self._dispatcher.abort(set(body.get("request_ids") or ()))
        return json_reply({"status": "aborted", "aborted": ended})

    async def _reset(self, _: web.Request) -> web.Response:
        self._runner.reset_prefix_cache()
        return json_reply({"success": True})

    async def _no_content(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _call(self, request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        if "method" not in body:
            raise EngineApiError(400, "Missing 'method' in request body", "Bad Request")
        raise internal_error("Call to collective_rpc method failed: this look-alike has no workers")

    async def _info(self, request: web.Request) -> web.Response:
        config = self._dispatcher.config
        vllm_config: Any = {"model_config": {"model": config.arguments.named_model}}
        if request.query.get("config_format", "text") != "json":
            vllm_config = (
                f"model='{config.arguments.named_model}', served_model_name={config.names[0]}"
            )
        env = {"VLLM_SERVER_DEV_MODE": True}
        system = {"vllm_version": VERSION, "is_cuda_available": False}
        return json_reply({"vllm_config": vllm_config, "vllm_env": env, "system_env": system})

    async def _world_size(self, _: web.Request) -> web.Response:
        return json_reply({"world_size": self._dispatcher.config.hardware.devices})

    async def _weight_info(self, _: web.Request) -> web.Response:
        return json_reply({"weight_version": "default"})

    async def _shut_down(self, _: web.Request) -> web.Response:
        with self._operations.record(WEIGHTS, "shutdown"):
            return json_reply({"message": "Weight transfer shut down"})

    def _refuse_transfer(self, operation: str) -> Handler:
        async def refused(_: web.Request) -> web.Response:
            with self._operations.record(WEIGHTS, operation):
                raise internal_error(_NO_TRANSFER_MESSAGE)

        return refused


def _require_field(field: str) -> Handler:
    """A route that no body satisfies: without the field it says so, with it that it cannot."""

    async def refused(request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        if field not in body:
            raise missing_fields(field)
        raise internal_error(_NO_TRANSFER_MESSAGE)

    return refused


def _sleep_level(request: web.Request) -> int:
    value = request.query.get("level", "1")
    try:
        level = int(value)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise _invalid_query("int_parsing", "level", message, value) from None
    if level < 0:
        message = "Input should be greater than or equal to 0"
        raise _invalid_query("greater_than_equal", "level", message, value)
    if level > _MAX_SLEEP_LEVEL:
        message = f"Input should be less than or equal to {_MAX_SLEEP_LEVEL}"
        raise _invalid_query("less_than_equal", "level", message, value)
    return level


def _pause_mode(request: web.Request) -> str:
    value = request.query.get("mode", _PAUSE_MODES[0])
    if value not in _PAUSE_MODES:
        message = "Input should be 'abort', 'wait' or 'keep'"
        raise _invalid_query("literal_error", "mode", message, value)
    return value


def _invalid_query(kind: str, name: str, message: str, value: str) -> EngineApiError:
    return validation_error(
        [{"type": kind, "loc": f"query.{name}", "msg": message, "input": value}]
    )
