"""The HTTP server of one engine: manners of all routes, and which routes there are."""

import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from tessera_lab.sim.desk import GenerationDispatcher, request_id
from tessera_lab.sim.errors import EngineApiError
from tessera_lab.sim.http_meters import UNKNOWN_ROUTE, HttpMeters
from tessera_lab.sim.replies import UntypedResponse, json_reply

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY = 256 * 2**20
_INTERNAL_ERROR = 500


class EngineServer:
    """Keys, errors in the engine's form, and the metrics of requests."""

    def __init__(
        self, dispatcher: GenerationDispatcher, meters: HttpMeters, routes: list[web.RouteDef]
    ) -> None:
        self._dispatcher = dispatcher
        self._meters = meters
        self._routes = routes

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._observe_request], client_max_size=_LARGEST_BODY)
        app.on_response_prepare.append(self._set_headers)
        app.add_routes(self._routes)
        return app

    @web.middleware
    async def _observe_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        response = await self._handle(request, handler)
        seconds = time.monotonic() - started
        sizes = (request.content_length or 0, response.content_length or 0)
        self._meters.observe(_route_name(request), request.method, response.status, seconds, sizes)
        return response

    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._is_authorized(request):
            return json_reply({"error": "Unauthorized"}, 401)
        try:
            return await handler(request)
        except EngineApiError as error:
            return json_reply(error.body, error.status)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            return json_reply({"detail": error.reason}, error.status)

    def _is_authorized(self, request: web.Request) -> bool:
        """Keys guard `/v1` alone."""
        keys = self._dispatcher.config.api_keys
        if not keys or not request.path.startswith("/v1"):
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key in keys

    async def _set_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Headers: an echoed id, save with a failure of the engine's own, and no type of a text."""
        echoes_id = self._dispatcher.config.arguments.enable_request_id_headers
        if echoes_id and response.status != _INTERNAL_ERROR:
            response.headers["X-Request-Id"] = request_id(request)
        if isinstance(response, UntypedResponse):
            del response.headers["Content-Type"]


def _route_name(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return UNKNOWN_ROUTE if resource is None else resource.canonical
