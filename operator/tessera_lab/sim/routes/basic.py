"""Routes that every engine has and that generate no text."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.launch.engine_config import VERSION, EngineConfig
from tessera_lab.sim.server import json_reply


class BasicRoutes:
    """Health, load, version, models and metrics."""

    def __init__(self, dispatcher: GenerationDispatcher, registry: CollectorRegistry) -> None:
        self._dispatcher = dispatcher
        self._registry = registry

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health, allow_head=False),
            web.get("/ping", self._health, allow_head=False),
            web.post("/ping", self._health),
            web.get("/load", self._load, allow_head=False),
            web.get("/version", self._version, allow_head=False),
            web.get("/metrics", self._metrics, allow_head=False),
            web.get("/v1/models", self._models, allow_head=False),
        ]

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._dispatcher.state.alive else 503)

    async def _load(self, _: web.Request) -> web.Response:
        tracked = self._dispatcher.config.arguments.enable_server_load_tracking
        return json_reply({"server_load": self._dispatcher.active_count if tracked else 0})

    async def _version(self, _: web.Request) -> web.Response:
        return json_reply({"version": VERSION})

    async def _metrics(self, _: web.Request) -> web.Response:
        page = generate_latest(self._registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _models(self, _: web.Request) -> web.Response:
        dispatcher = self._dispatcher
        body = _model_list(dispatcher.config, dispatcher.state.adapter_paths, dispatcher.created)
        return json_reply(body)


def _model_list(config: EngineConfig, adapters: Mapping[str, str], created: int) -> dict[str, Any]:
    """Return one entry per served name, then the adapters with their base model."""
    adapter_models = [
        _model_entry(name, config, created)
        | {"root": path, "parent": config.names[0], "max_model_len": None}
        for name, path in adapters.items()
    ]
    data = [*(_model_entry(name, config, created) for name in config.names), *adapter_models]
    return {"object": "list", "data": data}


def _model_entry(name: str, config: EngineConfig, created: int) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": config.arguments.named_model,
        "parent": None,
        "max_model_len": config.limits.max_model_len,
        "permission": [permission],
    }
