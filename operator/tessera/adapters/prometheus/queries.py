"""Queries with the bounds of their rows, and the combination of several into one."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

# The metric label that a PodMonitor derives from the pod label `tessera.dev/service`.
SERVICE = "tessera_dev_service"
# The metric label that it derives from `tessera.dev/variant`.
VARIANT = "tessera_dev_variant"
# Selects the series of services, of any metric.
OF_SERVICES = f'{{{SERVICE}!=""}}'
_QUERY_LABEL = "tessera_question"

# Labels that the rows of a query need.
POD_LABELS = ("namespace", "pod")
SERVICE_LABELS = ("namespace", SERVICE)
GATEWAY_LABELS = ("service",)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The labels that a row needs, and the largest value that it may have; the smallest is 0."""

    labels: tuple[str, ...]
    high: float


class BoundedQuery(NamedTuple):
    """A query, and the bounds of its rows."""

    text: str
    bounds: Bounds


Queries: TypeAlias = Mapping[str, BoundedQuery]


def union_query(queries: Queries) -> str:
    """Return one query for all; each request costs a few milliseconds, however short its result."""
    return " or ".join(
        f'label_replace({query.text}, "{_QUERY_LABEL}", "{name}", "", "")'
        for name, query in queries.items()
    )


def split_by_query(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, list[Mapping[str, Any]]]:
    """Return the rows of each query; a query without a result is absent."""
    rows_by_query: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        rows_by_query[row["metric"].get(_QUERY_LABEL, "")].append(row)
    return rows_by_query
