"""`tessera-operator`: reads the environment, wires the operator, and runs it inside kopf."""

import argparse
import asyncio
import logging
import sys
from datetime import timedelta
from typing import Any

import kopf
from prometheus_client import start_http_server
from pydantic import ValidationError

from tessera.adapters import wire
from tessera.adapters.clock import now
from tessera.adapters.kube import Connection, KubeCluster, connect
from tessera.api.meta import GROUP, VERSION
from tessera.handlers.admission import batch_validator, budget_validator, validator
from tessera.handlers.runtime import Runtime
from tessera.ports import Clock
from tessera.resources.kinds import (
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    TENANT_BUDGETS,
    WATCHED,
    Kind,
)
from tessera.settings import Settings

log = logging.getLogger("tessera")

_LOGIN_LIFE = timedelta(minutes=10)
"""Tokens of ServiceAccounts are renewed in their file; kopf logs in anew this often."""

_CONNECT_SECONDS = 5.0
_LIST_SECONDS = 30.0
"""kopf's own five minutes would leave a kind unwatched that long when a list hangs. A watch that
goes silent is begun anew by kopf after 70 seconds, since bookmarks come every minute."""


def main() -> None:
    """Entry point of the operator's image."""
    parser = argparse.ArgumentParser(prog="tessera-operator", description="Runs the operator.")
    parser.add_argument("--host", default="0.0.0.0", help="address that its servers bind")
    host = parser.parse_args().host
    try:
        settings = Settings()
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        sys.exit(f"tessera-operator: the environment is not usable: {faults}")
    kopf.configure(log_format=kopf.LogFormat.JSON)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # kopf reports every refused admission as an error of its own.
    logging.getLogger("kopf.objects").setLevel(logging.CRITICAL)
    log.setLevel(settings.log_level.upper())
    sys.exit(asyncio.run(operate(settings, host)))


async def operate(
    settings: Settings, host: str, connection: Connection | None = None, clock: Clock = now
) -> int:
    """Run until told to stop. When any part ends, all end, and the pod begins anew.

    The exit status: not 0 when leadership was lost, so that the pod says that something was wrong.
    """
    connection = connection or await connect(settings.kubeconfig)
    cluster = KubeCluster(connection)
    runtime = Runtime(settings, cluster, clock)
    start_http_server(settings.metrics_port, host, runtime.registry)
    await runtime.mirror.seed()
    parts = (
        asyncio.create_task(runtime.run(), name="runtime"),
        asyncio.create_task(_framed(runtime, connection, settings, host), name="kopf"),
    )
    try:
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in parts:
            part.cancel()
        await asyncio.wait(parts)
        for part in parts:
            if not part.cancelled() and (error := part.exception()) is not None:
                raise error
        return 0 if parts[0].cancelled() else 1
    finally:
        await runtime.close()
        await cluster.close()


async def _framed(runtime: Runtime, connection: Connection, settings: Settings, host: str) -> None:
    """What kopf is for: watching, admission, probes, and the end of the process."""
    options = kopf.OperatorSettings()
    options.posting.enabled = False
    options.scanning.disabled = True
    options.networking.enforce_retry_after = True
    options.networking.connect_timeout = _CONNECT_SECONDS
    options.networking.request_timeout = _LIST_SECONDS
    options.process.ultimate_exiting_timeout = 30
    for kind in WATCHED:
        if kind.selector:
            options.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    if settings.webhook_certificates is not None:
        options.admission.managed = None
        options.admission.server = kopf.WebhookServer(
            addr=host,
            port=settings.webhook_port,
            certfile=settings.webhook_certificates / "tls.crt",
            pkeyfile=settings.webhook_certificates / "tls.key",
        )
    await kopf.operator(
        registry=_handlers(
            runtime, connection, admission=settings.webhook_certificates is not None
        ),
        settings=options,
        standalone=True,
        clusterwide=True,
        liveness_endpoint=f"http://{host}:{settings.probes_port}/healthz",
    )


def _handlers(
    runtime: Runtime, connection: Connection, *, admission: bool
) -> kopf.OperatorRegistry:
    """All handlers: they say that something changed, and decide nothing."""
    registry = kopf.OperatorRegistry()
    for kind in WATCHED:
        _watch(registry, runtime, kind)

    if admission:
        _admit(registry, runtime)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(
            server=connection.host,
            ca_path=connection.ssl_ca_cert,
            certificate_path=connection.cert_file,
            private_key_path=connection.key_file,
            token=await connection.token(),
            expiration=now() + _LOGIN_LIFE,
        )

    @kopf.on.probe(id="loop", registry=registry)
    async def probe(**_: Any) -> str:
        if not runtime.alive():
            raise kopf.PermanentError("the leader's loop has not turned for a minute")
        return "turning"

    return registry


def _admit(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    """Only where there is a server for it: kopf ends a process that has handlers and no server."""
    kopf.on.validate(
        GROUP, VERSION, INFERENCE_SERVICES.plural, id="inferenceservices", registry=registry
    )(validator(runtime.store))
    kopf.on.validate(
        GROUP, VERSION, BATCH_INFERENCES.plural, id="batchinferences", registry=registry
    )(batch_validator(runtime.store, now))
    kopf.on.validate(GROUP, VERSION, TENANT_BUDGETS.plural, id="tenantbudgets", registry=registry)(
        budget_validator(runtime.store)
    )


def _watch(registry: kopf.OperatorRegistry, runtime: Runtime, kind: Kind) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=registry)
    async def took(event: kopf.RawEvent, **_: Any) -> None:
        runtime.mirror.take(kind, event["type"], wire.seen(kind, event["object"]))


if __name__ == "__main__":
    main()
