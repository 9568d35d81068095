"""PromQL of the product as text: which of it adds up what several targets report of one engine, or
one gateway.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tessera.domain.vllm.facts import known_versions, version_facts

_PAGE = Path(__file__).parents[1] / "docs/reference/metrics.md"
_ROW = re.compile(r"^\| `(tessera_gateway_\w+)` \| \w+ \| ([^|]*) \|", re.MULTILINE)
# A function or an operator of PromQL, as no other text has it.
PROMQL = re.compile(
    r"\b(?:rate|increase|\w+_over_time|histogram_quantile)\((?!\))|\b(?:sum|avg|count|max) by \("
)
_OPERATORS = "sum|avg|count|stddev|stdvar|quantile|topk|bottomk|count_values|max|min|group"
_TOKEN = re.compile(
    rf"(?P<operator>\b(?:{_OPERATORS})\b)\s*(?:(?P<kind>by|without)\s*"
    r"\((?P<labels>[^)]*)\))?\s*\(|(?P<metric>\b(?:vllm:|tessera_gateway_)\w+)(?:\{(?P<matchers>[^}]*)\})?"
    r'|"(?:[^"\\]|\\.)*"|[()]'
)
# What these return is the same when a series comes again.
_IDEMPOTENT = {"max", "min", "group"}
# What tells the pods apart in which engines and gateways run, and the matcher of the series that
# have it.
_TARGETS = (("pod", 'pod!=""'), ("instance", 'pod=""'))


class Aggregation(NamedTuple):
    """An operator with the labels that it keeps."""

    operator: str
    labels: set[str]


def repeated_metrics(expression: str) -> list[str]:
    """Return the metrics by which what has two targets counts twice, or one of two is lost."""
    return [
        metric
        for metric, matchers, enclosing in _pod_series(expression)
        if not _counts_once(metric, matchers, enclosing)
    ]


def _pod_series(expression: str) -> Iterator[tuple[str, str, Sequence[Aggregation]]]:
    """Yield each metric of a pod, its matchers, and its aggregations from the inside out."""
    # Parentheses that belong to no aggregation are None.
    stack: list[Aggregation | None] = []
    for token in _TOKEN.finditer(expression):
        if token["operator"]:
            labels = re.findall(r"\w+", token["labels"] or "") if token["kind"] == "by" else ()
            stack.append(Aggregation(token["operator"], set(labels)))
        elif token["metric"]:
            enclosing = [aggregation for aggregation in reversed(stack) if aggregation]
            yield token["metric"], token["matchers"] or "", enclosing
        elif token[0] == "(":
            stack.append(None)
        elif token[0] == ")":
            stack.pop()


def _counts_once(metric: str, matchers: str, enclosing: Sequence[Aggregation]) -> bool:
    if not enclosing or enclosing[0].operator not in _IDEMPOTENT:
        return False
    operator, labels = enclosing[0]
    if operator != "max" or all(outer.operator in _IDEMPOTENT for outer in enclosing):
        return True
    # Of gateways some queries select the namespace.
    namespace = set() if 'namespace="' in matchers else {"namespace"}
    return namespace | own_labels(metric) <= labels and any(
        target in labels and matcher in matchers for target, matcher in _TARGETS
    )


@cache
def own_labels(metric: str) -> frozenset[str]:
    """Return the labels that an engine or a gateway itself gives to the series of a metric."""
    family = re.sub(r"_(bucket|sum|count)$", "", metric)
    bound = {"le"} if metric.endswith("_bucket") else set()
    if metric.startswith("tessera_gateway_"):
        return frozenset(gateway_labels()[family] | bound)
    tables = [facts.metrics for version in known_versions() if (facts := version_facts(version))]
    known = [table[name] for table in tables for name in {metric, family} & table.keys()]
    assert known, f"{metric} is no metric of an engine"
    if metric.endswith("_info"):
        # Its other labels are its value.
        return frozenset({"engine"})
    labels = {label for each in known for label in each.labels}
    return frozenset(labels | bound)


@cache
def gateway_labels() -> Mapping[str, set[str]]:
    """Return the labels of each metric of gateways, by the page that is generated from them."""
    rows = _ROW.findall(_PAGE.read_text(encoding="utf-8"))
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
