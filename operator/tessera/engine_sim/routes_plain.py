"""Routes that every engine has and that generate nothing."""

from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tessera.engine_sim import catalogue, checks, text
from tessera.engine_sim.bodies import (
    Detokenize,
    Prompt,
    Tokenize,
    chat_prompt,
    missing,
    parse,
    parse_json,
)
from tessera.engine_sim.desk import Desk
from tessera.engine_sim.errors import ApiError
from tessera.engine_sim.launch import VERSION
from tessera.engine_sim.replies import reply

SCALE_OUT = (
    "/v1/chat/completions/render",
    "/v1/messages/render",
    "/v1/completions/render",
    "/v1/responses/render",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
)
"""Closed unless the engine is told to share its work with others, which this one never does."""


class Plain:
    """Health, models, tokens, metrics."""

    def __init__(self, desk: Desk, registry: CollectorRegistry) -> None:
        self._desk = desk
        self._registry = registry
        self._spelt: dict[int, str] = {}
        """Tokens that were given out as numbers, for who asks back."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._healthy, allow_head=False),
            web.get("/ping", self._healthy, allow_head=False),
            web.post("/ping", self._healthy),
            web.get("/load", self._load, allow_head=False),
            web.get("/version", self._version, allow_head=False),
            web.get("/kv_event_sources", self._nothing, allow_head=False),
            web.get("/metrics", self._metrics, allow_head=False),
            web.get("/v1/models", self._models, allow_head=False),
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.post("/v1/systemone", self._system_one),
            web.post("/scale_elastic_ep", self._scale),
            web.post("/is_scaling_elastic_ep", self._scaling),
            *(web.post(path, self._closed) for path in SCALE_OUT),
        ]

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._desk.condition.alive else 503)

    async def _load(self, _: web.Request) -> web.Response:
        tracked = self._desk.launch.arguments.enable_server_load_tracking
        return reply({"server_load": self._desk.load if tracked else 0})

    async def _version(self, _: web.Request) -> web.Response:
        return reply({"version": VERSION})

    async def _nothing(self, _: web.Request) -> web.Response:
        return reply({})

    async def _metrics(self, _: web.Request) -> web.Response:
        shown = generate_latest(self._registry)
        return web.Response(body=shown, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _models(self, _: web.Request) -> web.Response:
        desk = self._desk
        return reply(catalogue.models(desk.launch, desk.condition.loaded, desk.created))

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = parse(Tokenize, await request.read(), request.content_type)
        self._check(body.model)
        if body.prompt is None and body.messages is None:
            raise missing("prompt", "messages")
        given = body.prompt or ""
        prompt = Prompt(given, text.count(given)) if body.messages is None else None
        pieces = (prompt or chat_prompt(body.messages or [])).pieces()
        tokens = list(map(text.token_id, pieces))
        self._spelt.update(zip(tokens, pieces, strict=True))
        return reply(
            {
                "count": len(tokens),
                "max_model_len": self._desk.launch.limits.max_model_len,
                "tokens": tokens,
                "token_strs": pieces if body.return_token_strs else None,
            }
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = parse(Detokenize, await request.read(), request.content_type)
        self._check(body.model)
        pieces = (self._spelt.get(token) or text.word(token) for token in body.tokens)
        return reply({"prompt": "".join(pieces)})

    async def _system_one(self, request: web.Request) -> web.Response:
        """The experimental route is there, but nothing answers behind it."""
        await self._fields(request, "state", "questions")
        raise ApiError(501, "this look-alike has no /v1/systemone", "NotImplementedError")

    async def _scale(self, request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        if "new_data_parallel_size" not in body:
            raise ApiError(400, "new_data_parallel_size is required", "Bad Request")
        raise ApiError(500, "Scale failed", "Internal Server Error")

    async def _scaling(self, _: web.Request) -> web.Response:
        return reply({"is_scaling_elastic_ep": False})

    async def _closed(self, _: web.Request) -> web.Response:
        told = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to"
        raise ApiError(403, f"{told} enable them.", "PermissionDeniedError")

    async def _fields(self, request: web.Request, *names: str) -> Any:
        body = parse_json(await request.read(), request.content_type)
        absent = [name for name in names if name not in body]
        if absent:
            raise missing(*absent)
        return body

    def _check(self, model: str | None) -> None:
        checks.model(model, self._desk.launch, self._desk.condition.loaded)
