"""The chart's recording rules and alerts, as Prometheus itself evaluates them on test series."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from alerts import ALERTS
from alerts.alert import Alert, Series, always, growing
from alerts.slo import STUCK
from alerts.speed import ACTIVITY, BUSY, EXPORTED, OTHER, PEAK, POD, SERVICE
from demo.cluster import CHART, ROOT
from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.adapters.prometheus.latency import latency_queries
from tessera.adapters.prometheus.metrics import ACTIVITY as ACTIVITY_QUERY
from tessera.adapters.prometheus.metrics import CACHED_SHARE, REPEATED_GPUS
from tessera.adapters.prometheus.queries import union_query
from tessera.adapters.prometheus.speeds import STEPS
from tessera.domain.slo.measurement import LatencyEdges
from world import binaries

HONORED = 'namespace="team-a",service="chat"'


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


def rules_of(alert: str) -> dict[str, Any]:
    """Return the rules with only this alert, and what it reads: others take most of the time."""
    groups = rule_file()["groups"]
    rules = {rule_name(rule): rule["expr"] for group in groups for rule in group["rules"]}
    used, reached = {alert}, [alert]
    while reached:
        expr = rules[reached.pop()]
        read = {name for name in rules.keys() - used if re.search(rf"\b{re.escape(name)}\b", expr)}
        used |= read
        reached += read
    groups = [
        {**group, "rules": [rule for rule in group["rules"] if rule_name(rule) in used]}
        for group in groups
    ]
    return {"groups": [group for group in groups if group["rules"]]}


def rule_name(rule: dict[str, Any]) -> str:
    name: str = rule.get("record") or rule["alert"]
    return name


def promtool(folder: Path, *tests: dict[str, Any], alert: str | None = None) -> None:
    """Run tests of rules; the failure shows what Prometheus found."""
    rules = rules_of(alert) if alert else rule_file()
    (folder / "rules.yaml").write_text(json.dumps(rules))  # JSON is YAML
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


def alert_rules() -> list[dict[str, Any]]:
    rules = [rule for group in rule_file()["groups"] for rule in group["rules"]]
    return [rule for rule in rules if "alert" in rule]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_when_its_time_is_over_and_not_before(alert: Alert, tmp_path: Path) -> None:
    once = (f'{{alertname="{alert.name}"}}', 1)
    after = alert.fires.after or alert.minutes
    tests = [
        firing_test(alert.name, after - 1),
        firing_test(alert.name, after + 1, once),
        firing_test(alert.name, 150, once),
    ]
    annotations = alert.rule()["annotations"]
    expected = {
        "exp_labels": {**alert.fires.labels, "severity": alert.severity},
        "exp_annotations": {name: fill_template(text, alert) for name, text in annotations.items()},
    }
    alerts = [{"eval_time": "150m", "alertname": alert.name, "exp_alerts": [expected]}]
    promtool(
        tmp_path,
        input_series(alert.fires.series) | {"promql_expr_test": tests, "alert_rule_test": alerts},
        alert=alert.name,
    )


def fill_template(text: str, alert: Alert) -> str:
    """Fill the template of an annotation with the labels and the value of the firing example."""
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda match: alert.fires.labels[match[1]], text)
    return re.sub(r"{{ \$value \| \w+ }}", alert.fires.value, text)


@pytest.mark.parametrize(
    ("name", "state", "values"),
    [(alert.name, state, values) for alert in ALERTS for state, values in alert.silent.items()],
)
def test_an_alert_stays_quiet(name: str, state: str, values: Series, tmp_path: Path) -> None:
    del state
    tests = [firing_test(name, minute) for minute in range(180)]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests}, alert=name)


def test_every_alert_of_the_chart_is_seen_to_fire_and_to_stay_quiet() -> None:
    assert all(alert.silent for alert in ALERTS)
    assert alert_rules() == [alert.rule() for alert in ALERTS]


def test_every_alert_says_what_to_do() -> None:
    for rule in alert_rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        _, _, section = (ROOT / page).read_text(encoding="utf-8").partition(f"## {rule['alert']}\n")
        section = section.partition("\n## ")[0]
        assert [part in section for part in ("**Cause.**", "**Look at.**", "**Do.**")] == [True] * 3
        assert anchor == rule["alert"].lower()


def test_busy_devices_of_engines_without_an_exporter_are_those_that_hold_requests(
    tmp_path: Path,
) -> None:
    without = {key: values for key, values in BUSY.items() if key != ACTIVITY}
    assert len(without) == len(BUSY) - 1
    once = ('{alertname="BusyButInefficient"}', 1)
    promtool(
        tmp_path,
        input_series(without) | {"promql_expr_test": [firing_test("BusyButInefficient", 60, once)]},
    )


def test_requests_that_all_wait_for_their_first_token_use_up_the_error_budget(
    tmp_path: Path,
) -> None:
    once = ('{alertname="SLOBudgetBurnsFast"}', 1)
    promtool(
        tmp_path,
        input_series(STUCK) | {"promql_expr_test": [firing_test("SLOBudgetBurnsFast", 70, once)]},
    )


def test_the_error_budget_left_is_that_of_three_days(tmp_path: Path) -> None:
    [slow] = [alert for alert in ALERTS if alert.name == "SLOBudgetBurns"]
    left = f'{{{SERVICE},objective="itl"}}'
    tests = [expression_test("round(tessera:service_slo_budget_left:3d, 0.001)", 150, (left, -1))]
    promtool(tmp_path, input_series(slow.fires.series) | {"promql_expr_test": tests})


def test_the_query_of_latencies_takes_the_edges_that_decide_and_no_forged_gateway(
    tmp_path: Path,
) -> None:
    edges = LatencyEdges(frozenset({1.0}), frozenset({0.05}))
    gateway = 'namespace="tessera-system",service="team-a/chat"'
    ttft, itl = (
        f"vllm:{name}_seconds_bucket" for name in ("time_to_first_token", "inter_token_latency")
    )
    chunks = "tessera_gateway_inter_token_latency_seconds_bucket"
    values = {
        f'{ttft}{{{POD},le="0.5"}}': growing(1),
        f'{ttft}{{{POD},le="1.0"}}': growing(2),
        f'{ttft}{{{OTHER},le="1.0"}}': growing(1),
        f'{itl}{{{POD},le="+Inf"}}': growing(10),
        f"vllm:num_requests_waiting{{{POD}}}": "0+1x180",
        f'{chunks}{{{gateway},le="0.033"}}': growing(3),
        f'{chunks}{{{gateway},tessera_dev_service="liar",le="0.033"}}': growing(900),
    }
    engine = f'{SERVICE},tessera_dev_variant="a100-1g-10gb",tessera_question'
    expected = (
        (f'{{{engine}="ttft",le="1.0"}}', 900),
        (f'{{{engine}="itl",le="+Inf"}}', 3000),
        (f'{{{engine}="waiting"}}', 30),
        (f'{{{engine}="waiting_before"}}', 26),
        ('{service="team-a/chat",tessera_question="gateway_itl",le="0.033"}', 900),
    )
    query = union_query(latency_queries(edges, PrometheusAccess().gateway_target))
    tests = [expression_test(query, 30, *expected)]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests})


def test_the_query_of_the_cached_share_has_all_replicas_of_a_service(tmp_path: Path) -> None:
    values = {
        f"vllm:prompt_tokens_total{{{POD}}}": growing(30),
        f"vllm:prompt_tokens_total{{{OTHER}}}": growing(10),
        f"vllm:prompt_tokens_cached_total{{{POD}}}": growing(12),
        f"vllm:prompt_tokens_cached_total{{{OTHER}}}": growing(6),
        'vllm:prompt_tokens_total{namespace="team-b",tessera_dev_service="idle"}': always(7),
        'vllm:prompt_tokens_cached_total{namespace="team-b",tessera_dev_service="idle"}': always(7),
    }
    query = f"round({CACHED_SHARE.text}, 0.0001) >= 0"
    tests = [expression_test(query, 30, (f"{{{SERVICE}}}", 0.45))]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests})


def test_the_queries_of_steps_have_each_replica_and_its_devices_once(tmp_path: Path) -> None:
    pod = 'namespace="team-a",pod="chat-0"'
    counters = {
        "vllm:iteration_tokens_total_count": 25,
        "vllm:iteration_tokens_total_sum": 1000,
        "vllm:generation_tokens_total": 200,
    }
    values = {
        f'{name}{{{POD},model_name="chat",engine="0",instance="{target}"}}': f"0+{15 * rate}x8"
        for name, rate in counters.items()
        for target in ("one", "two")
    }
    values[f"vllm:num_requests_running{{{POD}}}"] = "0 4x3 3 4x2"
    name = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
    values[f'{name}{{{pod},UUID="a",instance="one"}}'] = "0.4 0.6x3 0.8x3"
    values[f'{name}{{{pod},UUID="a",instance="two"}}'] = "0x8"
    values[f'{name}{{{pod},UUID="b",instance="one"}}'] = "0.8x8"
    expected = {
        "replica_steps": 3000,
        "replica_worked": 120_000,
        "replica_tokens": 24_000,
        "replica_activity": 0.75,
        "replica_running": 3,
    }
    rows = ((f'{{{pod},tessera_question="{key}"}}', value) for key, value in expected.items())
    query = f"round({union_query(STEPS)}, 0.001)"
    tests = [expression_test(query, 2, *rows)]
    series = input_series(values) | {"interval": "15s"}
    promtool(tmp_path, series | {"promql_expr_test": tests})


def test_steps_of_two_minutes_that_were_not_scraped_whole_are_not_known(tmp_path: Path) -> None:
    samples = {
        "whole": "0+375x40",
        "rare": " _ ".join(map(str, range(0, 15_001, 750))),
        "gap": "0+375x34 _x3 14250+375x2",
        "back": "0+375x31 _x3 13125+375x5",
        "gone": "0+375x36 _x4",
    }
    values = {
        f'vllm:iteration_tokens_total_count{{{POD.replace("chat-0", pod)},engine="0"}}': numbers
        for pod, numbers in samples.items()
    }
    rows = [(f'{{namespace="team-a",pod="{pod}"}}', 3000.0) for pod in ("whole", "rare", "gap")]
    tests = [expression_test(STEPS["replica_steps"].text, 10, *rows)]
    series = input_series(values) | {"interval": "15s"}
    promtool(tmp_path, series | {"promql_expr_test": tests})


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


def test_the_energy_board_has_the_activity_and_the_power_of_each_gpu_once(tmp_path: Path) -> None:
    board = json.loads((CHART / "dashboards" / "energy.json").read_text(encoding="utf-8"))
    activity, power = (target["expr"] for target in board["panels"][0]["targets"])
    whole = 'UUID="a",gpu="0"'
    slices = {f'UUID="b",gpu="1",GPU_I_ID="{n}",GPU_I_PROFILE="{n}g.{n}0gb"': n for n in (1, 4)}
    values = {
        f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{whole}}}": always(0.5),
        'DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID="b",gpu="1"}': always(0.9),
        f"DCGM_FI_DEV_POWER_USAGE{{{whole}}}": always(200),
    }
    for labels in slices:
        values[f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{labels}}}"] = always(0.7)
        values[f"DCGM_FI_DEV_POWER_USAGE{{{labels}}}"] = always(150)
    tests = [
        expression_test(f"round({activity}, 0.001)", 20, ('{UUID="b"}', 0.5), ('{UUID="a"}', 0.5)),
        expression_test(power, 20, ('{UUID="a"}', 200), ('{UUID="b"}', 150)),
    ]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests})


def test_a_gpu_of_two_exporters_counts_once_by_the_one_that_does_not_hang(tmp_path: Path) -> None:
    name, pod = "DCGM_FI_PROF_GR_ENGINE_ACTIVE", 'namespace="team-a",pod="chat-0"'
    gpus = (
        ('UUID="a",instance="one"', 0.95),
        ('UUID="a",instance="two"', 0.0),
        ('UUID="b",instance="one"', 0.85),
        ('UUID="c",GPU_I_ID="1",instance="one"', 0.6),
        ('UUID="c",GPU_I_ID="2",instance="one"', 0.6),
    )
    values = {f"{name}{{{pod},{labels}}}": always(value) for labels, value in gpus}
    values[f"vllm:num_requests_running{{{POD}}}"] = always(4)
    tests = [
        expression_test(
            "tessera:service_activity:avg5m",
            20,
            (f"tessera:service_activity:avg5m{{{SERVICE}}}", 0.75),
        ),
        expression_test(f"round({ACTIVITY_QUERY.text}, 0.001)", 20, (f"{{{pod}}}", 0.75)),
        expression_test(REPEATED_GPUS, 20, ('{UUID="a"}', 2)),
    ]
    promtool(tmp_path, input_series(values) | {"promql_expr_test": tests})


def test_without_a_prometheus_operator_or_when_turned_off_there_is_no_rule() -> None:
    helm = binaries.ensure(print) / "helm"
    kind = "monitoring.coreos.com/v1/PrometheusRule"
    for more in ((), ("--api-versions", kind, "--set", "rules.enabled=false")):
        command = (str(helm), "template", "tessera", str(CHART), *more)
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "PrometheusRule" not in process.stdout
