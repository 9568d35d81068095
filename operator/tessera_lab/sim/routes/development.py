"""Routes of development mode (`VLLM_SERVER_DEV_MODE=1`)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, Histogram

from tessera.domain.vllm.facts import Metric
from tessera_lab.sim.bodies import validation_error
from tessera_lab.sim.engine_state import EngineState
from tessera_lab.sim.errors import EngineApiError
from tessera_lab.sim.meters import PREFIX
from tessera_lab.sim.runner import EngineRunner
from tessera_lab.sim.server import json_reply

_MAX_SLEEP_LEVEL = 2
_PAUSE_MODES = ("abort", "wait", "keep")


class DevelopmentRoutes:
    """Sleep, wake, pause, resume, and reset the prefix cache."""

    def __init__(
        self, state: EngineState, runner: EngineRunner, sleep_meters: "SleepMeters"
    ) -> None:
        self._state = state
        self._runner = runner
        self._sleep_meters = sleep_meters

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/sleep", self._sleep),
            web.post("/wake_up", self._wake),
            web.get("/is_sleeping", self._is_sleeping, allow_head=False),
            web.post("/pause", self._pause),
            web.post("/resume", self._resume),
            web.get("/is_paused", self._is_paused, allow_head=False),
            web.post("/reset_prefix_cache", self._reset),
        ]

    async def _sleep(self, request: web.Request) -> web.Response:
        level = _sleep_level(request)
        with self._sleep_meters.record("sleep"):
            await self._halt(_pause_mode(request))
            if level:
                self._state.sleep(level)
        return json_reply({"status": "sleeping", "level": level})

    async def _wake(self, request: web.Request) -> web.Response:
        tags = request.query.getall("tags", []) or None
        with self._sleep_meters.record("wake"):
            awake = self._state.wake(tags)
        return json_reply({"status": "awake" if awake else "sleeping", "tags": tags})

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return json_reply({"is_sleeping": bool(self._state.sleeping_tags)})

    async def _pause(self, request: web.Request) -> web.Response:
        await self._halt(_pause_mode(request))
        return json_reply({"status": "paused"})

    async def _resume(self, _: web.Request) -> web.Response:
        self._runner.resume()
        return json_reply({"status": "resumed"})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return json_reply({"is_paused": self._runner.paused})

    async def _halt(self, mode: str) -> None:
        """Pause, and abort the requests in the engine, wait for them, or keep them."""
        if mode == "wait":
            await self._runner.finish_and_pause()
            return
        self._runner.pause()
        if mode == "abort":
            self._runner.abort_running()

    async def _reset(self, _: web.Request) -> web.Response:
        self._runner.reset_prefix_cache()
        return json_reply({"success": True})


class SleepMeters:
    """Duration of each sleep and wake, and how many are in progress."""

    def __init__(self, metrics: Mapping[str, Metric], registry: CollectorRegistry) -> None:
        self._metrics = metrics
        self._registry = registry
        # vLLM registers both metrics with the first operation.
        self._meters: tuple[Histogram, Gauge] | None = None

    @contextmanager
    def record(self, operation: str) -> Iterator[None]:
        """Count and time the operation, whether or not it succeeds."""
        if self._meters is None:
            self._meters = self._register()
        duration, in_progress = self._meters
        started = time.monotonic()
        with in_progress.labels(operation).track_inprogress():
            try:
                yield
            finally:
                duration.labels(operation).observe(time.monotonic() - started)

    def _register(self) -> tuple[Histogram, Gauge]:
        metric = self._metrics[f"{PREFIX}sleep_mode_operation_duration_seconds"]
        duration = Histogram(
            metric.name,
            "",
            labelnames=metric.labels,
            buckets=metric.buckets,
            registry=self._registry,
        )
        name = f"{PREFIX}sleep_mode_operations_in_flight"
        return duration, Gauge(name, "", labelnames=metric.labels, registry=self._registry)


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
