"""Queries with the bounds of their rows, and the combination of several into one."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

# The metric label that a PodMonitor derives from the pod label `tessera.dev/service`.
SERVICE = "tessera_dev_service"
# The metric label that it derives from `tessera.dev/variant`.
VARIANT = "tessera_dev_variant"
# Selects the series of services, of any metric.
_OF_SERVICES = f'{SERVICE}!=""'
OF_SERVICES = f"{{{_OF_SERVICES}}}"
_QUERY_LABEL = "tessera_question"
# What tells engines and gateways apart: their pod, or the target where no label names a pod.
_TARGETS = {"pod": 'pod!=""', "instance": 'pod=""'}
_ENGINE_LABELS = ("namespace", SERVICE, VARIANT, "model_name", "engine")
# Proxies refuse an address of more than 8 KiB, in which a query is longer by a third.
_MAX_UNION = 5000
_UNION = " or "

# Labels that the rows of a query need.
POD_LABELS = ("namespace", "pod")
SERVICE_LABELS = ("namespace", SERVICE)
GATEWAY_LABELS = ("service",)


def each_engine(series: str, *labels: str, matchers: str = _OF_SERVICES) -> str:
    """Return one series for each engine, of those that several targets may have of it.

    `series` has `%s` for its matchers. Of a counter it is the rate or the increase: the highest of
    two counters is not always of the same target. `labels` are those of the metric itself, beside
    those that all metrics of engines have.
    """
    return _each(series, matchers, (*_ENGINE_LABELS, *labels))


def each_gateway(series: str, target: str, *labels: str) -> str:
    """Return one series for each gateway, of those that several Prometheus replicas have of it.

    `target` selects the gateways' series, and `labels` are those of the metric; `series` is as for
    `each_engine`.
    """
    return _each(series, target, labels)


def _each(series: str, matchers: str, labels: Iterable[str]) -> str:
    return " or ".join(
        f"max by({','.join((target, *labels))})({series % f'{matchers},{place}'})"
        for target, place in _TARGETS.items()
    )


def sum_by_service(series: str, *labels: str) -> str:
    """Return the sum over the engines of each service; the arguments are those of `each_engine`."""
    return f"sum by (namespace, {SERVICE}) ({each_engine(series, *labels)})"


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


def short_groups(queries: Queries) -> Iterator[Queries]:
    """Yield the queries in groups whose union is short enough for an address."""
    group: dict[str, BoundedQuery] = {}
    length = 0
    for name, query in queries.items():
        more = len(_UNION) + len(_labeled(name, query))
        if group and length + more > _MAX_UNION + len(_UNION):
            yield group
            group, length = {}, 0
        group[name] = query
        length += more
    yield group


def union_query(queries: Queries) -> str:
    """Return one query for all; each request costs a few milliseconds, however short its result."""
    return _UNION.join(_labeled(name, query) for name, query in queries.items())


def _labeled(name: str, query: BoundedQuery) -> str:
    return f'label_replace({query.text}, "{_QUERY_LABEL}", "{name}", "", "")'


def split_by_query(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, list[Mapping[str, Any]]]:
    """Return the rows of each query; a query without a result is absent."""
    rows_by_query: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        rows_by_query[row["metric"].get(_QUERY_LABEL, "")].append(row)
    return rows_by_query
