"""Each query of an adapter counts a gateway once, however many Prometheus replicas report it."""

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module

import pytest

from tessera.adapters.prometheus.queries import each_gateway
from tests.adapters.test_engines_once import ADAPTERS, ARGUMENTS, SOURCE
from tests.promql import gateway_labels

TARGET = 'namespace="tessera-system"'
_METRIC = re.compile(
    r"(?P<operator>\w+) ?(?:by ?\((?P<labels>[^)]*)\))?\s*\((?:\w+\()?"
    r"(?P<series>(?:tessera_gateway_|\{__name__)[^}]*\})"
)


def queries_of_gateways() -> Iterator[str]:
    """Yield what the functions return that take a target, if it has series of gateways."""
    arguments = {**ARGUMENTS, "target": TARGET, "gateway_target": TARGET}
    for path in sorted((SOURCE / ADAPTERS).glob("*.py")):
        module = import_module(f"{ADAPTERS.replace('/', '.')}.{path.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            parameters = inspect.signature(function).parameters.keys()
            if name.endswith("_queries") and parameters & {"target", "gateway_target"}:
                queries = function(**{each: arguments[each] for each in parameters})
                each = queries.values() if isinstance(queries, Mapping) else queries
                yield from (query.text for query in each if "tessera_gateway_" in query.text)


def added_twice(query: str) -> list[str]:
    """Return the series by which a gateway that two replicas report counts twice."""
    return [
        series["series"]
        for series in _METRIC.finditer(query)
        if not _counts_once(query, series["operator"], series["labels"] or "", series["series"])
    ]


def _counts_once(query: str, operator: str, labels: str, series: str) -> bool:
    if operator != "max":
        return False
    if not re.search(r"\b(?:sum|count|avg)\b", query):
        return True
    result_labels, own = set(re.findall(r"\w+", labels)), gateway_labels()
    names = re.findall(r"tessera_gateway_\w+", series)
    needed = set[str]().union(*(own[_family(name)] for name in names))
    needed |= {"le"} if "_bucket{" in series else set()
    needed |= {"__name__"} if len(names) > 1 else set()
    targets = {"pod": 'pod!=""', "instance": 'pod=""'}
    return needed <= result_labels and any(
        label in result_labels and matcher in series for label, matcher in targets.items()
    )


def _family(name: str) -> str:
    return name.removesuffix("_bucket")


def test_each_query_counts_a_gateway_once() -> None:
    queries = tuple(queries_of_gateways())
    metrics = {name for query in queries for name in re.findall(r"tessera_gateway_\w+", query)}
    assert {_family(name) for name in metrics} <= gateway_labels().keys()
    assert {query: repeated for query in queries if (repeated := added_twice(query))} == {}
    # Each series that a module of the adapter names is in one of these queries.
    sources = [path.read_text(encoding="utf-8") for path in (SOURCE / ADAPTERS).glob("*.py")]
    named = {name for source in sources for name in re.findall(r"tessera_gateway_\w+", source)}
    assert {name for name in named if not any(each.startswith(name) for each in metrics)} == set()


QUEUED = "tessera_gateway_requests_queued"
ENDED = "tessera_gateway_requests_total"


@pytest.mark.parametrize(
    "planted",
    [
        f"sum by (service) ({QUEUED}{{{TARGET}}})",
        f"sum by (service) (rate({ENDED}{{{TARGET}}}[60s]))",
        f"count({QUEUED}{{{TARGET}}} == 0)",
        f"sum by (service) (max by(service)({QUEUED}{{{TARGET}}}))",
        f'sum by (service) (max by(pod,service)({ENDED}{{{TARGET},pod!=""}}))',
        f"sum by (service) ({each_gateway(f'rate({ENDED}{{%s}}[60s])', TARGET, 'service')})",
    ],
)
def test_a_sum_over_replicas_is_found(planted: str) -> None:
    assert added_twice(planted)


def test_a_sum_over_gateways_is_none_over_replicas() -> None:
    query = each_gateway(f"{QUEUED}{{%s}}", TARGET, "service")
    assert added_twice(f"sum by (service) ({query})") == []
