"""Combination of several Prometheus queries into one, and the format of its results."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

# The metric label that a PodMonitor derives from the pod label `tessera.dev/service`.
SERVICE = "tessera_dev_service"
# The metric label that it derives from `tessera.dev/variant`.
VARIANT = "tessera_dev_variant"
_QUERY_LABEL = "tessera_question"


def union_query(queries: Mapping[str, str]) -> str:
    """Return one query for all; each request costs a few milliseconds, however short its result."""
    return " or ".join(
        f'label_replace({query}, "{_QUERY_LABEL}", "{name}", "", "")'
        for name, query in queries.items()
    )


def split_by_query(
    rows: Iterable[Mapping[str, Any]],
) -> Mapping[str, list[Mapping[str, Any]]]:
    """Return the rows of each query; a query without a result is absent."""
    rows_by_query: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        rows_by_query[row["metric"].get(_QUERY_LABEL, "")].append(row)
    return rows_by_query
