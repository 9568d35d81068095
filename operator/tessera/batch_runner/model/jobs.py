"""`tessera-batch shape` and `tessera-batch fetch`: the Jobs that prepare the model of a service.

`shape` reads the model's `config.json` and reports its shape; `fetch` downloads the files of the
model to a volume, once for all replicas.
"""

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import web

from tessera.batch_runner.errors import BatchError, RefusedError
from tessera.batch_runner.model.download import DownloadProgress, download
from tessera.batch_runner.model.sources import FileSource
from tessera.batch_runner.progress import serve
from tessera.domain.model import config
from tessera.domain.model.config import UnsupportedConfig
from tessera.domain.model.pooling import SentenceTransformersFiles

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
# Of sentence-transformers: the layers of an embedder, and its longest text.
_MODULES, _SETTINGS = "modules.json", "sentence_bert_config.json"

# A source that is not open yet.
ClosedSource: TypeAlias = AbstractAsyncContextManager[FileSource]


async def shape(uri: str, folder: Path | None, source: ClosedSource) -> tuple[int, dict[str, Any]]:
    """Return exit code and report: 0 done, 1 transient failure, 3 the user has to act."""
    try:
        if folder is not None:
            loaded = _load_from_folder(folder)
        else:
            loaded = await _load_from_source(source)
    except BatchError as error:
        return error.code, {"phase": "shape", "ok": False, "message": str(error)}
    parsed = config.read_config(loaded.config, loaded.total_size, loaded.sentence_files)
    if isinstance(parsed, UnsupportedConfig):
        message = f"{_CONFIG} of {uri}: {parsed.message}"
        return RefusedError.code, {"phase": "shape", "ok": False, "message": message}
    fields = parsed.model_dump(by_alias=True, exclude_none=True)
    return 0, {"phase": "shape", "ok": True, "shape": fields, "commit": loaded.commit}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """What the files of a model say of its shape."""

    config: object
    total_size: int | None
    """Bytes of all weights, where an index has them."""
    sentence_files: SentenceTransformersFiles
    commit: str = ""


async def _load_from_source(closed_source: ClosedSource) -> LoadedConfig:
    async with closed_source as source:
        model_config, commit = await source.read_json(_CONFIG)

        async def optional(name: str) -> object:
            try:
                return (await source.read_json(name))[0]
            except RefusedError:  # the model has no such file
                return None

        # A small model has no index.
        index, modules = await optional(_INDEX), await optional(_MODULES)
        settings = None if modules is None else await optional(_SETTINGS)
    return LoadedConfig(
        config=model_config,
        total_size=_weights_size(index),
        sentence_files=SentenceTransformersFiles(modules=modules, settings=settings),
        commit=commit,
    )


def _load_from_folder(folder: Path) -> LoadedConfig:
    model_config = _read_json(folder / _CONFIG)
    if model_config is None:
        raise RefusedError(f"{folder / _CONFIG} does not exist; correct spec.model.uri")
    return LoadedConfig(
        config=model_config,
        total_size=_weights_size(_read_json(folder / _INDEX)),
        sentence_files=SentenceTransformersFiles(
            modules=_read_json(folder / _MODULES), settings=_read_json(folder / _SETTINGS)
        ),
    )


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: {error}") from error


def _weights_size(index: object) -> int | None:
    metadata = index.get("metadata") if isinstance(index, dict) else None
    total_size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(total_size) if isinstance(total_size, int | float) and total_size > 0 else None


async def fetch(
    source: ClosedSource, into: Path, *, host: str, port: int, allow_pickles: bool = False
) -> tuple[int, dict[str, Any]]:
    """Return exit code and report: 0 done, 1 transient failure, 3 the user has to act."""
    progress = DownloadProgress()
    try:
        async with serve(_progress_app(progress), host, port), source as opened:
            commit = await download(opened, into, progress, allow_pickles=allow_pickles)
    except BatchError as error:
        return error.code, {"phase": "fetch", "ok": False, "message": str(error)}
    return 0, {"phase": "fetch", "ok": True, "bytes": progress.done, "commit": commit}


def _progress_app(progress: DownloadProgress) -> web.Application:
    async def show_progress(_: web.Request) -> web.Response:
        return web.json_response(asdict(progress))

    app = web.Application()
    app.router.add_get("/progress", show_progress)
    return app
