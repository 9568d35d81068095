"""The HTTP server of one engine: manners of all routes, and which routes there are."""

import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from tessera.engine_sim.desk import Desk, request_id
from tessera.engine_sim.errors import ApiError
from tessera.engine_sim.http_meters import UNKNOWN, HttpMeters
from tessera.engine_sim.replies import Said, reply

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY = 256 * 2**20
_FAILED = 500


class Server:
    """Keys, errors in the engine's form, and the metrics of requests."""

    def __init__(self, desk: Desk, meters: HttpMeters, routes: list[web.RouteDef]) -> None:
        self._desk = desk
        self._meters = meters
        self._routes = routes

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._mannered], client_max_size=_LARGEST_BODY)
        app.on_response_prepare.append(self._last_touch)
        app.add_routes(self._routes)
        return app

    @web.middleware
    async def _mannered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        answer = await self._answered(request, handler)
        seconds = time.monotonic() - began
        sizes = (request.content_length or 0, answer.content_length or 0)
        self._meters.answered(_route(request), request.method, answer.status, seconds, sizes)
        return answer

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._allowed(request):
            return reply({"error": "Unauthorized"}, 401)
        try:
            return await handler(request)
        except ApiError as error:
            return reply(error.body, error.status)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            return reply({"detail": error.reason}, error.status)

    def _allowed(self, request: web.Request) -> bool:
        """Keys guard `/v1` alone."""
        keys = self._desk.launch.api_keys
        if not keys or not request.path.startswith("/v1"):
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key in keys

    async def _last_touch(self, request: web.Request, response: web.StreamResponse) -> None:
        """Headers: an echoed id, save with a failure of the engine's own, and no type of a text."""
        echoes = self._desk.launch.arguments.enable_request_id_headers
        if echoes and response.status != _FAILED:
            response.headers["X-Request-Id"] = request_id(request)
        if isinstance(response, Said):
            del response.headers["Content-Type"]


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return UNKNOWN if resource is None else resource.canonical
