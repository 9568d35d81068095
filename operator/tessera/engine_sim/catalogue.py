"""`/v1/models`: one entry for each served name, then the adapters with their base."""

from collections.abc import Mapping
from typing import Any

from tessera.engine_sim.launch import Launch


def models(launch: Launch, adapters: Mapping[str, str], created: int) -> dict[str, Any]:
    """The page; `adapters` are paths by name."""
    loaded = [
        _model(name, launch, created)
        | {"root": path, "parent": launch.names[0], "max_model_len": None}
        for name, path in adapters.items()
    ]
    data = [*(_model(name, launch, created) for name in launch.names), *loaded]
    return {"object": "list", "data": data}


def _model(name: str, launch: Launch, created: int) -> dict[str, Any]:
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
        "root": launch.arguments.named_model,
        "parent": None,
        "max_model_len": launch.limits.max_model_len,
        "permission": [permission],
    }
