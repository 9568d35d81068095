"""Wires the parts of one engine."""

import asyncio
from dataclasses import dataclass

from aiohttp import web

from tessera.domain.model.paths import own_paths
from tessera_lab.engine import EngineCore
from tessera_lab.sim.collector import build_registry
from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.engine_state import EngineState
from tessera_lab.sim.launch.engine_config import EngineConfig
from tessera_lab.sim.meters import EngineMeters
from tessera_lab.sim.routes.adapters import adapter_routes
from tessera_lab.sim.routes.basic import basic_routes
from tessera_lab.sim.routes.development import SleepMeters, development_routes
from tessera_lab.sim.routes.embeddings import embedding_routes
from tessera_lab.sim.routes.faults import fault_routes
from tessera_lab.sim.routes.generation import generation_routes
from tessera_lab.sim.routes.scoring import scoring_routes
from tessera_lab.sim.runner import EngineRunner
from tessera_lab.sim.server import EngineServer, HttpMeters


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledEngine:
    """One engine that does not run yet."""

    app: web.Application
    dispatcher: GenerationDispatcher
    runner: EngineRunner
    crashed: asyncio.Event
    """Set when the engine has died."""


def assemble_engine(config: EngineConfig) -> AssembledEngine:
    """Return the configured engine with the routes that it serves."""
    engine = EngineCore(config.limits, config.speed, config.speculation)
    meters = EngineMeters(
        config.facts.metrics, config.draft_tokens, generates=not config.is_pooling
    )
    runner = EngineRunner(engine, meters, asyncio.get_running_loop().time)
    state = EngineState(runner, dict(config.adapters))
    metrics_registry = build_registry(config, engine, meters, state)
    dispatcher = GenerationDispatcher(config, runner, state)
    crashed = asyncio.Event()

    def crash() -> None:
        state.alive = False
        runner.fail_all()
        crashed.set()

    work_routes = (
        _pooling_routes(dispatcher) if config.is_pooling else generation_routes(dispatcher)
    )
    routes = [*basic_routes(dispatcher, metrics_registry), *work_routes]
    if config.allows_adapter_updates:
        routes += adapter_routes(state.adapter_paths)
    if config.dev_mode:
        sleep_meters = SleepMeters(config.facts.metrics, metrics_registry)
        routes += development_routes(state, runner, sleep_meters)
    routes += fault_routes(runner, state, crash)
    http_meters = HttpMeters(config.facts.metrics, metrics_registry)
    app = EngineServer(dispatcher, http_meters, routes).app()
    return AssembledEngine(app=app, dispatcher=dispatcher, runner=runner, crashed=crashed)


def _pooling_routes(dispatcher: GenerationDispatcher) -> list[web.RouteDef]:
    """Return the routes of what the model returns; one that generates text is made to embed."""
    served = own_paths(dispatcher.config.shape.pooling or "Embed")
    routes = [*embedding_routes(dispatcher), *scoring_routes(dispatcher)]
    return [each for each in routes if each.path in served]
