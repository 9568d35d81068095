"""`tessera-batch shape` and `tessera-batch fetch`: the Jobs that prepare the model of a service.

`shape` reads the model's `config.json` and reports its shape; `fetch` downloads the files of the
model to a volume, once for all replicas.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from aiohttp import web

from tessera.api.text import counted
from tessera.batch_runner.errors import BatchError, RefusedError, TransientError, storage_errors
from tessera.batch_runner.hub import HubRepository, RepositoryFile
from tessera.batch_runner.progress import serve
from tessera.domain.model import config
from tessera.domain.model.config import UnsupportedConfig
from tessera.domain.model.pooling import SentenceTransformersFiles

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
# Of sentence-transformers: the layers of an embedder, and its longest text.
_MODULES, _SETTINGS = "modules.json", "sentence_bert_config.json"
_DEFAULT_REVISION = "main"
_MAX_PARALLEL_FILES = 4
# Holds the commit of a folder.
_COMMIT_FILE = ".tessera-commit"
# Files that the engine does not read.
_UNUSED_FILES = re.compile(
    r"^original/|^onnx/|^openvino/|\.(pth|onnx|msgpack|h5|ot|gguf|tflite|md|png|jpg|jpeg|gif)$",
    re.IGNORECASE,
)


# A repository of the hub that is not open yet.
Repository: TypeAlias = AbstractAsyncContextManager[HubRepository]


async def shape(
    uri: str, revision: str | None, folder: Path | None, repository: Repository
) -> tuple[int, dict[str, Any]]:
    """Return exit code and report: 0 done, 1 transient failure, 3 the user has to act."""
    try:
        if folder is not None:
            loaded = _load_from_folder(folder)
        else:
            loaded = await _load_from_hub(repository, revision or _DEFAULT_REVISION)
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


async def _load_from_hub(repository: Repository, revision: str) -> LoadedConfig:
    async with repository as hub:
        model_config, commit = await hub.read_json(revision, _CONFIG)

        async def optional(name: str) -> object:
            try:
                return (await hub.read_json(commit or revision, name))[0]
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


@dataclass(slots=True)
class DownloadProgress:
    """Downloaded bytes of all files, and their total if the hub lists all sizes."""

    done: int = 0
    total: int | None = None


async def fetch(
    repository: Repository, revision: str | None, into: Path, *, host: str, port: int
) -> tuple[int, dict[str, Any]]:
    """Return exit code and report: 0 done, 1 transient failure, 3 the user has to act."""
    progress = DownloadProgress()
    try:
        async with serve(_progress_app(progress), host, port), repository as hub:
            commit = await _fetch(hub, revision or _DEFAULT_REVISION, into, progress)
    except BatchError as error:
        return error.code, {"phase": "fetch", "ok": False, "message": str(error)}
    return 0, {"phase": "fetch", "ok": True, "bytes": progress.done, "commit": commit}


async def _fetch(hub: HubRepository, revision: str, into: Path, progress: DownloadProgress) -> str:
    listing = await hub.listing(revision)
    files = tuple(_needed_files(listing.files))
    sizes = [file.size for file in files if file.size is not None]
    progress.total = sum(sizes) if len(sizes) == len(files) else None
    with storage_errors(into, "write"):
        resumed = _resume_commit(into, listing.commit)
    slots, errors = asyncio.Semaphore(_MAX_PARALLEL_FILES), list[BatchError]()

    async def fetch_limited(file: RepositoryFile) -> None:
        async with slots:
            try:
                with storage_errors(into / file.name, "write"):
                    await _fetch_file(hub, listing.commit, file, into, progress, resumed=resumed)
            except BatchError as error:
                errors.append(error)

    async with asyncio.TaskGroup() as group:
        for file in files:
            group.create_task(fetch_limited(file))
    if errors:
        raise max(errors, key=lambda error: error.code)  # what needs an edit comes first
    return listing.commit


def _resume_commit(into: Path, commit: str) -> bool:
    """Return whether an earlier attempt began this commit, so that its files are valid."""
    into.mkdir(parents=True, exist_ok=True)
    marker = into / _COMMIT_FILE
    if marker.exists() and marker.read_text(encoding="utf-8") == commit:
        return True
    marker.write_text(commit, encoding="utf-8")
    return False


def _needed_files(files: tuple[RepositoryFile, ...]) -> Iterator[RepositoryFile]:
    """Yield the files that the engine reads."""
    has_safetensors = any(file.name.endswith(".safetensors") for file in files)
    for file in files:
        parts = PurePosixPath(file.name).parts
        if ".." in parts or file.name.startswith("/"):
            raise RefusedError(f"{file.name} is not a path within the repository")
        # Of two formats of the weights the engine prefers safetensors.
        if not _UNUSED_FILES.search(file.name) and not (
            has_safetensors and file.name.endswith(".bin")
        ):
            yield file


async def _fetch_file(
    hub: HubRepository,
    commit: str,
    file: RepositoryFile,
    into: Path,
    progress: DownloadProgress,
    *,
    resumed: bool,
) -> None:
    """Download one file, resuming where an earlier attempt stopped."""
    target = into / file.name
    part = target.with_name(f"{target.name}.{commit[:12]}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if resumed and file.size is not None and _file_size(target) == file.size:
        progress.done += file.size
        return
    if file.size is None or _file_size(part) > file.size:
        part.unlink(missing_ok=True)
    progress.done += _file_size(part)
    if file.size is None or _file_size(part) < file.size:
        await _append(hub, commit, file, part, progress)
    if file.size is not None and _file_size(part) != file.size:
        raise TransientError(f"{file.name}: got {_file_size(part)} of {counted(file.size, 'byte')}")
    part.replace(target)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def _append(
    hub: HubRepository, commit: str, file: RepositoryFile, part: Path, progress: DownloadProgress
) -> None:
    offset = _file_size(part)
    with part.open("ab") as out:
        async for chunk in hub.read_chunks(commit, file.name, offset):
            await asyncio.to_thread(out.write, chunk)
            progress.done += len(chunk)


def _progress_app(progress: DownloadProgress) -> web.Application:
    async def show_progress(_: web.Request) -> web.Response:
        return web.json_response(asdict(progress))

    app = web.Application()
    app.router.add_get("/progress", show_progress)
    return app
