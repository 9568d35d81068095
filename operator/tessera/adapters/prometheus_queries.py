"""Several questions to Prometheus in one, and what its answers consist of."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

# What a PodMonitor makes of the pod label `tessera.dev/service`.
SERVICE = "tessera_dev_service"
# Likewise, of `tessera.dev/variant`.
VARIANT = "tessera_dev_variant"
QueryRow = Mapping[str, Any]
_QUERY_LABEL = "tessera_question"


def union_query(queries: Mapping[str, str]) -> str:
    """One question for all: each costs a few milliseconds, however short its answer is."""
    return " or ".join(
        f'label_replace({query}, "{_QUERY_LABEL}", "{name}", "", "")'
        for name, query in queries.items()
    )


def split_by_query(rows: Iterable[QueryRow]) -> Mapping[str, list[QueryRow]]:
    """The answer to each; none for one that nothing is known about."""
    rows_by_query: dict[str, list[QueryRow]] = defaultdict(list)
    for row in rows:
        rows_by_query[row["metric"][_QUERY_LABEL]].append(row)
    return rows_by_query
