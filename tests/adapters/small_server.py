"""Small servers that take the place of the API server, of Prometheus and of engines."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import Connection

RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# From the request's text to the bytes that are sent, and the bytes that follow without end.
Response = Callable[[str], tuple[bytes, bytes]]

# It ends each connection, and a client that does not know may send its next request to it.
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n"


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


@asynccontextmanager
async def raw_server(respond: Response, every: float = 0) -> AsyncIterator[str]:
    """Yield the address of a server that sends bytes, with so many seconds between repetitions."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        answer, again = respond(request)
        try:
            writer.write(answer)
            while again:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(every)
        except ConnectionError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
