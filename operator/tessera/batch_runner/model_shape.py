"""`tessera-batch shape`: reads a model's `config.json` and reports its shape."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.batch_runner.errors import BatchError, RefusedError
from tessera.batch_runner.hub import open_repository
from tessera.domain.model import config
from tessera.domain.model.config import UnsupportedConfig

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_DEFAULT_REVISION = "main"


async def shape(
    uri: str, revision: str | None, folder: Path | None, endpoint: str | None, token: str | None
) -> tuple[int, dict[str, Any]]:
    """Exit code and report: 0 understood, 1 may pass, 3 the user has to do something."""
    try:
        if folder is not None:
            model_config, size, commit = _load_from_folder(folder)
        else:
            model_config, size, commit = await _load_from_hub(uri, revision, endpoint, token)
    except BatchError as error:
        return error.code, _report(message=str(error))
    parsed = config.read_config(model_config, size)
    if isinstance(parsed, UnsupportedConfig):
        return RefusedError.code, _report(message=f"{_CONFIG} of {uri}: {parsed.message}")
    fields = parsed.model_dump(by_alias=True, exclude_none=True)
    return 0, _report(ok=True, shape=fields, commit=commit)


def _report(**fields: Any) -> dict[str, Any]:
    return {"phase": "shape", "ok": False, **fields}


LoadedConfig = tuple[Mapping[str, Any], int | None, str]


async def _load_from_hub(
    uri: str, revision: str | None, endpoint: str | None, token: str | None
) -> LoadedConfig:
    async with open_repository(endpoint, token, uri) as hub:
        model_config, commit = await hub.read_json(revision or _DEFAULT_REVISION, _CONFIG)
        try:
            index, _ = await hub.read_json(commit or revision or _DEFAULT_REVISION, _INDEX)
        except RefusedError:  # a small model has no index
            index = {}
    return model_config, _weights_size(index), commit


def _load_from_folder(folder: Path) -> LoadedConfig:
    model_config = _read_object(folder / _CONFIG)
    if model_config is None:
        raise RefusedError(f"{folder / _CONFIG} does not exist; correct spec.model.uri")
    return model_config, _weights_size(_read_object(folder / _INDEX) or {}), ""


def _read_object(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise RefusedError(f"{path} is not an object")
    return value


def _weights_size(index: Mapping[str, Any]) -> int | None:
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(total) if isinstance(total, int | float) and total > 0 else None
