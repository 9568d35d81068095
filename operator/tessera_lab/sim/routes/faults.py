"""Routes that no engine has: they inject faults on demand."""

from collections.abc import Callable
from functools import partial

from aiohttp import web

from tessera_lab.sim.engine_state import EngineState
from tessera_lab.sim.errors import bad_request
from tessera_lab.sim.runner import EngineRunner
from tessera_lab.sim.server import answering


def fault_routes(
    runner: EngineRunner, state: EngineState, crash: Callable[[], None]
) -> list[web.RouteDef]:
    """Return the routes under `/sim`."""

    def busy() -> dict[str, float]:
        return {"busy_seconds": runner.busy_seconds()}

    async def stall(request: web.Request) -> web.Response:
        """Halt the engine for so many seconds."""
        value = request.query.get("seconds", "")
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1
        if not seconds > 0:
            message = f"/sim/stall?seconds={value}: expected a number of seconds above 0"
            raise bad_request(message, "seconds")
        runner.freeze(seconds)
        return web.Response()

    return [
        # The seconds of work so far, for simulated device metrics.
        web.get("/sim/busy", answering(busy), allow_head=False),
        # Frozen until it is thawed, it continues in the middle of the step.
        web.post("/sim/freeze", answering(runner.freeze)),
        web.post("/sim/thaw", answering(runner.thaw)),
        web.post("/sim/stall", stall),
        # NaN stands in place of every counter and gauge, which move meanwhile.
        web.post("/sim/nan", answering(partial(setattr, state, "shows_nan", True))),
        web.delete("/sim/nan", answering(partial(setattr, state, "shows_nan", False))),
        # The engine dies, and its API server soon after it.
        web.post("/sim/crash", answering(crash)),
    ]
