"""An earlier report of a load test, and the changes since then."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tessera.cli.errors import CommandError
from tessera_lab.cli.bench.json import FORMAT_VERSION, KIND, Json, report_json
from tessera_lab.cli.bench.report import BenchReport
from tessera_lab.load.comparison import BaselineComparison, Measures, compare_loads

_LATENCIES = ("ttft", "tpot", "e2eLatency")
_PERCENTILES = ("p50", "p95")
_RATES = ("requestsPerSecond", "outputTokensPerSecond")
# What should be equal in both, by its key.
_COMPARED_KEYS = ("model", "load", "endpoint", "warmup", "interrupted")
_HINT = "make one with tessera bench URL -o json > FILE"


def read_baseline(file: str) -> Json:
    """Return the report in a file; raise CommandError where it has none."""
    try:
        report = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--baseline {file}: {error.strerror or error}; {_HINT}") from None
    except (ValueError, RecursionError):
        raise CommandError(f"--baseline {file} is not JSON; {_HINT}") from None
    if not isinstance(report, dict) or report.get("kind") != KIND:
        raise CommandError(f"--baseline {file} is not a report of tessera bench; {_HINT}")
    if report.get("formatVersion") != FORMAT_VERSION:
        raise CommandError(
            f"--baseline {file} has format version {report.get('formatVersion')}, this version "
            f"reads {FORMAT_VERSION}; {_HINT}"
        )
    try:
        _measures(report)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CommandError(f"--baseline {file} is incomplete or was edited; {_HINT}") from None
    return report


def compare_reports(before: Json, report: BenchReport) -> BaselineComparison:
    """Compare the present report with an earlier one."""
    current = report_json(report)
    earlier_metrics, current_metrics = _measures(before), _measures(current)
    changes = tuple(compare_loads(earlier_metrics, current_metrics))
    caveats = (*_differences(before, current), *_missing_loads(earlier_metrics, current_metrics))
    return BaselineComparison(at=str(before.get("at")), changes=changes, caveats=caveats)


def _measures(report: Json) -> dict[str, Measures]:
    """Return the metrics of each load, by the keys of the report."""
    return {str(load["load"]): dict(_load_measures(load)) for load in report["levels"]}


def _load_measures(load: Json) -> Iterator[tuple[str, float]]:
    for key in _RATES:
        yield key, float(load[key])
    for name in _LATENCIES:
        distribution = load["latencySeconds"][name]
        for percentile in _PERCENTILES if distribution else ():
            yield f"{name}.{percentile}", float(distribution[percentile])
    price = (load["cost"] or {}).get("perMillionOutput")
    if price is not None:
        yield "perMillionOutput", float(price)


def _differences(before: Json, now: Json) -> Iterator[str]:
    for key in _COMPARED_KEYS:
        if before.get(key) != now[key]:
            yield (
                f"the baseline differs in {key}: {_format_value(before.get(key))}, now "
                f"{_format_value(now[key])}"
            )
    currencies = [(report.get("price") or {}).get("currency") for report in (before, now)]
    if None not in currencies and currencies[0] != currencies[1]:
        yield f"the baseline's prices are in {currencies[0]}, now in {currencies[1]}"


def _missing_loads(before: Mapping[str, Measures], now: Mapping[str, Measures]) -> Iterator[str]:
    if missing := [load for load in now if load not in before]:
        yield f"the baseline has no load {', '.join(missing)}; it has {', '.join(before)}"


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
