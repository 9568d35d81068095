"""Routes of development mode (`VLLM_SERVER_DEV_MODE=1`)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, Histogram
from pydantic import BaseModel, Field

from tessera.domain.vllm.facts import Metric
from tessera_lab.sim.bodies import validated
from tessera_lab.sim.engine_state import EngineState
from tessera_lab.sim.meters import PREFIX
from tessera_lab.sim.runner import EngineRunner
from tessera_lab.sim.server import answering, json_reply


class PauseQuery(BaseModel):
    """Parameters of `/pause`."""

    mode: Literal["abort", "wait", "keep"] = "abort"
    """What becomes of the requests in the engine."""


class SleepQuery(PauseQuery):
    """Parameters of `/sleep`."""

    level: Annotated[int, Field(ge=0, le=2)] = 1


def development_routes(
    state: EngineState, runner: EngineRunner, sleep_meters: "SleepMeters"
) -> list[web.RouteDef]:
    """Return sleep, wake, pause, resume, and the reset of the prefix cache."""

    async def halt(mode: str) -> None:
        if mode == "wait":
            await runner.finish_and_pause()
            return
        runner.pause()
        if mode == "abort":
            runner.abort_running()

    async def sleep(request: web.Request) -> web.Response:
        query = validated(SleepQuery, dict(request.query), "query")
        with sleep_meters.record("sleep"):
            await halt(query.mode)
            if query.level:
                state.sleep(query.level)
        return json_reply({"status": "sleeping", "level": query.level})

    async def wake(request: web.Request) -> web.Response:
        tags = request.query.getall("tags", []) or None
        with sleep_meters.record("wake"):
            awake = state.wake(tags)
        return json_reply({"status": "awake" if awake else "sleeping", "tags": tags})

    async def pause(request: web.Request) -> web.Response:
        await halt(validated(PauseQuery, dict(request.query), "query").mode)
        return json_reply({"status": "paused"})

    def resume() -> object:
        runner.resume()
        return {"status": "resumed"}

    def reset() -> object:
        runner.reset_prefix_cache()
        return {"success": True}

    return [
        web.post("/sleep", sleep),
        web.post("/wake_up", wake),
        web.get(
            "/is_sleeping",
            answering(lambda: {"is_sleeping": bool(state.sleeping_tags)}),
            allow_head=False,
        ),
        web.post("/pause", pause),
        web.post("/resume", answering(resume)),
        web.get("/is_paused", answering(lambda: {"is_paused": runner.paused}), allow_head=False),
        web.post("/reset_prefix_cache", answering(reset)),
    ]


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
