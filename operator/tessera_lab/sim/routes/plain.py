"""Routes that every engine has and that generate nothing."""

from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tessera_lab.sim import catalogue, checks, text
from tessera_lab.sim.bodies import (
    DetokenizeBody,
    Prompt,
    TokenizeBody,
    chat_prompt,
    missing_fields,
    parse_body,
    parse_json,
)
from tessera_lab.sim.desk import GenerationDispatcher
from tessera_lab.sim.errors import EngineApiError
from tessera_lab.sim.launch import VERSION
from tessera_lab.sim.replies import json_reply

# Closed unless the engine is told to share its work with others, which this one never does.
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


class BasicRoutes:
    """Health, models, tokens, metrics."""

    def __init__(self, dispatcher: GenerationDispatcher, registry: CollectorRegistry) -> None:
        self._dispatcher = dispatcher
        self._registry = registry
        self._token_texts: dict[int, str] = {}
        """Tokens that were given out as numbers, for who asks back."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health, allow_head=False),
            web.get("/ping", self._health, allow_head=False),
            web.post("/ping", self._health),
            web.get("/load", self._load, allow_head=False),
            web.get("/version", self._version, allow_head=False),
            web.get("/kv_event_sources", self._empty_object, allow_head=False),
            web.get("/metrics", self._metrics, allow_head=False),
            web.get("/v1/models", self._models, allow_head=False),
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.post("/v1/systemone", self._system_one),
            web.post("/scale_elastic_ep", self._scale),
            web.post("/is_scaling_elastic_ep", self._scaling),
            *(web.post(path, self._closed) for path in SCALE_OUT),
        ]

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._dispatcher.state.alive else 503)

    async def _load(self, _: web.Request) -> web.Response:
        tracked = self._dispatcher.config.arguments.enable_server_load_tracking
        return json_reply({"server_load": self._dispatcher.active_count if tracked else 0})

    async def _version(self, _: web.Request) -> web.Response:
        return json_reply({"version": VERSION})

    async def _empty_object(self, _: web.Request) -> web.Response:
        return json_reply({})

    async def _metrics(self, _: web.Request) -> web.Response:
        page = generate_latest(self._registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _models(self, _: web.Request) -> web.Response:
        dispatcher = self._dispatcher
        return json_reply(
            catalogue.model_list(
                dispatcher.config, dispatcher.state.adapter_paths, dispatcher.created
            )
        )

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = parse_body(TokenizeBody, await request.read(), request.content_type)
        self._check_model(body.model)
        if body.prompt is None and body.messages is None:
            raise missing_fields("prompt", "messages")
        prompt_text = body.prompt or ""
        prompt = (
            Prompt(prompt_text, text.count_tokens(prompt_text)) if body.messages is None else None
        )
        pieces = (prompt or chat_prompt(body.messages or [])).pieces()
        tokens = list(map(text.token_id, pieces))
        self._token_texts.update(zip(tokens, pieces, strict=True))
        return json_reply(
            {
                "count": len(tokens),
                "max_model_len": self._dispatcher.config.limits.max_model_len,
                "tokens": tokens,
                "token_strs": pieces if body.return_token_strs else None,
            }
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = parse_body(DetokenizeBody, await request.read(), request.content_type)
        self._check_model(body.model)
        pieces = (self._token_texts.get(token) or text.word(token) for token in body.tokens)
        return json_reply({"prompt": "".join(pieces)})

    async def _system_one(self, request: web.Request) -> web.Response:
        """The experimental route is there, but nothing answers behind it."""
        await self._require_fields(request, "state", "questions")
        raise EngineApiError(501, "this look-alike has no /v1/systemone", "NotImplementedError")

    async def _scale(self, request: web.Request) -> web.Response:
        body = parse_json(await request.read(), request.content_type)
        if "new_data_parallel_size" not in body:
            raise EngineApiError(400, "new_data_parallel_size is required", "Bad Request")
        raise EngineApiError(500, "Scale failed", "Internal Server Error")

    async def _scaling(self, _: web.Request) -> web.Response:
        return json_reply({"is_scaling_elastic_ep": False})

    async def _closed(self, _: web.Request) -> web.Response:
        message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to"
        raise EngineApiError(403, f"{message} enable them.", "PermissionDeniedError")

    async def _require_fields(self, request: web.Request, *names: str) -> Any:
        body = parse_json(await request.read(), request.content_type)
        missing_names = [name for name in names if name not in body]
        if missing_names:
            raise missing_fields(*missing_names)
        return body

    def _check_model(self, model: str | None) -> None:
        checks.served_name(model, self._dispatcher.config, self._dispatcher.state.adapter_paths)
