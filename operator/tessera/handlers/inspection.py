"""`tessera-operator --inspect`: can this installation work? `helm test` asks that."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from http import HTTPStatus

from tessera.adapters import certificates
from tessera.adapters.admission_objects import AdmissionObjects
from tessera.adapters.kube import KubeCluster
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.handlers.runtime import LEASE
from tessera.ports import Clock, ClusterError
from tessera.resources.kinds import KINDS, POD_MONITORS
from tessera.settings import Settings

_FRESH = timedelta(seconds=30)
"""A leader renews its Lease every two seconds, and loses it after 15."""
Finding = tuple[bool, str]
"""Whether it is well, and the sentence."""


async def inspect(settings: Settings, cluster: KubeCluster, clock: Clock) -> AsyncIterator[Finding]:
    """Every finding; nothing is written."""
    yield await _kinds(cluster)
    yield await _leader(settings, cluster, clock())
    if settings.webhook_service is not None:
        yield await _certificate(settings, settings.webhook_service, cluster, clock())
    yield await _readings(settings, clock)


async def _kinds(cluster: KubeCluster) -> Finding:
    """The CRDs are there, and the rights to list."""
    for kind in KINDS:
        try:
            if await cluster.list(kind) is None and kind is not POD_MONITORS:
                return False, f"the API server does not know {kind.plural}: install the CRDs"
        except ClusterError as error:
            return False, str(error)
    return True, f"all {len(KINDS)} kinds can be listed"


async def _leader(settings: Settings, cluster: KubeCluster, at: datetime) -> Finding:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases/{LEASE}"
    status, lease = await cluster.request("GET", path)
    if status != HTTPStatus.OK:
        return False, f"the Lease {LEASE} cannot be read: {status} {lease.get('message', '')}"
    holder = lease["spec"].get("holderIdentity")
    age = at - datetime.fromisoformat(lease["spec"]["renewTime"])
    if not holder or age > _FRESH:
        return False, f"nobody leads: the Lease {LEASE} was renewed {age.total_seconds():.0f} s ago"
    return True, f"{holder} leads"


async def _certificate(
    settings: Settings, service: str, cluster: KubeCluster, at: datetime
) -> Finding:
    objects = AdmissionObjects(
        cluster,
        namespace=settings.namespace,
        secret=service,
        webhooks=settings.webhook_configuration,
    )
    held = await objects.read()
    ends = None if held.serving is None else certificates.end(held.serving)
    if ends is None or ends <= at:
        return False, f"the Secret {service} holds no certificate that can be served"
    return True, f"admission has a certificate for {(ends - at).days} more days"


async def _readings(settings: Settings, clock: Clock) -> Finding:
    if settings.prometheus_url is None:
        return True, "prometheus.url is not set, so replicas are kept and never scaled"
    readings = await PrometheusMetrics(settings.prometheus_url, clock).read()
    if readings.problem:
        return False, f"Prometheus at {settings.prometheus_url}: {readings.problem}"
    return True, f"Prometheus answers, with {len(readings.pods)} engines"
