"""A real Prometheus with the configuration of a test, and the pages that it scrapes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from world import binaries
from world.slots import free_port


@asynccontextmanager
async def served_pages(
    page: Callable[[web.Request], Awaitable[web.Response]],
) -> AsyncIterator[str]:
    """Serve pages under all paths; yield the host and the port."""
    app = web.Application()
    app.router.add_get("/{path:.*}", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def running_prometheus(
    folder: Path, config: Mapping[str, Any], storage: Path | None = None
) -> AsyncIterator[str]:
    """Run Prometheus with this configuration and its files in a folder; yield its URL.

    Samples are in `storage`, and by default in a new folder.
    """
    port = free_port("127.0.0.1")
    storage = storage or folder / f"tsdb-{port}"
    file = folder / "prometheus.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        str(binaries.ensure(print, ["prometheus"]) / "prometheus"),
        *(f"--config.file={file}", f"--storage.tsdb.path={storage}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()
