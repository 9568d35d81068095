"""Routes that no engine has: they inject faults on demand."""

from collections.abc import Callable

from aiohttp import web

from tessera_lab.sim.engine_state import EngineState
from tessera_lab.sim.errors import EngineApiError
from tessera_lab.sim.runner import EngineRunner
from tessera_lab.sim.server import json_reply


class FaultRoutes:
    """The routes under `/sim`."""

    def __init__(self, runner: EngineRunner, state: EngineState, crash: Callable[[], None]) -> None:
        self._runner = runner
        self._state = state
        self._crash_now = crash

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/sim/busy", self._busy, allow_head=False),
            web.post("/sim/freeze", self._freeze),
            web.post("/sim/thaw", self._thaw),
            web.post("/sim/stall", self._stall),
            web.post("/sim/nan", self._show_nan),
            web.delete("/sim/nan", self._show_numbers),
            web.post("/sim/crash", self._crash),
        ]

    async def _busy(self, _: web.Request) -> web.Response:
        """Return the seconds of work so far, for simulated device metrics."""
        return json_reply({"busy_seconds": self._runner.busy_seconds()})

    async def _freeze(self, _: web.Request) -> web.Response:
        """Halt the engine until it is thawed."""
        self._runner.freeze()
        return web.Response()

    async def _thaw(self, _: web.Request) -> web.Response:
        """Continue in the middle of the step."""
        self._runner.thaw()
        return web.Response()

    async def _stall(self, request: web.Request) -> web.Response:
        """Halt the engine for so many seconds."""
        value = request.query.get("seconds", "")
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1
        if not seconds > 0:
            message = f"/sim/stall?seconds={value}: expected a number of seconds above 0"
            raise EngineApiError(400, message, "BadRequestError", "seconds")
        self._runner.freeze(seconds)
        return web.Response()

    async def _show_nan(self, _: web.Request) -> web.Response:
        """Show NaN in place of every counter and gauge."""
        self._state.shows_nan = True
        return web.Response()

    async def _show_numbers(self, _: web.Request) -> web.Response:
        """Show the numbers again, which have moved meanwhile."""
        self._state.shows_nan = False
        return web.Response()

    async def _crash(self, _: web.Request) -> web.Response:
        """Let the engine die, and its API server soon after it."""
        self._crash_now()
        return web.Response()
