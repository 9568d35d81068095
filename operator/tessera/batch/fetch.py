"""`tessera-batch fetch`: brings the files of a model onto a volume, once for all its replicas."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from aiohttp import web

from tessera.batch.errors import BatchError, RefusedError, TroubleError, storage
from tessera.batch.hub import File, Hub, connected

_AT_ONCE = 4
_COMMIT = ".tessera-commit"
"""Says which commit a folder is of."""
_UNUSED = re.compile(
    r"^original/|^onnx/|^openvino/|\.(pth|onnx|msgpack|h5|ot|gguf|tflite|md|png|jpg|jpeg|gif)$",
    re.IGNORECASE,
)
"""Files that the engine does not read."""
_DEFAULT_REVISION = "main"


class Fetching:
    """How far it is."""

    def __init__(self) -> None:
        self.done = 0
        self.total: int | None = None

    def shown(self) -> dict[str, int | None]:
        return {"done": self.done, "total": self.total}


async def fetch(  # noqa: PLR0913 - one for each argument of the command
    uri: str,
    revision: str | None,
    into: Path,
    *,
    endpoint: str | None,
    token: str | None,
    host: str,
    port: int,
) -> tuple[int, dict[str, Any]]:
    """Exit code and report: 0 all files are there, 1 may pass, 3 the user has to do something."""
    progress = Fetching()
    try:
        runner = await _serve(progress, host, port)
        try:
            async with connected(endpoint, token, uri) as hub:
                commit = await _fetch(hub, revision or _DEFAULT_REVISION, into, progress)
        finally:
            await runner.cleanup()
    except BatchError as error:
        return error.code, {"phase": "fetch", "ok": False, "message": str(error)}
    return 0, {"phase": "fetch", "ok": True, "bytes": progress.done, "commit": commit}


async def _fetch(hub: Hub, revision: str, into: Path, progress: Fetching) -> str:
    listing = await hub.listing(revision)
    files = tuple(_wanted(listing.files))
    sizes = [file.size for file in files if file.size is not None]
    progress.total = sum(sizes) if len(sizes) == len(files) else None
    with _stored(into):
        begun = _begun(into, listing.commit)
    slots, problems = asyncio.Semaphore(_AT_ONCE), list[BatchError]()

    async def one(file: File) -> None:
        async with slots:
            try:
                with _stored(into / file.name):
                    await _bring(hub, listing.commit, file, into, progress, begun=begun)
            except BatchError as error:
                problems.append(error)

    async with asyncio.TaskGroup() as group:
        for file in files:
            group.create_task(one(file))
    if problems:
        raise max(problems, key=lambda error: error.code)  # what needs an edit comes first
    return listing.commit


@contextmanager
def _stored(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage(error, path, "write") from error


def _begun(into: Path, commit: str) -> bool:
    """Was this commit begun here before? Its finished files are then as they should be."""
    into.mkdir(parents=True, exist_ok=True)
    mark = into / _COMMIT
    if mark.exists() and mark.read_text(encoding="utf-8") == commit:
        return True
    mark.write_text(commit, encoding="utf-8")
    return False


def _wanted(files: tuple[File, ...]) -> Iterator[File]:
    """What the engine reads: of two forms of the weights only the one that it prefers."""
    safe = any(file.name.endswith(".safetensors") for file in files)
    for file in files:
        parts = PurePosixPath(file.name).parts
        if ".." in parts or file.name.startswith("/"):
            raise RefusedError(f"{file.name} is no path within a repository")
        if not _UNUSED.search(file.name) and not (safe and file.name.endswith(".bin")):
            yield file


async def _bring(
    hub: Hub, commit: str, file: File, into: Path, progress: Fetching, *, begun: bool
) -> None:
    """One file; what an earlier attempt has left is not fetched again."""
    target = into / file.name
    part = target.with_name(f"{target.name}.{commit[:12]}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if begun and file.size is not None and _size(target) == file.size:
        progress.done += file.size
        return
    if file.size is None or _size(part) > file.size:
        part.unlink(missing_ok=True)
    progress.done += _size(part)
    if file.size is None or _size(part) < file.size:
        await _append(hub, commit, file, part, progress)
    if file.size is not None and _size(part) != file.size:
        raise TroubleError(f"{file.name}: {_size(part)} of {file.size} bytes came")
    part.replace(target)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def _append(hub: Hub, commit: str, file: File, part: Path, progress: Fetching) -> None:
    since = _size(part)
    with part.open("ab") as out:
        async for chunk in hub.parts(commit, file.name, since):
            await asyncio.to_thread(out.write, chunk)
            progress.done += len(chunk)


async def _serve(progress: Fetching, host: str, port: int) -> web.AppRunner:
    async def shown(_: web.Request) -> web.Response:
        return web.json_response(progress.shown())

    app = web.Application()
    app.router.add_get("/progress", shown)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise TroubleError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return runner
