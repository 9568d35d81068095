"""Puts the parts of one engine together."""

import asyncio
from dataclasses import dataclass

from aiohttp import web

from tessera.domain.engine import Engine
from tessera.engine_sim.condition import Condition
from tessera.engine_sim.desk import Desk
from tessera.engine_sim.exposition import registry
from tessera.engine_sim.http_meters import HttpMeters
from tessera.engine_sim.launch import Launch
from tessera.engine_sim.meters import Meters
from tessera.engine_sim.operations import Operations
from tessera.engine_sim.pages import pages
from tessera.engine_sim.routes_adapters import Adapters
from tessera.engine_sim.routes_development import Development
from tessera.engine_sim.routes_faults import Faults
from tessera.engine_sim.routes_generation import Generation
from tessera.engine_sim.routes_plain import Plain
from tessera.engine_sim.runner import Runner
from tessera.engine_sim.server import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One engine, not yet running."""

    app: web.Application
    desk: Desk
    runner: Runner
    crashed: asyncio.Event
    """Its engine is dead."""


def assemble(launch: Launch) -> Made:
    """The engine that was launched, with the routes that it opens."""
    engine, meters = Engine(launch.limits, launch.speed), Meters(launch.facts.metrics)
    runner = Runner(engine, meters, asyncio.get_running_loop().time)
    condition = Condition(runner, dict(launch.adapters))
    shown = registry(launch, engine, meters, condition)
    desk = Desk(launch, runner, condition)
    crashed = asyncio.Event()

    def crash() -> None:
        condition.alive = False
        runner.break_all()
        crashed.set()

    routes = [*Plain(desk, shown).routes(), *Generation(desk).routes()]
    if launch.changes_adapters:
        routes += Adapters(desk).routes()
    if launch.development:
        operations = Operations(launch.facts.metrics, shown)
        routes += Development(desk, runner, operations).routes()
    routes += Faults(runner, crash).routes()
    routes += pages(routes)
    http = HttpMeters(launch.facts.metrics, shown)
    return Made(app=Server(desk, http, routes).app(), desk=desk, runner=runner, crashed=crashed)
