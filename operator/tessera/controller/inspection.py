"""`tessera-operator --inspect`: checks of the installation, which `helm test` runs."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path

from tessera.adapters import certificates
from tessera.adapters.catalog_file import read_catalog
from tessera.adapters.kube.admission_objects import AdmissionObjects
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.api.api_resource import ApiResource
from tessera.api.text import counted
from tessera.controller.runtime import LEASE
from tessera.domain.hardware.gpu_catalog import shipped
from tessera.ports import Clock, ClusterError
from tessera.resources.api_resources import AUTOSCALING, KINDS, POD_MONITORS
from tessera.settings import Settings

# A leader renews its Lease every two seconds, and loses it after 15.
_MAX_LEASE_AGE = timedelta(seconds=30)
# Whether the check passed, and a sentence about it.
InspectionFinding = tuple[bool, str]


async def inspect(
    settings: Settings, cluster: KubeCluster, clock: Clock
) -> AsyncIterator[InspectionFinding]:
    """Yield every finding; nothing is written."""
    yield await _check_kinds(cluster, (*KINDS, *AUTOSCALING) if settings.hpa_enabled else KINDS)
    yield await _check_leader(settings, cluster, clock())
    if settings.webhook_service is not None:
        yield await _check_certificate(settings, settings.webhook_service, cluster, clock())
    if settings.catalogs_file is not None:
        yield _check_catalogs(settings.catalogs_file)
    yield await _check_readings(settings, clock)


async def _check_kinds(cluster: KubeCluster, kinds: Sequence[ApiResource]) -> InspectionFinding:
    """Check that the CRDs are installed and RBAC grants the lists."""
    for kind in kinds:
        try:
            if await cluster.list(kind) is None and kind is not POD_MONITORS:
                return False, f"the API server does not know {kind.plural}: install the CRDs"
        except ClusterError as error:
            return False, str(error)
    return True, f"all {len(kinds)} kinds can be listed"


async def _check_leader(
    settings: Settings, cluster: KubeCluster, at: datetime
) -> InspectionFinding:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases/{LEASE}"
    status, lease = await cluster.request("GET", path)
    if status != HTTPStatus.OK:
        return False, f"Lease/{LEASE} cannot be read: {status} {lease.get('message', '')}"
    holder = lease["spec"].get("holderIdentity")
    age = at - datetime.fromisoformat(lease["spec"]["renewTime"])
    if not holder or age > _MAX_LEASE_AGE:
        return False, f"no leader: Lease/{LEASE} was renewed {age.total_seconds():.0f} s ago"
    return True, f"the leader is {holder}"


async def _check_certificate(
    settings: Settings, service: str, cluster: KubeCluster, at: datetime
) -> InspectionFinding:
    objects = AdmissionObjects(
        cluster,
        namespace=settings.namespace,
        secret=service,
        webhooks=settings.webhook_configuration,
    )
    secret = await objects.read()
    expires = None if secret.serving is None else certificates.expiry(secret.serving)
    if expires is None or expires <= at:
        return False, f"Secret/{service} has no valid certificate"
    return True, f"the webhook certificate is valid for {counted((expires - at).days, 'day')}"


def _check_catalogs(path: Path) -> InspectionFinding:
    extended, faults = read_catalog(path)
    if faults:
        return False, "; ".join(faults)
    gpus = len(extended.products) - len(shipped().products)
    shapes = len(extended.models) - len(shipped().models)
    return True, f"catalogs: {counted(gpus, 'GPU')} and {counted(shapes, 'model')} are added"


async def _check_readings(settings: Settings, clock: Clock) -> InspectionFinding:
    if settings.prometheus_url is None:
        return True, "prometheus.url is not set: replicas are never scaled"
    access = settings.prometheus_access
    readings = await PrometheusMetrics(settings.prometheus_url, clock, access).read()
    if readings.problem:
        return False, readings.problem
    return True, f"Prometheus has metrics of {counted(len(readings.pods), 'engine')}"
