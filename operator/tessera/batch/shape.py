"""`tessera-batch shape`: reads a model's `config.json` and reports its shape."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.batch.errors import BatchError, RefusedError
from tessera.batch.hub import connected
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
            found, size, commit = _mounted(folder)
        else:
            found, size, commit = await _at_the_hub(uri, revision, endpoint, token)
    except BatchError as error:
        return error.code, _report(message=str(error))
    read = config.read_config(found, size)
    if isinstance(read, UnsupportedConfig):
        return RefusedError.code, _report(message=f"{_CONFIG} of {uri}: {read.message}")
    told = read.model_dump(by_alias=True, exclude_none=True)
    return 0, _report(ok=True, shape=told, commit=commit)


def _report(**fields: Any) -> dict[str, Any]:
    return {"phase": "shape", "ok": False, **fields}


Found = tuple[Mapping[str, Any], int | None, str]


async def _at_the_hub(
    uri: str, revision: str | None, endpoint: str | None, token: str | None
) -> Found:
    async with connected(endpoint, token, uri) as hub:
        found, commit = await hub.object(revision or _DEFAULT_REVISION, _CONFIG)
        try:
            index, _ = await hub.object(commit or revision or _DEFAULT_REVISION, _INDEX)
        except RefusedError:  # a small model has no index
            index = {}
    return found, _size(index), commit


def _mounted(folder: Path) -> Found:
    found = _read(folder / _CONFIG)
    if found is None:
        raise RefusedError(f"{folder / _CONFIG} does not exist; correct spec.model.uri")
    return found, _size(_read(folder / _INDEX) or {}), ""


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise RefusedError(f"{path} is not an object")
    return found


def _size(index: Mapping[str, Any]) -> int | None:
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(total) if isinstance(total, int | float) and total > 0 else None
