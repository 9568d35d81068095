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
from tessera.adapters.node_layout_client import KubeOwnLayout
from tessera.adapters.nvml import NvmlGpus
from tessera.adapters.pod_resources import KubeletPods
from tessera.node_agent.reconcile import NodeAgent
from tessera.ports import ClusterError, OwnLayout
from tessera.settings import NodeSettings

log = logging.getLogger("tessera")

# A turn takes longer only when the driver hangs.
_LIVENESS_TIMEOUT_SECONDS = 120
# A watch that ends at once is not begun anew at once.
_WATCH_RETRY_SECONDS = 1


def main() -> None:
    """Entry point of the agent's image."""
    parser = argparse.ArgumentParser(prog="tessera-node", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address of /healthz")
    parser.add_argument("--cut", action="store_true", help="as TESSERA_CUT: cut what the spec says")
    arguments = parser.parse_args()
    try:
        settings = NodeSettings()
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
        )
        sys.exit(f"tessera-node: the environment is not usable: {details}")
    if arguments.cut:
        settings = settings.model_copy(update={"cut": True})
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    log.setLevel(settings.log_level.upper())
    try:
        asyncio.run(run(settings, arguments.host))
    except (ClusterError, OSError) as error:
        sys.exit(f"tessera-node: {error}")


async def run(settings: NodeSettings, host: str) -> None:
    """Turn after turn until SIGTERM; a step that was begun is finished."""
    cluster = KubeCluster(await connect(settings.kubeconfig))
    pods = KubeletPods(settings.pod_resources_socket)
    layout = KubeOwnLayout(cluster, settings.node_name)
    agent = NodeAgent(
        NvmlGpus(),
        pods,
        layout,
        FileLocks(settings.lock_directory),
        can_partition=settings.partition,
    )
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(stop_signal, agent.stop.set)
    heartbeat = AgentHeartbeat()
    runner = await _serve_health(heartbeat, host, settings.probes_port)
    try:
        await _reconcile_loop(agent, layout, settings.poll_interval_seconds, heartbeat)
    finally:
        await runner.cleanup()
        await pods.close()
        await cluster.close()


class AgentHeartbeat:
    """When the last turn ended, in the seconds of the event loop."""

    def __init__(self) -> None:
        self._last_beat = asyncio.get_running_loop().time()

    def beat(self) -> None:
        self._last_beat = asyncio.get_running_loop().time()

    def is_alive(self) -> bool:
        return asyncio.get_running_loop().time() - self._last_beat < _LIVENESS_TIMEOUT_SECONDS


async def _reconcile_loop(
    agent: NodeAgent, layout: OwnLayout, interval_seconds: float, heartbeat: AgentHeartbeat
) -> None:
    wake = asyncio.Event()
    stop_task = asyncio.create_task(agent.stop.wait())
    stop_task.add_done_callback(lambda _: wake.set())
    watch_task = asyncio.create_task(_watch_layout(agent, layout, wake))
    try:
        while not agent.stop.is_set():
            wake.clear()
            try:
                await agent.reconcile()
            except ClusterError as error:
                log.warning("%s", error)
            heartbeat.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await wake.wait()
    finally:
        watch_task.cancel()
        stop_task.cancel()


async def _watch_layout(agent: NodeAgent, layout: OwnLayout, wake: asyncio.Event) -> None:
    """A changed spec is read in a turn of its own; a broken watch is begun anew."""
    while True:
        try:
            await layout.wait_for_change()
        except ClusterError as error:
            log.debug("%s", error)
        agent.invalidate_layout()
        wake.set()
        await asyncio.sleep(_WATCH_RETRY_SECONDS)


async def _serve_health(heartbeat: AgentHeartbeat, host: str, port: int) -> web.AppRunner:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if heartbeat.is_alive() else web.Response(status=503)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


if __name__ == "__main__":
    main()
