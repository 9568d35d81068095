"""The Prometheus query for the replicas that a service has wanted, by the operator's own series."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import BoundedQuery, Bounds
from tessera.adapters.prometheus.rows import QueryRow
from tessera.api.ref import Ref
from tessera.domain.economics.reservation import LoadCurve

_SPAN, _STEP = timedelta(days=7), timedelta(minutes=5)
# A person waits for it, and can do without.
_TIMEOUT_SECONDS = 3
_DESIRED = "tessera_service_desired_replicas"
# As many as a spec may have.
_BOUNDS = Bounds((), 1000)


async def read_load(metrics: PrometheusMetrics, service: Ref, at: datetime) -> LoadCurve | None:
    """Return the desired replicas of an existing service in the last 7 days.

    None without a sample; raises MetricsError on failure.
    """
    query = _load_query(metrics.own_target, service)
    return _load_of(await metrics.query_range(query, at - _SPAN, at, _STEP, _TIMEOUT_SECONDS))


async def oldest_sample(
    metrics: PrometheusMetrics, since: datetime, until: datetime
) -> datetime | None:
    """Return about when the first scrape between two moments was; None without any."""
    rows = await metrics.query_range(BoundedQuery("count(up)", Bounds((), 1e9)), since, until)
    return datetime.fromtimestamp(rows[0]["values"][0][0], UTC) if rows else None


def _load_query(target: str, service: Ref) -> BoundedQuery:
    """Return the query; `target` selects the series of the operator and none of tenants.

    The namespace of the target displaces that of the service, and so may its label `service`.
    """
    labels = f'{target},exported_namespace="{service.namespace}"'
    names = (
        f'{_DESIRED}{{{labels},service="{service.name}",exported_service=""}}',
        f'{_DESIRED}{{{labels},exported_service="{service.name}"}}',
    )
    return BoundedQuery(f"max({' or '.join(names)})", _BOUNDS)


def _load_of(rows: Sequence[QueryRow]) -> LoadCurve | None:
    """Return for how long how many were wanted, by the steps with a sample; None without any."""
    counts = Counter(round(replicas) for row in rows[:1] for _, replicas in row["values"])
    spans = (
        (count * _STEP.total_seconds(), replicas) for replicas, count in sorted(counts.items())
    )
    return LoadCurve(tuple(spans)) if counts else None
