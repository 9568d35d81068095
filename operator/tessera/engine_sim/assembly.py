"""Puts the parts of one engine together."""

import asyncio
from dataclasses import dataclass

from aiohttp import web

from tessera.domain.engine import EngineCore
from tessera.engine_sim.condition import EngineState
from tessera.engine_sim.desk import GenerationDispatcher
from tessera.engine_sim.exposition import build_registry
from tessera.engine_sim.http_meters import HttpMeters
from tessera.engine_sim.launch import EngineConfig
from tessera.engine_sim.meters import EngineMeters
from tessera.engine_sim.operations import OperationMetrics
from tessera.engine_sim.pages import pages
from tessera.engine_sim.routes_adapters import AdapterRoutes
from tessera.engine_sim.routes_development import DevelopmentRoutes
from tessera.engine_sim.routes_faults import FaultRoutes
from tessera.engine_sim.routes_generation import GenerationRoutes
from tessera.engine_sim.routes_plain import BasicRoutes
from tessera.engine_sim.runner import EngineRunner
from tessera.engine_sim.server import EngineServer


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledEngine:
    """One engine, not yet running."""

    app: web.Application
    dispatcher: GenerationDispatcher
    runner: EngineRunner
    crashed: asyncio.Event
    """Its engine is dead."""


def assemble_engine(config: EngineConfig) -> AssembledEngine:
    """The engine that was launched, with the routes that it opens."""
    engine, meters = EngineCore(config.limits, config.speed), EngineMeters(config.facts.metrics)
    runner = EngineRunner(engine, meters, asyncio.get_running_loop().time)
    state = EngineState(runner, dict(config.adapters))
    metrics_registry = build_registry(config, engine, meters, state)
    dispatcher = GenerationDispatcher(config, runner, state)
    crashed = asyncio.Event()

    def crash() -> None:
        state.alive = False
        runner.fail_all()
        crashed.set()

    routes = [
        *BasicRoutes(dispatcher, metrics_registry).routes(),
        *GenerationRoutes(dispatcher).routes(),
    ]
    if config.allows_adapter_updates:
        routes += AdapterRoutes(dispatcher).routes()
    if config.dev_mode:
        operations = OperationMetrics(config.facts.metrics, metrics_registry)
        routes += DevelopmentRoutes(dispatcher, runner, operations).routes()
    routes += FaultRoutes(runner, crash).routes()
    routes += pages(routes)
    http_meters = HttpMeters(config.facts.metrics, metrics_registry)
    return AssembledEngine(
        app=EngineServer(dispatcher, http_meters, routes).app(),
        dispatcher=dispatcher,
        runner=runner,
        crashed=crashed,
    )
