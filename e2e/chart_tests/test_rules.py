"""The chart's recording rules and alerts, as Prometheus itself evaluates them on test series."""

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.cluster import CHART, ROOT
from world import binaries

SERVICE = 'namespace="team-a",tessera_dev_service="chat"'
POD = f'{SERVICE},pod="chat-0",tessera_dev_variant="a100-1g-10gb"'
OTHER = f'{SERVICE},pod="chat-1",tessera_dev_variant="a100-1g-10gb"'
# The labels of the operator's own metrics, as its PodMonitor leaves them.
EXPORTED = 'namespace="tessera-system",exported_namespace="team-a",service="chat"'
HONORED = 'namespace="team-a",service="chat"'
CHAT = {"namespace": "team-a", "tessera_dev_service": "chat"}
PEAK = 'tessera_service_peak_flops{%s,variant="a100-1g-10gb"}'
PREDICTED = 'tessera_service_output_tokens_per_second{%s,kind="predicted"}'
Series = Mapping[str, str]


def always(value: float) -> str:
    """Return the samples of a constant gauge over three hours, one per minute."""
    return f"{value}x180"


def growing(a_second: float) -> str:
    """Return the samples of a growing counter over three hours, one per minute."""
    return f"0+{a_second * 60:g}x180"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fires:
    """A state in which an alert fires, after so many minutes and not a minute earlier."""

    alert: str
    series: Series
    minutes: int
    severity: str
    says: str
    labels: Mapping[str, str] = field(default_factory=lambda: CHAT)


# One request at a time: a device that is always busy, with a tenth of its peak operations.
BUSY = {
    'DCGM_FI_PROF_GR_ENGINE_ACTIVE{namespace="team-a",pod="chat-0"}': always(0.95),
    f"vllm:num_requests_running{{{POD}}}": always(1),
    f"vllm:estimated_flops_per_gpu_total{{{POD}}}": growing(4e12),
    PEAK % EXPORTED: always(40e12),
    f"vllm:generation_tokens_total{{{POD}}}": growing(300),
    PREDICTED % EXPORTED: always(1000),
}

FIRES = [
    Fires(
        alert="KVCacheSaturated",
        series={
            f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.97),
            f"vllm:kv_cache_usage_perc{{{OTHER}}}": always(0.5),
        },
        minutes=5,
        severity="warning",
        says="97% of it has been in use for 5 minutes",
    ),
    Fires(
        alert="KVCacheOverProvisioned",
        series={
            f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.4),
            f"vllm:num_requests_running{{{POD}}}": always(3),
        },
        minutes=60,
        severity="info",
        says="At most 40% of it has been in use for 1 hour",
    ),
    Fires(
        alert="EnginePreempts",
        series={f"vllm:num_preemptions_total{{{POD}}}": growing(0.1)},
        minutes=6,
        severity="warning",
        says="30 requests within 5 minutes lost their KV cache blocks",
    ),
    Fires(
        alert="BusyButInefficient",
        series=BUSY,
        minutes=16,
        severity="warning",
        says="Busy 95% of the time for 15 minutes",
    ),
    Fires(
        alert="OverProvisioned",
        series={
            f"vllm:generation_tokens_total{{{POD}}}": growing(100),
            PREDICTED % EXPORTED: always(1000),
        },
        minutes=61,
        severity="info",
        says="10% of the output tokens that its replicas can generate",
    ),
    Fires(
        alert="SpeedNotAsPredicted",
        series={
            f'tessera_service_condition{{{EXPORTED},condition="SpeedAsPredicted",'
            'reason="SlowerThanPredicted"}': always(0)
        },
        minutes=10,
        severity="warning",
        says="deviates more than 15 %",
        labels=CHAT | {"reason": "SlowerThanPredicted"},
    ),
    Fires(
        alert="LayoutBlocked",
        series={
            'tessera_pool_layout_ready{pool="a100",reason="NoSurgeCapacity"}': "0x20 _x160",
            'tessera_pool_layout_ready{pool="a100",reason="DisruptionBudget"}': "_x20 0x160",
        },
        minutes=30,
        severity="warning",
        says="Run kubectl tessera plan a100",
        labels={"pool": "a100"},
    ),
    Fires(
        alert="ClockNotTrusted",
        series={'tessera_clock_error_seconds{instance="10.0.0.1:8080"}': always(-7200)},
        minutes=5,
        severity="warning",
        says="correct the time of the node",
        labels={"instance": "10.0.0.1:8080"},
    ),
]

QUIET: list[tuple[str, str, Series]] = [
    (
        "a cache that is full for four minutes only",
        "KVCacheSaturated",
        {f"vllm:kv_cache_usage_perc{{{POD}}}": "0.97x4 0.94x1 0.97x4 0.5x170"},
    ),
    (
        "a cache that is used as it should be",
        "KVCacheOverProvisioned",
        {
            f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.85),
            f"vllm:num_requests_running{{{POD}}}": always(30),
        },
    ),
    (
        "a cache that is empty since nothing runs",
        "KVCacheOverProvisioned",
        {
            f"vllm:kv_cache_usage_perc{{{POD}}}": always(0),
            f"vllm:num_requests_running{{{POD}}}": always(0),
        },
    ),
    (
        "a cache that one replica uses well",
        "KVCacheOverProvisioned",
        {
            f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.1),
            f"vllm:kv_cache_usage_perc{{{OTHER}}}": always(0.8),
            f"vllm:num_requests_running{{{POD}}}": always(30),
        },
    ),
    (
        "preemptions of long ago",
        "EnginePreempts",
        {f"vllm:num_preemptions_total{{{POD}}}": always(700)},
    ),
    (
        "a single preemption",
        "EnginePreempts",
        {f"vllm:num_preemptions_total{{{POD}}}": "0x20 1x160"},
    ),
    (
        "devices that are busy with much work",
        "BusyButInefficient",
        BUSY | {f"vllm:estimated_flops_per_gpu_total{{{POD}}}": growing(16e12)},
    ),
    (
        "decoding of full batches, which takes few operations",
        "BusyButInefficient",
        BUSY | {f"vllm:generation_tokens_total{{{POD}}}": growing(800)},
    ),
    (
        "devices that are idle half of the time",
        "BusyButInefficient",
        BUSY | {'DCGM_FI_PROF_GR_ENGINE_ACTIVE{namespace="team-a",pod="chat-0"}': always(0.5)},
    ),
    (
        "a service that uses a third of what it has",
        "OverProvisioned",
        {
            f"vllm:generation_tokens_total{{{POD}}}": growing(330),
            PREDICTED % EXPORTED: always(1000),
        },
    ),
    (
        "a service without replicas",
        "OverProvisioned",
        {f"vllm:generation_tokens_total{{{POD}}}": always(5), PREDICTED % EXPORTED: always(0)},
    ),
    *(
        (
            f"the reason {reason}",
            "SpeedNotAsPredicted",
            {
                f'tessera_service_condition{{{EXPORTED},condition="SpeedAsPredicted",'
                f'reason="{reason}"}}': always(value)
            },
        )
        for reason, value in (("AsPredicted", 1), ("NotEnoughRequests", 0))
    ),
    *(
        (
            f"a pool with the reason {reason}",
            "LayoutBlocked",
            {f'tessera_pool_layout_ready{{pool="a100",reason="{reason}"}}': always(value)},
        )
        for reason, value in (
            ("AsPlanned", 1),
            ("AwaitingApproval", 0),
            ("OutsideMaintenanceWindow", 0),
            ("Planning", 0),
            ("Repartitioning", 0),
        )
    ),
    (
        "a pool that goes on before its time is over",
        "LayoutBlocked",
        {
            'tessera_pool_layout_ready{pool="a100",reason="NoSurgeCapacity"}': "0x20 _x160",
            'tessera_pool_layout_ready{pool="a100",reason="Repartitioning"}': "_x20 0x160",
        },
    ),
    (
        "a clock that was off for a minute",
        "ClockNotTrusted",
        {'tessera_clock_error_seconds{instance="10.0.0.1:8080"}': "-7200x4 0x160"},
    ),
]


@cache
def rule_file() -> dict[str, Any]:
    """Render the PrometheusRule for a cluster with a Prometheus operator; return its spec."""
    helm = binaries.ensure(print) / "helm"
    kind = "monitoring.coreos.com/v1/PrometheusRule"
    command = (str(helm), "template", "tessera", str(CHART), "--api-versions", kind)
    process = subprocess.run(
        [*command, "--show-only", "templates/rules.yaml"], check=True, capture_output=True
    )
    spec: dict[str, Any] = yaml.safe_load(process.stdout)["spec"]
    return spec


def get_alert_rule(alert: str) -> dict[str, Any]:
    rules = [rule for group in rule_file()["groups"] for rule in group["rules"]]
    (alert_rule,) = [rule for rule in rules if rule.get("alert") == alert]
    return dict(alert_rule)


def promtool(folder: Path, *tests: dict[str, Any]) -> None:
    """Run tests of rules; the failure shows what Prometheus found."""
    (folder / "rules.yaml").write_text(json.dumps(rule_file()))  # JSON is YAML
    config = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yaml").write_text(json.dumps(config))
    tool = binaries.ensure(print) / "promtool"
    command = [str(tool), "test", "rules", str(folder / "tests.yaml")]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def input_series(values: Series) -> dict[str, Any]:
    rows = [{"series": name, "values": samples} for name, samples in values.items()]
    return {"interval": "1m", "input_series": rows}


def expression_test(expr: str, minute: int, *values: tuple[str, float]) -> dict[str, Any]:
    samples = [{"labels": labels, "value": value} for labels, value in values]
    return {"expr": expr, "eval_time": f"{minute}m", "exp_samples": samples}


def firing_test(alert: str, minute: int, *values: tuple[str, float]) -> dict[str, Any]:
    expr = f'count by (alertname) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return expression_test(expr, minute, *values)


@pytest.mark.parametrize("case", FIRES, ids=lambda case: case.alert)
def test_an_alert_fires_when_its_time_is_over_and_not_before(case: Fires, tmp_path: Path) -> None:
    once = (f'{{alertname="{case.alert}"}}', 1)
    tests = [
        firing_test(case.alert, case.minutes - 1),
        firing_test(case.alert, case.minutes + 1, once),
        firing_test(case.alert, 150, once),
    ]
    alert_rule = get_alert_rule(case.alert)
    words = {name: fill_template(text, case) for name, text in alert_rule["annotations"].items()}
    assert case.says in words["description"]
    expected = {
        "exp_labels": {**case.labels, "severity": case.severity},
        "exp_annotations": words,
    }
    alerts = [{"eval_time": "150m", "alertname": case.alert, "exp_alerts": [expected]}]
    promtool(
        tmp_path, input_series(case.series) | {"promql_expr_test": tests, "alert_rule_test": alerts}
    )


def fill_template(text: str, case: Fires) -> str:
    """Fill the template of an annotation; the value is the first number of the case's text."""
    text_with_labels = re.sub(r"{{ \$labels\.(\w+) }}", lambda match: case.labels[match[1]], text)
    number = re.search(r"\d+%?", case.says)
    return re.sub(r"{{ \$value \| \w+ }}", number[0] if number else "", text_with_labels)


@pytest.mark.parametrize(("state", "alert", "values"), QUIET, ids=[case[0] for case in QUIET])
def test_an_alert_stays_quiet(state: str, alert: str, values: Series, tmp_path: Path) -> None:
    del state
    tests = [firing_test(alert, minute) for minute in range(10, 180, 10)]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests})


def test_every_alert_is_seen_to_fire_and_to_stay_quiet() -> None:
    alerts = {
        rule["alert"]
        for group in rule_file()["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert {case.alert for case in FIRES} == {alert for _, alert, _ in QUIET} == alerts


def test_every_alert_says_what_to_do() -> None:
    for group in rule_file()["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                page, _, anchor = rule["annotations"]["runbook"].partition("#")
                text = (ROOT / page).read_text(encoding="utf-8")
                assert f"\n## {rule['alert']}\n" in text
                assert anchor == rule["alert"].lower()


def test_busy_devices_of_engines_without_an_exporter_are_those_that_hold_requests(
    tmp_path: Path,
) -> None:
    name = 'DCGM_FI_PROF_GR_ENGINE_ACTIVE{namespace="team-a",pod="chat-0"}'
    without = {key: values for key, values in BUSY.items() if key != name}
    assert len(without) == len(BUSY) - 1
    once = ('{alertname="BusyButInefficient"}', 1)
    promtool(
        tmp_path,
        input_series(without) | {"promql_expr_test": [firing_test("BusyButInefficient", 60, once)]},
    )


@pytest.mark.parametrize("labels", [EXPORTED, HONORED])
def test_shares_of_the_peak_are_those_of_the_slice_whatever_the_scrape_calls_its_labels(
    labels: str, tmp_path: Path
) -> None:
    values = {
        f"vllm:estimated_flops_per_gpu_total{{{POD}}}": growing(10e12),
        f"vllm:estimated_flops_per_gpu_total{{{OTHER}}}": growing(30e12),
        PEAK % labels: always(40e12),
    }
    tests = [
        expression_test(
            "tessera:service_mfu:rate5m",
            20,
            (f"tessera:service_mfu:rate5m{{{SERVICE}}}", 0.5),
        )
    ]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests})


def test_replicas_of_another_variant_are_not_measured_by_the_peak_of_this_one(
    tmp_path: Path,
) -> None:
    old = f'{SERVICE},pod="chat-1",tessera_dev_variant="h100-1gpu"'
    values = {
        f"vllm:estimated_flops_per_gpu_total{{{POD}}}": growing(10e12),
        f"vllm:estimated_flops_per_gpu_total{{{old}}}": growing(300e12),
        PEAK % EXPORTED: always(40e12),
    }
    share = (f"tessera:service_mfu:rate5m{{{SERVICE}}}", 0.25)
    tests = [expression_test("tessera:service_mfu:rate5m", 20, share)]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests})


def test_without_a_prometheus_operator_or_when_turned_off_there_is_no_rule() -> None:
    helm = binaries.ensure(print) / "helm"
    kind = "monitoring.coreos.com/v1/PrometheusRule"
    for more in ((), ("--api-versions", kind, "--set", "rules.enabled=false")):
        command = (str(helm), "template", "tessera", str(CHART), *more)
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "PrometheusRule" not in process.stdout
