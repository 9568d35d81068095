"""The alert that `tessera forecast` prints, as Prometheus evaluates it on test series."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alerts.alert import Series, always, growing
from chart_tests.test_rules import input_series
from tessera.cli.forecast.arguments import FORECAST
from tessera.cli.forecast.command import run
from world import binaries

# A thousand tokens a second.
FORECAST_OPTIONS = (
    *("--requests", "1/s", "--prompt-tokens", "800", "--answer-tokens", "200"),
    *("--service", "team-a/chat", "--alert-rule"),
)
POD = 'namespace="team-a",tessera_dev_service="chat",pod="chat-0"'
OTHER_POD = 'namespace="team-b",tessera_dev_service="chat",pod="chat-0"'
FIRED = [{"labels": '{alertname="UsageAboveForecast"}', "value": 1}]


def gateway(kind: str, service: str = "team-a/chat", pod: str = "gateway-0") -> str:
    return f'tessera_gateway_tokens_total{{pod="{pod}",service="{service}",kind="{kind}"}}'


def engine(kind: str, labels: str = POD) -> str:
    return f"vllm:{kind}_tokens_total{{{labels}}}"


def printed_rule() -> dict[str, Any]:
    rule: dict[str, Any] = json.loads(run(FORECAST.parse(FORECAST_OPTIONS)).text)
    return rule


def promtool(folder: Path, values: Series, *tests: dict[str, Any], alerts: Any = ()) -> None:
    """Try the rule at moments of three hours; of the day before them there are no samples."""
    (folder / "rules.yaml").write_text(json.dumps(printed_rule()["spec"]))
    test = input_series(values) | {"promql_expr_test": tests, "alert_rule_test": list(alerts)}
    config = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "tests.yaml").write_text(json.dumps(config))
    command = [str(binaries.ensure(print) / "promtool"), "test", "rules"]
    process = subprocess.run(
        [*command, str(folder / "tests.yaml")], check=False, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr


def firing(minute: int, *samples: dict[str, Any]) -> dict[str, Any]:
    expr = 'count by (alertname) (ALERTS{alertname="UsageAboveForecast",alertstate="firing"})'
    return {"expr": expr, "eval_time": f"{minute}m", "exp_samples": list(samples)}


@pytest.mark.parametrize(
    "values",
    [
        # In 80 minutes more than twice the tokens of a day.
        {gateway("input"): growing(30_000), gateway("output"): growing(10_000)},
        {gateway("input", pod=f"gateway-{pod}"): growing(20_000) for pod in range(2)},
        {engine("prompt"): growing(30_000), engine("generation"): growing(10_000)},
    ],
)
def test_more_than_twice_the_tokens_of_a_day_fire_after_an_hour(
    values: Series, tmp_path: Path
) -> None:
    # 86.4 million tokens are forecast, and twice as many are used after 72 minutes.
    rule = printed_rule()["spec"]["groups"][0]["rules"][0]
    annotations = {
        **rule["annotations"],
        "description": rule["annotations"]["description"].replace(
            "{{ $value | humanize }}", "4.167"
        ),
    }
    expected = {"exp_labels": rule["labels"], "exp_annotations": annotations}
    alert = {"eval_time": "150m", "alertname": rule["alert"], "exp_alerts": [expected]}
    promtool(
        tmp_path, values, firing(131), firing(134, *FIRED), firing(170, *FIRED), alerts=[alert]
    )


@pytest.mark.parametrize(
    "values",
    [
        {gateway("input"): growing(15_000), gateway("cached"): growing(15_000)},
        {gateway("input", service="team-b/chat"): growing(40_000)},
        {engine("prompt", OTHER_POD): growing(40_000)},
        # Engines compute tokens again that gateways counted once.
        {gateway("input"): growing(15_000), engine("prompt"): growing(40_000)},
        {gateway("input"): always(1e12)},
        {},
    ],
    ids=["below twice", "another service", "another team", "both counted", "no growth", "none"],
)
def test_other_usage_stays_quiet(values: Series, tmp_path: Path) -> None:
    promtool(tmp_path, values, *(firing(minute) for minute in range(0, 180, 10)))
