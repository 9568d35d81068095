"""`tessera-operator`: reads the environment, wires the operator, and runs it inside kopf."""

import argparse
import asyncio
import logging
import sys
from datetime import timedelta
from functools import partial
from typing import Any

import kopf
from pydantic import ValidationError
from pydantic_settings import SettingsError

from tessera.adapters.catalog_file import install_catalog
from tessera.adapters.clock import now
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import Connection, connect
from tessera.api.gateway_demand import DEMAND_PATH
from tessera.api.meta import GROUP, VERSION
from tessera.controller.admission import validators
from tessera.controller.demand import serve_demand
from tessera.controller.inspection import inspect
from tessera.controller.metrics import serve_metrics
from tessera.controller.reviews import AdmissionServer
from tessera.controller.runtime import Runtime
from tessera.controller.token_access import METRICS_PATH, gateway_access, metrics_access
from tessera.controller.uninstall import release_nodes
from tessera.domain.names import prepull_namespace
from tessera.domain.placement.pod_template import allowed_keys
from tessera.ports import Clock, ClusterError
from tessera.settings import Settings

log = logging.getLogger("tessera")

# Exit status of a leader that could not renew its lease in time; its pod restarts.
LEADERSHIP_LOST = 3
# The kubelet rotates ServiceAccount tokens in their file; kopf logs in again at this interval.
_LOGIN_LIFETIME = timedelta(minutes=10)


def main() -> None:
    """Run the operator: the entry point of its image."""
    parser = argparse.ArgumentParser(prog="tessera-operator", description="Runs the operator.")
    parser.add_argument("--host", default="0.0.0.0", help="address that its servers bind to")
    parser.add_argument("--inspect", action="store_true", help="check the installation and exit")
    parser.add_argument(
        "--release-nodes", action="store_true", help="take back taints and labels, and exit"
    )
    arguments = parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        sys.exit(f"tessera-operator: invalid environment: {faults}")
    except SettingsError as error:  # invalid JSON
        sys.exit(f"tessera-operator: invalid environment: {error}")
    kopf.configure(log_format=kopf.LogFormat.JSON)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # kopf logs every rejected admission request as an error.
    logging.getLogger("kopf.objects").setLevel(logging.CRITICAL)
    # httpx logs a line for every question to a model hub.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    log.setLevel(settings.log_level.upper())
    install_catalog(settings.catalogs_file)
    allowed_keys.set(settings.allowed_pod_keys)
    if arguments.inspect:
        sys.exit(asyncio.run(run_inspection(settings)))
    if arguments.release_nodes:
        sys.exit(asyncio.run(run_release(settings)))
    sys.exit(asyncio.run(operate(settings, arguments.host)))


async def run_inspection(settings: Settings) -> int:
    """Print every finding; return 1 when a check failed."""
    connection = await connect(settings.kubeconfig)
    cluster = KubeCluster(
        connection, settings.watch_namespaces, prepull_namespace(settings.namespace)
    )
    failures = 0
    try:
        async for passed, sentence in inspect(settings, cluster, now):
            sys.stdout.write(f"{'ok' if passed else 'FAIL'}: {sentence}\n")
            failures += not passed
    except ClusterError as error:
        sys.stdout.write(f"FAIL: {error}\n")
        failures += 1
    finally:
        await cluster.close()
    return min(failures, 1)


async def run_release(settings: Settings) -> int:
    """Release all nodes before an uninstall; return 1 when one could not be released."""
    cluster = KubeCluster(await connect(settings.kubeconfig))
    try:
        return min(await release_nodes(settings, cluster, now), 1)
    except ClusterError as error:
        log.error("nodes are not released: %s", error)
        return 1
    finally:
        await cluster.close()


async def operate(
    settings: Settings, host: str, connection: Connection | None = None, clock: Clock = now
) -> int:
    """Run until stopped, or until any part ends; then all parts end, and the pod restarts.

    Returns the exit status: `LEADERSHIP_LOST`, or 0 when stopped by a signal.
    """
    connection = connection or await connect(settings.kubeconfig)
    cluster = KubeCluster(
        connection,
        settings.watch_namespaces,
        prepull_namespace(settings.namespace),
        classes=settings.classes,
    )
    runtime = Runtime(settings, cluster, clock)
    loop, refused = asyncio.get_running_loop(), runtime.telemetry.process.count_refused_token
    serve_metrics(
        (host, settings.metrics_port),
        runtime.telemetry.exposition,
        tls=lambda: runtime.tls,
        check=metrics_access(cluster, loop, partial(refused, METRICS_PATH)).check,
    )
    if settings.gateway_account is not None:
        user = f"system:serviceaccount:{settings.namespace}:{settings.gateway_account}"
        serve_demand(
            (host, settings.demand_port),
            runtime.demand,
            loop,
            tls=lambda: runtime.tls,
            check=gateway_access(cluster, loop, user, partial(refused, DEMAND_PATH)).check,
        )
    tasks = (
        asyncio.create_task(runtime.run(), name="runtime"),
        asyncio.create_task(_run_kopf(runtime, connection, settings, host), name="kopf"),
    )
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return 0 if tasks[0].cancelled() else LEADERSHIP_LOST
    finally:
        await runtime.close()
        await cluster.close()


async def _run_kopf(
    runtime: Runtime, connection: Connection, settings: Settings, host: str
) -> None:
    """Run admission, probes and signal handling in kopf, once all kinds are listed."""
    await runtime.synced.wait()
    options = kopf.OperatorSettings()
    options.posting.enabled = False
    options.scanning.disabled = True
    options.networking.enforce_retry_after = True
    options.process.ultimate_exiting_timeout = 30
    if runtime.rotator is not None:
        options.admission.managed = None
        options.admission.server = AdmissionServer(runtime.rotator, host, settings.webhook_port)
    await kopf.operator(
        registry=_registry(runtime, connection, settings),
        settings=options,
        standalone=True,
        clusterwide=True,
        liveness_endpoint=f"http://{host}:{settings.probes_port}/healthz",
    )


def _registry(
    runtime: Runtime, connection: Connection, settings: Settings
) -> kopf.OperatorRegistry:
    """Return the registry with admission, login and the liveness probe."""
    registry = kopf.OperatorRegistry()
    if runtime.rotator is not None:
        # Only with a server: kopf ends a process that has webhook handlers and no server.
        for plural, handler in validators(
            runtime.store,
            now,
            settings.watch_namespaces,
            settings.classes,
            gateways=settings.gateway_account is not None,
        ).items():
            kopf.on.validate(GROUP, VERSION, plural, id=plural, registry=registry)(handler)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(
            server=connection.host,
            ca_path=connection.ssl_ca_cert,
            certificate_path=connection.cert_file,
            private_key_path=connection.key_file,
            token=await connection.token(),
            expiration=now() + _LOGIN_LIFETIME,
        )

    @kopf.on.probe(id="loop", registry=registry)
    async def probe(**_: Any) -> str:
        if not runtime.is_alive():
            raise kopf.PermanentError("no reconcile cycle finished in the last minute")
        return "turning"

    return registry


if __name__ == "__main__":
    main()
