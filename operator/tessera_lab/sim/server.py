"""The HTTP server of one engine: authorization, errors, and metrics of all paths."""

import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from tessera.domain.vllm.facts import Metric
from tessera_lab.sim.dispatcher import GenerationDispatcher, request_id
from tessera_lab.sim.encoders import dump_json
from tessera_lab.sim.errors import EngineApiError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY = 256 * 2**20
_INTERNAL_ERROR = 500
# Paths that are not counted.
UNCOUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version"})
# Stands for a path that there is not.
UNKNOWN_PATH = "none"


class HttpMeters:
    """The `http_*` metrics: requests by path, method and class of status."""

    def __init__(self, metrics: Mapping[str, Metric], registry: CollectorRegistry) -> None:
        def histogram(name: str) -> Histogram:
            metric = metrics[name]
            return Histogram(
                name, "", labelnames=metric.labels, buckets=metric.buckets, registry=registry
            )

        self._requests = Counter(
            "http_requests", "", labelnames=("method", "status", "handler"), registry=registry
        )
        self._request_bytes = Summary(
            "http_request_size_bytes", "", labelnames=("handler",), registry=registry
        )
        self._response_bytes = Summary(
            "http_response_size_bytes", "", labelnames=("handler",), registry=registry
        )
        self._duration_fine = histogram("http_request_duration_highr_seconds")
        self._duration_coarse = histogram("http_request_duration_seconds")

    def observe(
        self, path: str, method: str, status: int, seconds: float, sizes: tuple[int, int]
    ) -> None:
        """Record a finished request; `sizes` are bytes of its body and of the response's."""
        if path in UNCOUNTED:
            return
        self._requests.labels(method, f"{status // 100}xx", path).inc()
        self._request_bytes.labels(path).observe(sizes[0])
        self._response_bytes.labels(path).observe(sizes[1])
        self._duration_fine.observe(seconds)
        self._duration_coarse.labels(handler=path, method=method).observe(seconds)


class EngineServer:
    """Authorization, errors in the engine's format, and metrics of requests."""

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
        resource = request.match_info.route.resource
        path = UNKNOWN_PATH if resource is None else resource.canonical
        self._meters.observe(path, request.method, response.status, seconds, sizes)
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
        """Return whether the key is valid; keys guard `/v1` alone."""
        keys = self._dispatcher.config.api_keys
        if not keys or not request.path.startswith("/v1"):
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key in keys

    async def _set_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Echo the request id, save with internal errors, and drop the type of plain sentences."""
        echoes_id = self._dispatcher.config.arguments.enable_request_id_headers
        if echoes_id and response.status != _INTERNAL_ERROR:
            response.headers["X-Request-Id"] = request_id(request)
        if isinstance(response, UntypedResponse):
            del response.headers["Content-Type"]


def json_reply(body: object, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.json_response(body, status=status, dumps=dump_json)


def answering(answer: Callable[[], object]) -> Handler:
    """Return a handler without parameters: it responds with JSON, or with no body for None."""

    async def handle(_: web.Request) -> web.Response:
        body = answer()
        return web.Response() if body is None else json_reply(body)

    return handle


class UntypedResponse(web.Response):
    """A sentence without a content type, as some of the engine's paths send it."""

    def __init__(self, text: str) -> None:
        super().__init__(body=text.encode())
