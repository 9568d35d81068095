"""The driver of a node for those that are processes of their own."""

import contextlib
from collections.abc import AsyncIterator

from fakegpu.remote import serve
from world.kubelet.host import Host


@contextlib.asynccontextmanager
async def serve_driver(host: Host) -> AsyncIterator[None]:
    """On a socket of the node, for processes that import pynvml."""
    if host.hardware.gpu_driver is None:
        yield
        return
    server = await serve(host.hardware.gpu_driver, host.driver)
    try:
        yield
    finally:
        server.close()
