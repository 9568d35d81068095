"""The chart's recording rules and alerts: what can be said of them without Prometheus."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera.api.pool_reasons import LayoutReady
from tests.dashboards import DASHBOARDS, FOREIGN, known_metrics, read, targets

FOLDER = Path(__file__).parents[1] / "charts" / "tessera" / "rules"
RULES: list[dict[str, Any]] = [
    rule
    for name in ("speed.yaml", "slo.yaml", "alerts.yaml")
    for group in yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    for rule in group["rules"]
]


def test_every_rule_file_is_rendered() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        *("speed.yaml", "slo.yaml", "alerts.yaml"),
    }


def test_every_metric_is_exported_or_recorded_before() -> None:
    known = known_metrics() | FOREIGN
    for rule in RULES:
        metrics = set(
            re.findall(r"\b(?:tessera_(?!dev_)|tessera:|vllm:|DCGM_)[\w:]+", rule["expr"])
        )
        assert metrics
        assert metrics <= known, metrics - known
        known.add(rule.get("record", ""))


def test_layouts_that_wait_for_a_window_or_approval_are_not_blocked() -> None:
    [rule] = [rule for rule in RULES if rule.get("alert") == "LayoutBlocked"]
    [left_out] = re.findall(r'reason!~"([^"]+)"', rule["expr"])
    assert set(left_out.split("|")) == {
        LayoutReady.PLANNING,
        LayoutReady.AWAITING_APPROVAL,
        LayoutReady.OUTSIDE_MAINTENANCE_WINDOW,
        LayoutReady.REPARTITIONING,
    }


def test_every_record_serves_an_alert_or_a_panel() -> None:
    recorded = [rule["record"] for rule in RULES if "record" in rule]
    assert len(set(recorded)) == len(recorded)
    expressions = [rule["expr"] for rule in RULES]
    expressions += [target["expr"] for path in DASHBOARDS for target in targets(read(path))]
    assert [record for record in recorded if record not in " ".join(expressions)] == []


def test_panels_ask_for_what_is_recorded() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    expressions = " ".join(target["expr"] for path in DASHBOARDS for target in targets(read(path)))
    assert set(re.findall(r"tessera:[\w:]+", expressions)) <= recorded


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if "alert" in rule], ids=lambda r: r["alert"]
)
def test_an_alert_has_a_time_a_severity_and_annotations(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
