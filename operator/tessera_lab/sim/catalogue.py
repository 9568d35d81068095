"""`/v1/models`: one entry for each served name, then the adapters with their base."""

from collections.abc import Mapping
from typing import Any

from tessera_lab.sim.launch import EngineConfig


def model_list(config: EngineConfig, adapters: Mapping[str, str], created: int) -> dict[str, Any]:
    """The page; `adapters` are paths by name."""
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
