"""A small server that takes the place of the API server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tessera.adapters.kube import Connection, KubeCluster

RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def connected_cluster(handler: RequestHandler, **options: Any) -> AsyncIterator[KubeCluster]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    connection = Connection()
    connection.host = f"http://{host}:{port}"
    cluster = KubeCluster(connection, **options)
    try:
        yield cluster
    finally:
        await cluster.close()
        await runner.cleanup()
