"""What can be asked of a runner while it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tessera.batch_runner.errors import TransientError
from tessera.batch_runner.progress import Progress, metrics_registry


@asynccontextmanager
async def status_server(progress: Progress, host: str, port: int) -> AsyncIterator[None]:
    """Answer `/healthz`, `/progress` and `/metrics` for as long as the block runs."""
    runner = web.AppRunner(
        _app(progress, metrics_registry(progress)), access_log=None, shutdown_timeout=0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise TransientError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        yield
    finally:
        await runner.cleanup()


def _app(progress: Progress, metrics: CollectorRegistry) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def show_progress(_: web.Request) -> web.Response:
        return web.json_response(progress.as_dict())

    async def show_metrics(_: web.Request) -> web.Response:
        content = generate_latest(metrics)
        return web.Response(body=content, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/progress", show_progress)
    app.router.add_get("/metrics", show_metrics)
    return app
