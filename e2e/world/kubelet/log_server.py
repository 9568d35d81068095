"""The part of a kubelet's server that `kubectl logs` asks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from aiohttp import web

from world import clock
from world.keys import Pair
from world.kubelet.container import Container
from world.kubelet.logs import tail

# A container by namespace, pod and name.
Find = Callable[[str, str, str], Container | None]

LOOK_SECONDS = 0.2


@asynccontextmanager
async def serve_logs(
    find: Find, pair: Pair, addresses: list[str], port: int
) -> AsyncIterator[None]:
    """Serve on the address of every node; the API server sends no certificate, so none is asked."""
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", partial(_logs, find))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.certificate, pair.key)
    try:
        for address in addresses:
            await web.TCPSite(runner, address, port, ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()


async def _logs(find: Find, request: web.Request) -> web.StreamResponse:
    parameters = request.match_info
    container = find(parameters["namespace"], parameters["pod"], parameters["container"])
    if container is None:
        raise web.HTTPNotFound(text=f"no container {parameters['container']} runs here")
    path = container.log(previous=request.query.get("previous") == "true")
    if not path.exists():
        raise web.HTTPNotFound(text=f"no log of container {parameters['container']} (yet)")
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    content = _requested_part(path, request)
    await response.write(content)
    if request.query.get("follow") == "true":
        await _follow(response, path, path.stat().st_size, container)
    return response


def _requested_part(path: Path, request: web.Request) -> bytes:
    """The wanted part of a log.

    Lines have no times here, so `sinceSeconds` can only tell a log that was silent since from one
    that was not.
    """
    query = request.query
    if "sinceSeconds" in query:
        age = clock.now().timestamp() - path.stat().st_mtime
        if age > int(query["sinceSeconds"]):
            return b""
    content = path.read_bytes()
    if "tailLines" in query:
        content = tail(content, int(query["tailLines"]))
    return content[: int(query["limitBytes"])] if "limitBytes" in query else content


async def _follow(
    response: web.StreamResponse, path: Path, offset: int, container: Container
) -> None:
    with path.open("rb") as log:
        log.seek(offset)
        while True:
            running = container.running and container.log() == path
            if more := log.read():
                await response.write(more)
            elif not running:
                return
            else:
                await asyncio.sleep(LOOK_SECONDS)
