"""`tessera-batch shape` and `tessera-batch fetch`: the Jobs that prepare the model of a service.

`shape` reads the model's `config.json` and reports its shape; `fetch` downloads the files of the
model to a volume, once for all replicas.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from aiohttp import web

from tessera.batch_runner.errors import BatchError, RefusedError
from tessera.batch_runner.model.download import DownloadProgress, download
from tessera.batch_runner.model.sources import FileSource, NotJsonError, needed_files
from tessera.batch_runner.progress import serve
from tessera.domain.model import config
from tessera.domain.model.config import UnsupportedConfig
from tessera.domain.model.weight_files import INDEX

# A source that is not open yet.
ClosedSource: TypeAlias = AbstractAsyncContextManager[FileSource]


class _LoadedFiles(NamedTuple):
    """The files that tell the shape of a model."""

    contents: Mapping[str, object]
    """JSON values by name; of a file that does not exist there is none."""
    sizes: Mapping[str, int]
    """Bytes of the files that are downloaded or loaded, as far as the source says them."""
    commit: str = ""
    """The commit of the configuration."""


async def shape(uri: str, folder: Path | None, source: ClosedSource) -> tuple[int, dict[str, Any]]:
    """Return exit code and report: 0 done, 1 transient failure, 3 the user has to act."""
    try:
        loaded = _load_from_folder(folder) if folder else await _load_from_source(source)
    except BatchError as error:
        return error.code, {"phase": "shape", "ok": False, "message": str(error)}
    parsed = config.read_files(loaded.contents.get, loaded.sizes)
    if isinstance(parsed, UnsupportedConfig):
        message = f"{config.CONFIG} of {uri}: {parsed.message}"
        return RefusedError.code, {"phase": "shape", "ok": False, "message": message}
    fields = parsed.model_dump(by_alias=True, exclude_none=True)
    return 0, {"phase": "shape", "ok": True, "shape": fields, "commit": loaded.commit}


async def _load_from_source(closed_source: ClosedSource) -> _LoadedFiles:
    async with closed_source as source:
        model_config, commit = await source.read_json(config.CONFIG)
        contents: dict[str, object] = {config.CONFIG: model_config}
        # A small model has no index, and only sentence-transformers have settings beside modules.
        for name in config.files_beside(model_config):
            if name == config.SETTINGS and config.MODULES not in contents:
                continue
            try:
                contents[name] = (await source.read_json(name))[0]
            except NotJsonError:
                raise
            except RefusedError:
                continue  # the model has no such file
        # The download reports what is wrong with the files; here they count where no index has
        # the size of all parts.
        is_needed = INDEX not in contents and config.has_parts(model_config)
        try:
            listing = await source.listing()
        except BatchError as error:
            if is_needed and not isinstance(error, RefusedError):
                raise
            return _LoadedFiles(contents, {}, commit)
        files = needed_files(listing.files, allow_pickles=True, index=contents.get(INDEX))
        sizes = {file.name: file.size for file in files if file.size}
        return _LoadedFiles(contents, sizes, commit)


def _load_from_folder(folder: Path) -> _LoadedFiles:
    model_config = _read_json(folder / config.CONFIG)
    if model_config is None:
        raise RefusedError(f"{folder / config.CONFIG} does not exist; correct spec.model.uri")
    contents = {name: _read_json(folder / name) for name in config.files_beside(model_config)}
    contents[config.CONFIG] = model_config
    weights = folder.glob("*.safetensors")
    return _LoadedFiles(contents, {path.name: path.stat().st_size for path in weights})


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: {error}") from error


async def fetch(
    source: ClosedSource, into: Path, *, host: str, port: int, allow_pickles: bool = False
) -> tuple[int, dict[str, Any]]:
    """Return exit code and report: 0 done, 1 transient failure, 3 the user has to act."""
    progress = DownloadProgress()
    try:
        async with serve(progress_app(progress), host, port), source as opened:
            commit = await download(opened, into, progress, allow_pickles=allow_pickles)
    except BatchError as error:
        return error.code, {"phase": "fetch", "ok": False, "message": str(error)}
    return 0, {"phase": "fetch", "ok": True, "bytes": progress.done, "commit": commit}


def progress_app(progress: DownloadProgress) -> web.Application:
    """Return the application with `/progress`."""

    async def show_progress(_: web.Request) -> web.Response:
        return web.json_response(asdict(progress))

    app = web.Application()
    app.router.add_get("/progress", show_progress)
    return app
