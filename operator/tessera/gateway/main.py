"""`tessera-gateway`: one URL for all models."""

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import TypeAlias

import uvloop
from aiohttp import web
from pydantic import ValidationError

from tessera.adapters.catalog_file import install_catalog
from tessera.adapters.clock import now
from tessera.adapters.garbage import freeze_survivors
from tessera.adapters.kube.access_review import token_user
from tessera.adapters.kube.batch_reader import read_batch
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import Connection, connect
from tessera.adapters.kube.installation_pods import operator_addresses, other_gateways
from tessera.adapters.logs import configure_logging
from tessera.adapters.oidc_tokens import OidcTokens
from tessera.adapters.run_forever import run_forever
from tessera.domain.charge.reports import merged_limits, reported_charges
from tessera.domain.gateway.directory import ApiKey
from tessera.domain.names import BATCH_CHARGES, USAGE_READER, keys_namespace
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.domain.quality.names import GATE_AUDIENCE
from tessera.gateway.batch_api import BatchApi, KnownBatches
from tessera.gateway.fleet.demand import DemandReporter, OperatorAccess
from tessera.gateway.fleet.other_gateways import OtherGateways
from tessera.gateway.fleet.polling import EnginePoller, read_page
from tessera.gateway.fleet.watching import FleetWatch, ProviderSecrets
from tessera.gateway.gateway import Gateway, GatewayParts
from tessera.gateway.http.connections import Connections, raise_descriptor_limit
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.identify.authentication import Authenticator
from tessera.gateway.identify.token_reviews import IssuedTokens, TokenReviews
from tessera.gateway.identify.token_verifier import TokenVerifier
from tessera.gateway.internal_api import InternalApi
from tessera.gateway.outside.client import OutsideClient
from tessera.gateway.outside.keys import ProviderKeys
from tessera.gateway.server import Application, GatewayServer, listen
from tessera.gateway.settle.settlement import GATEWAY_NAME
from tessera.gateway.store.batches import BatchStore
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.seen import SeenCharges
from tessera.gateway.usage.logs import BackgroundStream, KeyAudit, access_line
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import Recording, RecordObserver
from tessera.gateway.usage.tracing import request_tracer
from tessera.ports import ClusterError
from tessera.settings import GatewaySettings

log = logging.getLogger("tessera")

Part: TypeAlias = Callable[[], Awaitable[None]]
Parts: TypeAlias = Mapping[str, Part]

# An engine that sends nothing for so long has stalled: its replica is replaced after 120 s.
ENGINE_IDLE_SECONDS = 300.0
_AUDIT_SECONDS = 1.0
# Objects between two collections of the youngest (Python's default is 700), and how many of those
# are between two of the next generation, and of those between two full ones. A request leaves few
# cycles, and looking for them often took 5 % of the time. Edits replace objects of the fleet: until
# a directory is built from them there are up to 20,000 new ones beside those that will go.
_GC_THRESHOLDS = (30_000, 10, 2)


def main() -> None:
    """Run the gateway; the entry point of its image."""
    parser = argparse.ArgumentParser(prog="tessera-gateway", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address of all ports")
    arguments = parser.parse_args()
    settings = read_settings()
    install_catalog(settings.catalogs_file)
    try:
        uvloop.run(run(settings, arguments.host))
    except (ClusterError, StoreError, OSError) as error:
        sys.exit(f"tessera-gateway: {error}")


def read_settings() -> GatewaySettings:
    """Return the settings, and set up logging; exit with one sentence if they are invalid."""
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
        )
        sys.exit(f"tessera-gateway: invalid environment: {details}")
    configure_logging(logging.WARNING)
    log.setLevel(settings.log_level.upper())
    return settings


async def run(settings: GatewaySettings, host: str) -> None:
    """Serve until SIGTERM or SIGINT; then end the streams, and write the records that are left."""
    stop = stop_event()
    async with contextlib.AsyncExitStack() as stack:
        connection = await connect(settings.kubeconfig)
        fleet = KubeCluster(connection, settings.watch_namespaces, classes=settings.classes)
        own = KubeCluster(connection, (settings.namespace,))
        namespaces = settings.keys_namespaces or (keys_namespace(settings.namespace),)
        keys = KubeCluster(connection, namespaces)
        engines = EngineSession(ENGINE_IDLE_SECONDS)
        for opened in (fleet, own, keys, engines):
            stack.push_async_callback(opened.close)
        outside, provider_secrets = _providers(settings, connection, stack)
        metrics = GatewayMetrics(outside)
        output = BackgroundStream(sys.stdout.buffer, metrics.log_lines_lost.inc)
        stack.callback(output.flush)
        recording = await _recording(settings, metrics, output, stack)
        changed = asyncio.Event()
        audit = KeyAudit(output.write, now())

        def report(secret: TenantKeys) -> None:
            audit.report_unreadable(secret, now())

        watch = FleetWatch(fleet, keys, changed.set, report, namespaces[0], provider_secrets)
        gateway = Gateway(
            GatewayParts(
                name=GATEWAY_NAME,
                observe=watch.observations,
                changed=changed,
                default_limits=settings.default_rate_limits,
                poller=EnginePoller(partial(read_page, engines)),
                identifier=Authenticator(_verifier(settings, own, connection).verify),
                borrow=recording.lender.borrow,
                meet=recording.store.meet,
                recorder=recording,
                engines=engines,
                outside=outside,
            )
        )
        metrics.requests.routes.last.directory = lambda: gateway.directory
        seen = SeenCharges(settings.state_directory)
        gateway.admission.reservations.charges.lending.seen = seen.settled
        internal = InternalApi(
            metrics,
            recording.store,
            IssuedTokens(partial(token_user, own, audience=USAGE_READER), connection.token).user,
            settings.namespace,
            gateway.load,
            gateway.app,
            others=OtherGateways(
                partial(other_gateways, own, settings.namespace, settings.pod_name),
                settings.metrics_port,
            ),
        )
        await _serve_internal(internal.application(), host, settings.metrics_port, stack)
        batches = BatchStore(recording.store, GATEWAY_NAME)
        reviews = partial(token_user, own, audience=BATCH_CHARGES)
        batch_api = _batch_api(batches, IssuedTokens(reviews, connection.token), gateway, fleet)
        server = _server(settings, gateway, metrics)
        parts: dict[str, Part] = {
            "watch": watch.run,
            "usage": recording.run,
            "log": output.run,
            "audit": partial(_audit, audit, gateway, metrics),
            "gateway": gateway.run,
            "batches": batches.run,
            "seen": seen.run,
        }
        if settings.tls_directory is not None:
            parts["certificate"] = partial(server.renew_certificate, settings.tls_directory)
        if settings.operator_host is not None:
            reporter = _reporter(settings, settings.operator_host, own, gateway, batches)
            metrics.demand_failing.set_function(lambda: reporter.failing_seconds)
            parts["demand"] = reporter.run
        await serve(listeners(settings, host, gateway, server, batch_api), parts, stop)


def _providers(
    settings: GatewaySettings, connection: Connection, stack: contextlib.AsyncExitStack
) -> tuple[OutsideClient, ProviderSecrets | None]:
    """Return what asks providers, and what keeps their keys up to date; None without providers."""
    if settings.providers_namespace is None:
        return OutsideClient(), None
    keys, tls = ProviderKeys(), ssl.create_default_context()
    if settings.providers_ca_file is not None:
        tls.load_verify_locations(settings.providers_ca_file)
    client = OutsideClient(keys, settings.providers_allowed_ranges, tls=tls)
    stack.push_async_callback(client.close)
    cluster = KubeCluster(connection, (settings.providers_namespace,))
    stack.push_async_callback(cluster.close)
    return client, ProviderSecrets(cluster, keys.update)


def stop_event() -> asyncio.Event:
    """Return what SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(stop_signal, stop.set)
    return stop


async def serve(
    servers: Mapping[GatewayServer, socket.socket], parts: Parts, stop: asyncio.Event
) -> None:
    """Run the parts, and serve until `stop`; then drain."""
    gc.set_threshold(*_GC_THRESHOLDS)
    # The objects of a cluster stay long, and neither they nor connections leave cycles.
    parts = {**parts, "garbage": partial(freeze_survivors, None)}
    tasks = [asyncio.create_task(run_forever(name, part)) for name, part in parts.items()]
    serving = [
        asyncio.create_task(server.serve(sockets=[listener]))
        for server, listener in servers.items()
    ]
    stopping = asyncio.create_task(stop.wait())
    # A server that ends by itself ends the process, which is started again.
    await asyncio.wait((*serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not any(each.done() for each in serving):
        await asyncio.gather(*(server.drain() for server in servers))
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*serving)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _recording(
    settings: GatewaySettings,
    metrics: GatewayMetrics,
    output: BackgroundStream,
    stack: contextlib.AsyncExitStack,
) -> Recording:
    """Open the store and what else takes records, with those that a dead process left."""
    observers: list[RecordObserver] = [lambda record: output.write(access_line(record))]
    if settings.trace_endpoint is not None:
        tracer = request_tracer(settings.trace_endpoint, settings.pod_name)
        stack.push_async_callback(asyncio.to_thread, tracer.close)
        observers.append(tracer.trace)
    url = settings.database_url
    recording = await Recording.open(
        url.get_secret_value() if url is not None else None,
        settings.state_directory,
        metrics,
        observers=observers,
        retention=timedelta(days=settings.retention_days),
        name=GATEWAY_NAME,
    )
    stack.push_async_callback(recording.close)
    await recording.recover()
    return recording


def _server(settings: GatewaySettings, gateway: Gateway, metrics: GatewayMetrics) -> GatewayServer:
    ends = metrics.connection_ends
    clients = Connections(raise_descriptor_limit(), lambda end: ends.labels(end).inc())
    metrics.connections.set_function(lambda: len(clients))
    metrics.held_bytes.set_function(lambda: gateway.app.memory.size + clients.held_bytes)
    replicas = gateway.admission.replicas
    metrics.prefix_record_bytes.set_function(lambda: replicas.record_bytes)
    server = GatewayServer(
        gateway.app,
        announce_seconds=settings.announce_seconds,
        drain_seconds=settings.drain_seconds,
        clients=clients,
        tls_directory=settings.tls_directory,
    )
    metrics.handshakes.set_function(lambda: len(server.handshakes))
    return server


def listeners(
    settings: GatewaySettings,
    host: str,
    gateway: Gateway,
    server: GatewayServer,
    batch_api: BatchApi,
) -> Mapping[GatewayServer, socket.socket]:
    """Return the sockets of the server, and of Jobs of gates and runners of batches without TLS.

    All have the places and bytes of one pod, which are counted once.
    """
    sockets = {server: listen(host, settings.port)}
    inner: Mapping[Application, int | None] = {
        gateway.app: settings.gates_port,
        batch_api: settings.batches_port,
    }
    for app, port in inner.items():
        if port is not None:
            inside = GatewayServer(
                app,
                announce_seconds=settings.announce_seconds,
                drain_seconds=settings.drain_seconds,
                clients=server.server_state.clients,
            )
            sockets[inside] = listen(host, port)
    return sockets


def _batch_api(
    batches: BatchStore, tokens: IssuedTokens, gateway: Gateway, fleet: KubeCluster
) -> BatchApi:
    known = KnownBatches(partial(read_batch, fleet))
    return BatchApi(batches, tokens.user, lambda: gateway.directory, known)


async def _serve_internal(
    application: web.Application, host: str, port: int, stack: contextlib.AsyncExitStack
) -> None:
    runner = web.AppRunner(application, access_log=None)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()


def _verifier(
    settings: GatewaySettings, cluster: KubeCluster, connection: Connection
) -> TokenVerifier:
    reviews = None
    if settings.token_audience is not None:
        review = partial(token_user, cluster, audience=settings.token_audience)
        reviews = TokenReviews(review, connection.token)
    gates = None
    if settings.gates_port is not None:
        review = partial(token_user, cluster, audience=GATE_AUDIENCE)
        gates = TokenReviews(review, connection.token)
    issuers = {issuer.issuer: OidcTokens(issuer) for issuer in settings.oidc}
    return TokenVerifier(reviews, issuers, gates)


async def _audit(audit: KeyAudit, gateway: Gateway, metrics: GatewayMetrics) -> None:
    while True:
        if gateway.directory is not None:
            # 100,000 keys take a tenth of a second.
            await asyncio.to_thread(_check_keys, audit, metrics, gateway.directory.keys)
        await asyncio.sleep(_AUDIT_SECONDS)


def _check_keys(audit: KeyAudit, metrics: GatewayMetrics, keys: Mapping[str, ApiKey]) -> None:
    audit.check(keys, now())
    metrics.set_keys(keys.values(), now())


def _reporter(
    settings: GatewaySettings,
    host: str,
    cluster: KubeCluster,
    gateway: Gateway,
    batches: BatchStore,
) -> DemandReporter:
    find = partial(operator_addresses, cluster, settings.namespace)
    access = OperatorAccess(find=find, host=host, folder=settings.operator_directory)
    return DemandReporter(
        access,
        settings.pod_name,
        gateway.take_demand,
        gateway.waking,
        read_charges=lambda: merged_limits(gateway.charges(), reported_charges(batches.answered())),
    )


if __name__ == "__main__":
    main()
