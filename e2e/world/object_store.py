"""A real S3 server for tests: versitygw, which serves the folders of a folder as buckets.

It is built once from the pins of `store/go.mod`, a module of its own: its dependencies would change
the hash of the other binaries.
"""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from world.errors import WorldError
from world.folders import HERE, cache, make_once
from world.lifetimes import dies_with_parent
from world.slots import free_port
from world.testing import eventually

ACCESS_KEY, SECRET_KEY = "tessera", "of-a-store-on-loopback"
_MODULE = HERE / "store"
_PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
_NAME = "versitygw"


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """A running server."""

    url: str
    buckets: Path
    """Each of its folders is a bucket."""

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the variables with which a client may read every bucket."""
        credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        return credentials | changes


def binary() -> Path:
    """Return the program, which is built first if it is missing."""
    pins = (_MODULE / "go.mod").read_bytes() + (_MODULE / "go.sum").read_bytes()
    digest = hashlib.sha256(pins).hexdigest()[:12]
    folder = cache() / "bin" / f"{_NAME}-{digest}"
    return make_once(folder, _build, partial(print, flush=True)) / _NAME


def _build(folder: Path) -> None:
    command = ["go", "build", "-gcflags=all=-dwarf=false", "-trimpath", "-ldflags", "-s -w"]
    environment = os.environ | {"CGO_ENABLED": "0"}
    output = ["-o", str(folder / _NAME), _PACKAGE]
    build = subprocess.run(
        [*command, *output],
        cwd=_MODULE, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if build.returncode:
        raise WorldError(f"building {_NAME} failed:\n{build.stderr[-2000:]}")


@asynccontextmanager
async def serve_object_store(folder: Path, *buckets: str) -> AsyncIterator[ObjectStore]:
    """Serve buckets on a loopback address for as long as the block runs."""
    served, sidecar, port = folder / "buckets", folder / "metadata", free_port()
    sidecar.mkdir(parents=True)
    for bucket in buckets:
        (served / bucket).mkdir(parents=True)
    program = await asyncio.to_thread(binary)
    command = [
        str(program), "--quiet", "--port", f"127.0.0.1:{port}", "--access", ACCESS_KEY,
        "--secret", SECRET_KEY, "posix", "--sidecar", str(sidecar), str(served),
    ]  # fmt: skip
    with (
        (folder / "store.log").open("wb") as log,
        subprocess.Popen(  # noqa: ASYNC220 - it starts in milliseconds
            command,
            stdout=log,
            stderr=log,
            preexec_fn=dies_with_parent(),  # noqa: PLW1509 - it takes no lock
        ) as server,
    ):
        try:
            await eventually(partial(_is_listening, server, port))
            yield ObjectStore(f"http://127.0.0.1:{port}", served)
        finally:
            server.terminate()


async def _is_listening(server: subprocess.Popen[bytes], port: int) -> None:
    if (code := server.poll()) is not None:
        raise WorldError(f"{_NAME} ended with {code}")
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
