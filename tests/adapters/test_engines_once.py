"""Each query, rule and panel counts an engine, and a rule or panel a gateway, once, however many
targets report it."""

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from tessera.adapters.prometheus.load import read_load
from tessera.adapters.prometheus.load_history import LoadHistories, RecordedService
from tessera.adapters.prometheus.metrics import REPEATED_ENGINES, PrometheusMetrics
from tessera.adapters.prometheus.queries import each_engine
from tessera.api.ref import Ref
from tessera.cli.doctor.metrics import check_prometheus
from tessera.cli.errors import CommandError
from tessera.cli.forecast.arguments import FORECAST
from tessera.cli.forecast.command import run
from tessera.domain.cost.statement import ScrapeRef
from tessera.domain.slo.measurement import LatencyEdges
from tessera_lab.cli.live_series import LiveSeries, selector_of
from tessera_lab.cli.simulate.live_load import _histogram
from tests.builders import NOW
from tests.cli.check_contexts import a_check_context
from tests.cli.test_doctor import a_healthy_cluster
from tests.dashboards import DASHBOARDS, read, targets
from tests.promql import PROMQL, repeated_metrics
from tests.test_rules import RULES

SOURCE = Path(__file__).parents[2] / "operator"
# The folder whose readers are called, and the modules that write queries apart from it.
ADAPTERS = "tessera/adapters/prometheus"
OTHER_MODULES = {
    "tessera/cli/forecast/alert_rule.py",
    "tessera_lab/cli/live_series.py",
    "tessera_lab/cli/simulate/live_load.py",
}
# Examples of what the readers of Prometheus are asked for.
ARGUMENTS: Mapping[str, Any] = {
    "at": NOW,
    "begin": NOW - timedelta(days=14),
    "counter": "vllm:prompt_tokens_total",
    "edges": LatencyEdges(frozenset({1.0}), frozenset({0.05}), frozenset({1.0})),
    "end": NOW,
    "now": NOW,
    "pods": ["team-a/chat-0"],
    "samples": True,
    "scrape": ScrapeRef((), NOW),
    "seconds": 300,
    "since": NOW - timedelta(days=14),
    "span": timedelta(hours=1),
    "step": 300,
    "until": NOW,
}
# Queries of others, which this project does not write.
PASSED_ON = {"count_series", "query", "query_range", "query_union"}


class RecordedSeries(LiveSeries):
    """Answers each query of a command with nothing, and remembers it."""

    def __init__(self, url: str, selector: str) -> None:
        super().__init__(url, selector)
        self.queries: list[str] = []

    @override
    def query(self, path: str, **params: Any) -> list[Any]:
        self.queries.append(params["query"])
        return []


class RecordedQueries(list[str]):
    """Answers each query with nothing, and remembers it."""

    def custom_query(self, query: str, *_: Any, **__: Any) -> list[Any]:
        self.append(query)
        return []

    custom_query_range = custom_query


def results(reader: object) -> Iterator[Any]:
    """Yield what each public method of a reader returns."""
    for name, method in inspect.getmembers(reader, inspect.ismethod):
        if not name.startswith("_") and name not in PASSED_ON:
            parameters = inspect.signature(method).parameters
            assert parameters.keys() <= ARGUMENTS.keys(), f"{name}: add examples of its arguments"
            yield method(**{parameter: ARGUMENTS[parameter] for parameter in parameters})


async def queries_of_adapters() -> list[str]:
    queries = RecordedQueries()
    metrics = PrometheusMetrics("http://unused", lambda: NOW)
    metrics._client = queries
    for result in (*results(metrics), *results(metrics.energy)):
        if inspect.isawaitable(result):
            await result
    await read_load(metrics, Ref("team-a", "chat"), NOW)
    service, histories = RecordedService(Ref("team-a", "chat"), "chat"), LoadHistories(metrics)
    histories.due([service], NOW)
    await histories.read(service, NOW)
    _, api = await a_healthy_cluster()
    await check_prometheus(a_check_context(api, series_counter=lambda _: metrics))
    return queries


def queries_of_commands() -> Iterator[str]:
    options = ("--requests", "1/s", "--prompt-tokens", "8", "--answer-tokens", "2")
    rule = json.loads(run(FORECAST.parse((*options, "--service", "a/b", "--alert-rule"))).text)
    yield rule["spec"]["groups"][0]["rules"][0]["expr"]
    series = RecordedSeries("http://unused", selector_of(Ref("team-a", "chat")))
    series.requests_by_step(0, 600, 300)
    series.increase("vllm:prompt_tokens_total", 300, 600)
    with suppress(CommandError):
        _histogram(series, "vllm:request_prompt_tokens", 300, 600)
    yield from series.queries


async def test_each_query_counts_an_engine_once() -> None:
    recorded = (*await queries_of_adapters(), *queries_of_commands())
    # The query for engines that come twice has to see both.
    queries = {query.replace(REPEATED_ENGINES.text, "") for query in recorded}
    assert {query: repeated for query in queries if (repeated := repeated_metrics(query))} == {}
    text = " ".join(queries)
    # Each metric that a module with queries names is in one of those.
    names = {name for module in modules_with_queries() for name in engine_metrics(module)}
    assert names
    assert {name for name in names if name not in text} == set()


def test_each_rule_and_panel_counts_an_engine_and_a_gateway_once() -> None:
    panels = [target["expr"] for path in DASHBOARDS for target in targets(read(path))]
    for expression in (*(rule["expr"] for rule in RULES), *panels):
        assert repeated_metrics(expression) == [], expression


def test_no_other_module_has_queries() -> None:
    others = {
        str(module.relative_to(SOURCE))
        for module in modules_with_queries()
        if not module.is_relative_to(SOURCE / ADAPTERS)
    }
    assert others == OTHER_MODULES


@cache
def modules_with_queries() -> tuple[Path, ...]:
    """Return the modules with PromQL in a string."""
    modules = [path for path in SOURCE.rglob("*.py") if PROMQL.search(path.read_text("utf-8"))]
    return tuple(path for path in sorted(modules) if any(map(PROMQL.search, texts(path))))


def engine_metrics(module: Path) -> set[str]:
    return {name for text in texts(module) for name in re.findall(r"vllm:\w+", text)}


def texts(module: Path) -> Iterator[str]:
    """Yield the strings of a module, of f-strings their constant parts."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


RUNNING = "vllm:num_requests_running"
BY_POD = "namespace, pod, model_name, engine"
PODS = f'{RUNNING}{{pod!=""}}'
QUEUED = 'tessera_gateway_requests_queued{pod!=""}'
TOKENS = 'tessera_gateway_tokens_total{pod!=""}'


@pytest.mark.parametrize(
    "planted",
    [
        f"sum by (namespace) ({PODS})",
        f"avg by (namespace) (avg_over_time({RUNNING}[5m]))",
        f"count({PODS})",
        RUNNING,
        # What is left out tells no engine from a target with a label of another name.
        f"sum by (namespace) (max without (job, instance) ({PODS}))",
        f"sum by (namespace) (max by (namespace, pod) ({PODS}))",
        f"sum by (namespace) (max by (namespace, model_name, engine) ({PODS}))",
        f"sum by (namespace) (max by ({BY_POD}, instance) ({RUNNING}))",
        f'sum by (namespace) (max by ({BY_POD}) (rate(vllm:request_success_total{{pod!=""}}[5m])))',
        f"max by (namespace) ({PODS}) / sum by (namespace) ({PODS})",
        f"sum by (service) (rate({TOKENS}[5m]))",
        QUEUED,
        f"sum by (service) (max by (namespace, pod, service) ({TOKENS}))",
        f"sum by (service) (max by (pod, service) ({QUEUED}))",
        f"sum by (service) (max by (namespace, pod, service) ({QUEUED.partition('{')[0]}))",
    ],
)
def test_a_sum_over_targets_is_found(planted: str) -> None:
    assert repeated_metrics(planted)


def test_a_sum_over_engines_is_none_over_targets() -> None:
    gateways = (
        f"max by (namespace, pod, service) ({QUEUED})",
        f"max by (namespace, pod, tenant, service, kind) (rate({TOKENS}[5m]))",
    )
    for series in (each_engine(f"{RUNNING}{{%s}}"), f"max by ({BY_POD}) ({PODS})", *gateways):
        assert repeated_metrics(f"sum by (namespace) ({series})") == []
