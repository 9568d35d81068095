"""The process of the supervisor: connects it to the API server, the store and the operator."""

import argparse
import asyncio
import contextlib
import signal
import sys
import uuid
from datetime import timedelta
from functools import partial
from pathlib import Path

from aiohttp import web

from tessera.adapters.access_review import token_user
from tessera.adapters.clock import now
from tessera.adapters.connection import connect
from tessera.adapters.engine_pages import EnginePages
from tessera.adapters.kube import KubeCluster
from tessera.adapters.oidc_tokens import OidcTokens
from tessera.adapters.operator_pods import operator_addresses
from tessera.adapters.run_forever import run_forever
from tessera.domain.gateway.build import rate_limits
from tessera.domain.names import USAGE_READER
from tessera.domain.picking.engine_page import MAX_PAGE_BYTES
from tessera.gateway.demand import DemandReporter, OperatorAccess
from tessera.gateway.internal_api import InternalApi
from tessera.gateway.logs import AccessLog, KeyAudit
from tessera.gateway.main import read_settings
from tessera.gateway.metrics import GatewayMetrics
from tessera.gateway.polling import EnginePoller
from tessera.gateway.recording import Recording, RecordObserver
from tessera.gateway.store.database import StoreError
from tessera.gateway.supervisor import Supervisor, SupervisorParts
from tessera.gateway.token_verifier import TokenVerifier
from tessera.gateway.tracing import request_tracer
from tessera.gateway.watching import FleetWatch
from tessera.ports import ClusterError
from tessera.settings import GatewaySettings

_AUDIT_SECONDS = 1.0


def main() -> None:
    """Run the supervisor; `tessera-gateway` starts it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    arguments = parser.parse_args()
    settings = read_settings()
    if settings.link is None:
        sys.exit("tessera-gateway starts this process: TESSERA_LINK is not set")
    try:
        asyncio.run(run(settings, settings.link, arguments.host))
    except (ClusterError, StoreError, OSError) as error:
        sys.exit(f"tessera-gateway: {error}")


async def run(settings: GatewaySettings, link: Path, host: str) -> None:
    """Supervise until SIGTERM; then write the usage records that are left."""
    stop = asyncio.Event()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(stop_signal, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        connection = await connect(settings.kubeconfig)
        fleet = KubeCluster(connection, settings.watch_namespaces, classes=settings.classes)
        stack.push_async_callback(fleet.close)
        own = KubeCluster(connection, (settings.namespace,))
        stack.push_async_callback(own.close)
        keys = KubeCluster(connection, (settings.keys_namespace or settings.namespace,))
        stack.push_async_callback(keys.close)
        pages = EnginePages(MAX_PAGE_BYTES)
        stack.push_async_callback(pages.close)
        metrics, url = GatewayMetrics(), settings.database_url
        observers: list[RecordObserver] = [AccessLog(sys.stdout.buffer).write]
        if settings.trace_endpoint is not None:
            tracer = request_tracer(settings.trace_endpoint, settings.pod_name)
            stack.push_async_callback(asyncio.to_thread, tracer.close)
            observers.append(tracer.trace)
        recording = await Recording.open(
            url.get_secret_value() if url is not None else None,
            settings.state_directory,
            metrics,
            observers=observers,
            retention=timedelta(days=settings.retention_days),
        )
        stack.push_async_callback(recording.close)
        changed = asyncio.Event()
        audit = KeyAudit(sys.stdout.buffer, now())
        watch = FleetWatch(
            fleet, keys, changed.set, lambda secret: audit.report_unreadable(secret, now())
        )
        parts = SupervisorParts(
            name=f"{settings.pod_name}/{uuid.uuid4().hex[:8]}",
            observe=watch.observations,
            changed=changed,
            default_limits=rate_limits(settings.default_rate_limits),
            poller=EnginePoller(pages.read),
            verifier=_verifier(settings, own),
            lender=recording.lender,
            record=recording.take,
        )
        supervisor = Supervisor(parts)
        review = partial(token_user, own, audience=USAGE_READER)
        internal = InternalApi(
            metrics,
            recording.store,
            review,
            settings.namespace,
            supervisor.load,
            supervisor.listing.read,
        )
        runner = web.AppRunner(internal.application(), access_log=None)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, host, settings.metrics_port).start()
        tasks = [
            asyncio.create_task(run_forever("watch", watch.run)),
            asyncio.create_task(run_forever("usage", recording.run)),
            asyncio.create_task(run_forever("audit", partial(_audit, audit, supervisor, metrics))),
            asyncio.create_task(supervisor.run(link)),
        ]
        if settings.operator_host is not None:
            reporter = _reporter(settings, settings.operator_host, own, supervisor)
            metrics.demand_failing.set_function(lambda: reporter.failing_seconds)
            tasks += [
                asyncio.create_task(run_forever("demand", reporter.run)),
                asyncio.create_task(
                    run_forever("wakes", partial(_report_wakes, supervisor, reporter))
                ),
            ]
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _verifier(settings: GatewaySettings, cluster: KubeCluster) -> TokenVerifier:
    review = None
    if settings.token_audience is not None:
        review = partial(token_user, cluster, audience=settings.token_audience)
    return TokenVerifier(review, {issuer.issuer: OidcTokens(issuer) for issuer in settings.oidc})


async def _audit(audit: KeyAudit, supervisor: Supervisor, metrics: GatewayMetrics) -> None:
    while True:
        if supervisor.directory is not None:
            audit.check(supervisor.directory.keys, now())
            metrics.set_keys(supervisor.directory.keys.values(), now())
        await asyncio.sleep(_AUDIT_SECONDS)


def _reporter(
    settings: GatewaySettings, host: str, cluster: KubeCluster, supervisor: Supervisor
) -> DemandReporter:
    find = partial(operator_addresses, cluster, settings.namespace)
    access = OperatorAccess(find=find, host=host, folder=settings.operator_directory)
    return DemandReporter(access, settings.pod_name, supervisor.take_demand)


async def _report_wakes(supervisor: Supervisor, reporter: DemandReporter) -> None:
    while True:
        await supervisor.waking.wait()
        supervisor.waking.clear()
        reporter.report_soon()


if __name__ == "__main__":
    main()
