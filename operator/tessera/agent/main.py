"""`tessera-node`: reads the environment, wires the agent, and runs it until it is told to stop."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys

from aiohttp import web
from pydantic import ValidationError

from tessera.adapters.kube import KubeCluster, connect
from tessera.adapters.locks import FileLocks
from tessera.adapters.nvml import NvmlGpus
from tessera.adapters.own_layout import KubeOwnLayout
from tessera.adapters.pod_resources import KubeletPods
from tessera.agent.turn import Agent
from tessera.ports import ClusterError, OwnLayout
from tessera.settings import NodeSettings

log = logging.getLogger("tessera")

_PATIENCE_SECONDS = 120
"""A turn takes longer only when the driver hangs."""
_BREATH_SECONDS = 1
"""A watch that ends at once is not begun anew at once."""


def main() -> None:
    """Entry point of the agent's image."""
    parser = argparse.ArgumentParser(prog="tessera-node", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address of /healthz")
    parser.add_argument("--cut", action="store_true", help="as TESSERA_CUT: cut what the spec says")
    told = parser.parse_args()
    try:
        settings = NodeSettings()
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        sys.exit(f"tessera-node: the environment is not usable: {faults}")
    if told.cut:
        settings = settings.model_copy(update={"cut": True})
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    log.setLevel(settings.log_level.upper())
    try:
        asyncio.run(run(settings, told.host))
    except (ClusterError, OSError) as error:
        sys.exit(f"tessera-node: {error}")


async def run(settings: NodeSettings, host: str) -> None:
    """Turn after turn until SIGTERM; a step that was begun is finished."""
    cluster = KubeCluster(await connect(settings.kubeconfig))
    pods = KubeletPods(settings.pod_resources_socket)
    layout = KubeOwnLayout(cluster, settings.node_name)
    agent = Agent(
        NvmlGpus(), pods, layout, FileLocks(settings.lock_directory), cuts=settings.partition
    )
    for wanted in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(wanted, agent.stop.set)
    pulse = Pulse()
    runner = await _served(pulse, host, settings.probes_port)
    try:
        await _turns(agent, layout, settings.poll_interval_seconds, pulse)
    finally:
        await runner.cleanup()
        await pods.close()
        await cluster.close()


class Pulse:
    """When the last turn ended, in the seconds of the event loop."""

    def __init__(self) -> None:
        self._at = asyncio.get_running_loop().time()

    def beat(self) -> None:
        self._at = asyncio.get_running_loop().time()

    def alive(self) -> bool:
        return asyncio.get_running_loop().time() - self._at < _PATIENCE_SECONDS


async def _turns(agent: Agent, layout: OwnLayout, every: float, pulse: Pulse) -> None:
    wake = asyncio.Event()
    stopped = asyncio.create_task(agent.stop.wait())
    stopped.add_done_callback(lambda _: wake.set())
    following = asyncio.create_task(_follow(agent, layout, wake))
    try:
        while not agent.stop.is_set():
            wake.clear()
            try:
                await agent.turn()
            except ClusterError as error:
                log.warning("%s", error)
            pulse.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await wake.wait()
    finally:
        following.cancel()
        stopped.cancel()


async def _follow(agent: Agent, layout: OwnLayout, wake: asyncio.Event) -> None:
    """A changed spec is read in a turn of its own; a broken watch is begun anew."""
    while True:
        try:
            await layout.wait_for_change()
        except ClusterError as error:
            log.debug("%s", error)
        agent.forget()
        wake.set()
        await asyncio.sleep(_BREATH_SECONDS)


async def _served(pulse: Pulse, host: str, port: int) -> web.AppRunner:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if pulse.alive() else web.Response(status=503)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


if __name__ == "__main__":
    main()
