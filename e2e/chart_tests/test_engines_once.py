"""Engines that several targets report count once, as the real Prometheus answers."""

import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from chart_tests.test_rules import rule_file
from tessera.adapters.clock import now
from tessera.adapters.prometheus.metrics import ENGINES, REPEATED_ENGINES, PrometheusMetrics
from tessera.adapters.prometheus.queries import Bounds
from tessera.adapters.prometheus.rows import QueryRow, pod_ref
from tessera.domain.observed.snapshot import Ref
from tessera.domain.slo.measurement import LatencyEdges
from tessera.domain.vllm.facts import known_versions, version_facts
from tessera.ports import MetricsError
from tests.dashboards import DASHBOARDS, read, targets
from tests.prometheus import running_prometheus, served_pages
from world.testing import eventually

# What tells the second series of each engine from the first, by the namespace of the service.
REPEATED = {
    "jobs": {"job": "kubernetes-pods", "instance": "chat:8000"},
    "replicas": {"prometheus_replica": "prometheus-1"},
    "endpoints": {"endpoint": "metrics", "container": "sidecar", "instance": "10.0.0.9:9000"},
}
ONCE, WITHOUT_PODS = "once", "without-pods"
EDGES = LatencyEdges(frozenset({1.0}), frozenset({0.05}), frozenset({1.0}))
# The operator's own series, by which rules know what a service should reach.
OWN = 'job="tessera-system/tessera-operator",namespace="tessera-system"'
OF_SERVICE = f'{OWN},exported_namespace="%s",service="chat"'
_EDGE = 'tessera_service_slo_edge_info{%s,source="Engine",bound="upper",'
GAUGES = (
    'tessera_service_peak_flops{%s,variant="a100"}',
    'tessera_service_peak_bytes_per_second{%s,variant="a100"}',
    'tessera_service_output_tokens_per_second{%s,kind="predicted"}',
    _EDGE + 'objective="ttft",le="1.0"}',
    _EDGE + 'objective="itl",le="0.05"}',
)
# Records of two groups that are evaluated after others of these.
LAST_RECORDS = ("tessera:service_slo_burn:1h", "tessera:service_busy:avg5m")
RECORDS = '{__name__=~"tessera:.+"}'
ENGINES_OF_A_POD = 2
# The time before the start of Prometheus that has samples, and the time after it.
SPAN, AHEAD = timedelta(minutes=13), timedelta(minutes=8)
STEP = 30
# Prometheus scrapes, and evaluates rules, in these intervals.
INTERVALS = ("scrape_interval", "scrape_timeout", "evaluation_interval")


def labels_of(**labels: str) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def targets_of(namespace: str) -> Iterator[dict[str, str]]:
    """Yield the labels of the targets of both replicas of the service in a namespace."""
    for number in range(2):
        target = {
            "namespace": namespace,
            "pod": f"chat-{number}",
            "tessera_dev_service": "chat",
            "tessera_dev_variant": "a100",
            "job": f"{namespace}/tessera-engine",
            "instance": f"10.0.0.{number}:8000",
            "endpoint": "http",
            "prometheus_replica": "prometheus-0",
        }
        if namespace == WITHOUT_PODS:
            del target["pod"]
        yield target
        if namespace in REPEATED:
            yield target | REPEATED[namespace]


def engine_series(target: dict[str, str]) -> Iterator[tuple[str, float]]:
    """Yield all series of the page of a target, with their growth in a second; 0 of a gauge."""
    facts = version_facts(known_versions()[-1])
    assert facts is not None
    for metric in facts.metrics.values():
        for engine in range(ENGINES_OF_A_POD if "engine" in metric.labels else 1):
            own = {"engine": str(engine), "sleep_state": "awake"}
            labels = labels_of(**target, **{name: own.get(name, "16") for name in metric.labels})
            if metric.type == "histogram":
                for le, growth in (("0.05", 2.0), ("1.0", 3.0), ("+Inf", 4.0)):
                    yield f'{metric.name}_bucket{{{labels},le="{le}"}}', growth
                yield f"{metric.name}_count{{{labels}}}", 4.0
                yield f"{metric.name}_sum{{{labels}}}", 8.0
            else:
                yield f"{metric.name}{{{labels}}}", 4.0 if metric.type == "counter" else 0.0


def page(at: datetime) -> Iterator[str]:
    """Yield the samples of all series from `SPAN` before a moment to `AHEAD` after it."""
    series = [
        item
        for namespace in (ONCE, WITHOUT_PODS, *REPEATED)
        for target in targets_of(namespace)
        for item in engine_series(target)
    ]
    for namespace in (ONCE, WITHOUT_PODS, *REPEATED):
        own = OF_SERVICE % namespace
        series += [(gauge % own, 0.0) for gauge in GAUGES]
        energy = f'{own},state="allocated",source="Measured",split="Activity"'
        series.append((f"tessera_energy_joules_total{{{energy}}}", 100.0))
    series.append(('up{job="a"}', 0.0))
    begin = int((at - SPAN).timestamp())
    for name, growth in series:
        for second in range(0, int((SPAN + AHEAD).total_seconds()), STEP):
            yield f"{name} {growth * second or 1.0} {begin + second}000\n"


@contextlib.asynccontextmanager
async def prometheus_of(folder: Path) -> AsyncIterator[PrometheusMetrics]:
    """Yield a Prometheus that scrapes the samples once and evaluates the chart's rules.

    Samples of the future in an imported block would keep rules from writing theirs.
    """
    pages = iter(["".join(page(now()))])

    async def serve(_: web.Request) -> web.Response:
        return web.Response(text=next(pages, ""))

    groups = [{**group, "interval": "2s"} for group in rule_file()["groups"]]
    (folder / "rules.yaml").write_text(json.dumps({"groups": groups}), encoding="utf-8")
    async with served_pages(serve) as address:
        target = {"targets": [address]}
        config = {
            "global": dict.fromkeys(INTERVALS, "2s"),
            "scrape_configs": [
                {"job_name": "pages", "honor_labels": True, "static_configs": [target]},
            ],
            "rule_files": ["rules.yaml"],
        }
        async with running_prometheus(folder, config) as url:
            yield PrometheusMetrics(url, now)


def by_namespace(rows: Iterable[QueryRow]) -> dict[str, dict[Any, float]]:
    """Return the values by namespace, and by the other labels."""
    values: dict[str, dict[Any, float]] = defaultdict(dict)
    for row in rows:
        labels = dict(row["metric"])
        values[labels.pop("namespace")][frozenset(labels.items())] = row["value"][1]
    return values


def by_name(values: Mapping[Ref, Any]) -> dict[str, dict[str, Any]]:
    """Return the values by namespace and name."""
    names: dict[str, dict[str, Any]] = defaultdict(dict)
    for ref, value in values.items():
        names[ref.namespace][ref.name] = value
    return names


async def answers(metrics: PrometheusMetrics) -> dict[str, dict[str, dict[Any, Any]]]:
    """Return what readers, rules and panels say of engines, by namespace."""
    readings = await metrics.read(EDGES)
    end = now()
    rates, shares = await metrics.tokens()
    rows = await metrics.usage(end - timedelta(minutes=10), end) or ()
    readings_by_subject: dict[str, dict[str, dict[Any, Any]]] = {
        "pods": by_name(readings.pods),
        "steps": by_name({ref: engine.steps for ref, engine in readings.engines.items()}),
        "finished": by_name(readings.finished),
        "finish rates": by_name(readings.finish_rates),
        "token rates": by_name(readings.token_rates),
        "speeds": by_name(readings.speeds),
        "latencies": by_name({ref: latency.engines for ref, latency in readings.latencies.items()}),
        "energies": by_name(readings.energies),
        "rates": by_name(rates),
        "shares": by_name(shares),
        "usage": by_name(
            {Ref.parse(str(row.group[0])): row.model_dump(exclude={"group"}) for row in rows}
        ),
    }
    history = await metrics.load_history(timedelta(minutes=5))
    readings_by_subject["history"] = by_name({ref: loads[0] for ref, loads in history.items()})
    queries = {RECORDS: RECORDS}
    for path in DASHBOARDS:
        for target in targets(read(path)):
            if "vllm:" in target["expr"]:
                query = target["expr"].replace("$namespace", ".+").replace("$service", "chat")
                queries[f"{path.stem}: {target['expr']}"] = query
    for name, query in queries.items():
        readings_by_subject[name] = by_namespace(
            await metrics._query(query, Bounds(("namespace",), 1e300))
        )
    return readings_by_subject


async def test_engines_count_once_whatever_their_second_series_differ_by(tmp_path: Path) -> None:
    async with prometheus_of(tmp_path) as metrics:

        async def records_exist() -> None:
            try:
                counts = await metrics.count_series(LAST_RECORDS)
            except MetricsError as error:
                raise AssertionError("Prometheus starts") from error
            assert all(count > len(REPEATED) for count in counts.values())

        await eventually(records_exist)
        readings_by_subject = await answers(metrics)
        assert len(readings_by_subject) > 15
        for name, values in readings_by_subject.items():
            assert values[ONCE], name
            for namespace in REPEATED:
                assert values[namespace] == values[ONCE], (name, namespace)
        assert readings_by_subject["pods"][ONCE]["chat-0"].waiting == ENGINES_OF_A_POD
        # What no label names the pod of is told apart by its target.
        for name in ("finished", "token rates", "speeds", "latencies", "energies", "usage"):
            assert readings_by_subject[name][WITHOUT_PODS] == readings_by_subject[name][ONCE], name
        repeated = {Ref(namespace, f"chat-{number}") for namespace in REPEATED for number in "01"}
        rows = await metrics.query_union({"repeated": REPEATED_ENGINES})
        assert set(map(pod_ref, rows["repeated"])) == repeated
        assert (await metrics.count_series([ENGINES]))[ENGINES] == 5 * 2 * ENGINES_OF_A_POD
