"""The dashboards of the chart, and the metrics that they may query."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.domain.vllm.facts import known_versions, version_facts
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.telemetry.telemetry import Telemetry

FOLDER = Path(__file__).parents[1] / "charts" / "tessera" / "dashboards"
DASHBOARDS = sorted(FOLDER.glob("*.json"))
Json = dict[str, Any]
# Metrics of the DCGM exporter.
FOREIGN = {"DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"}


def read(path: Path) -> Json:
    dashboard: Json = json.loads(path.read_text(encoding="utf-8"))
    return dashboard


def targets(dashboard: Json) -> Iterator[Json]:
    for panel in dashboard["panels"]:
        yield from panel["targets"]


def known_metrics() -> set[str]:
    """Return all metrics of the operator and the gateway, under the names that Prometheus sees."""
    names = set[str]()
    parts = ["_bucket", "_sum", "_count"]
    for family in (*Telemetry().families(), *GatewayMetrics().families()):
        endings = {"counter": ["_total"], "histogram": parts}
        names |= {family.name + ending for ending in endings.get(family.type, [""])}
    for version in known_versions():
        if (facts := version_facts(version)) is not None:
            names |= set(facts.metrics)
            names |= {
                metric.name + part
                for metric in facts.metrics.values()
                if metric.type == "histogram"
                for part in parts
            }
    return names
