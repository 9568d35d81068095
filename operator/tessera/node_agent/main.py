"""`tessera-node`: reports the MIG slices of a node's GPUs and partitions them if permitted."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from datetime import datetime

from aiohttp import web
from pydantic import ValidationError

from tessera.adapters.clock import now
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.adapters.locks import FileLocks
from tessera.adapters.logs import configure_logging
from tessera.adapters.node_layout_client import KubeOwnLayout
from tessera.adapters.nvml.gpus import NvmlGpus
from tessera.adapters.pod_resources import KubeletPods
from tessera.node_agent.reconcile import NodeAgent
from tessera.ports import ClusterError, OwnLayout
from tessera.settings import NodeSettings

log = logging.getLogger("tessera")

# A reconcile cycle takes longer only when the driver hangs.
_LIVENESS_TIMEOUT_SECONDS = 120
# Pause before a watch that ended is started again.
_WATCH_RETRY_SECONDS = 1


def main() -> None:
    """Run the agent; the entry point of its image."""
    parser = argparse.ArgumentParser(prog="tessera-node", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address of /healthz")
    parser.add_argument(
        "--partition",
        action="store_true",
        help="as TESSERA_PARTITION: partition GPUs as the spec says",
    )
    arguments = parser.parse_args()
    try:
        settings = NodeSettings()
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
        )
        sys.exit(f"tessera-node: invalid environment: {details}")
    if arguments.partition:
        settings = settings.model_copy(update={"partition": True})
    configure_logging(logging.WARNING)
    log.setLevel(settings.log_level.upper())
    try:
        asyncio.run(run(settings, arguments.host))
    except (ClusterError, OSError) as error:
        sys.exit(f"tessera-node: {error}")


async def run(settings: NodeSettings, host: str) -> None:
    """Reconcile until SIGTERM or SIGINT; a running operation is finished."""
    cluster = KubeCluster(await connect(settings.kubeconfig))
    pods = KubeletPods(settings.pod_resources_socket)
    layout = KubeOwnLayout(cluster, settings.node_name)
    locks = FileLocks(settings.lock_directory)
    agent = NodeAgent(
        NvmlGpus(),
        pods,
        layout,
        locks,
        lambda: _server_time(cluster),
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


def _server_time(cluster: KubeCluster) -> datetime:
    """Return the time by the API server's latest response; the clock of the node may be wrong."""
    date = cluster.server_date
    return now() if date is None else date.after(time.monotonic())


class AgentHeartbeat:
    """The end of the last reconcile cycle, in seconds of the event loop's clock."""

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
            except Exception:
                log.exception("the reconcile failed, retrying")
            heartbeat.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await wake.wait()
    finally:
        watch_task.cancel()
        stop_task.cancel()


async def _watch_layout(agent: NodeAgent, layout: OwnLayout, wake: asyncio.Event) -> None:
    """Wake the loop when the spec changes; start a watch that failed again."""
    while True:
        try:
            await layout.wait_for_change()
        except ClusterError as error:
            log.debug("watch failed, retrying: %s", error)
        except Exception:
            log.exception("the watch failed, retrying")
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
