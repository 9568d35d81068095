"""Routes that every engine has and that generate no text."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.launch.engine_config import VERSION, EngineConfig
from tessera_lab.sim.server import answering


def basic_routes(
    dispatcher: GenerationDispatcher, registry: CollectorRegistry
) -> list[web.RouteDef]:
    """Return health, load, version, models and metrics."""
    config, state = dispatcher.config, dispatcher.state

    async def health(_: web.Request) -> web.Response:
        return web.Response(status=200 if state.alive else 503)

    def load() -> object:
        tracked = config.arguments.enable_server_load_tracking
        return {"server_load": dispatcher.active_count if tracked else 0}

    async def metrics(_: web.Request) -> web.Response:
        page = generate_latest(registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def models() -> object:
        return _model_list(config, state.adapter_paths, dispatcher.created)

    return [
        web.get("/health", health, allow_head=False),
        web.get("/ping", health, allow_head=False),
        web.post("/ping", health),
        web.get("/load", answering(load), allow_head=False),
        web.get("/version", answering(lambda: {"version": VERSION}), allow_head=False),
        web.get("/metrics", metrics, allow_head=False),
        web.get("/v1/models", answering(models), allow_head=False),
    ]


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
