"""The report of a load test as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.domain.money import Money
from tessera_lab.cli.bench.report import PERCENTILES, BenchReport
from tessera_lab.load.comparison import BaselineComparison
from tessera_lab.load.distribution import Distribution
from tessera_lab.load.knee import KNEE_RULE
from tessera_lab.load.load_metrics import LoadMetrics
from tessera_lab.load.token_cost import TokenCost

Json = dict[str, Any]
KIND = "TesseraBench"
# Raised by changes that readers of an older version would not understand.
FORMAT_VERSION = 2


def as_json(report: BenchReport) -> str:
    """Return everything with all digits; unknown values are null."""
    return json.dumps(report_json(report), indent=2) + "\n"


def report_json(report: BenchReport) -> Json:
    plan, knee = report.plan, report.knee
    price, peaks = plan.price, plan.peaks
    return {
        "kind": KIND,
        "formatVersion": FORMAT_VERSION,
        "tessera": report.tessera,
        "at": report.at.isoformat(),
        "url": plan.base,
        "model": report.model,
        "endpoint": report.endpoint,
        "load": plan.description,
        "seed": plan.seed,
        "warmup": report.warmup,
        "timeoutSeconds": report.timeout_seconds,
        "percentiles": PERCENTILES,
        "interrupted": report.interrupted,
        "peaks": asdict(peaks) if peaks else None,
        "price": {
            "perHour": str(price.per_hour.rounded(9)),
            "currency": price.per_hour.currency,
            "outputInputRatio": str(price.output_input_ratio),
        }
        if price
        else None,
        "levels": [
            _result_json(result, warnings)
            for result, warnings in zip(report.results, report.warnings, strict=True)
        ],
        "knee": {"concurrency": knee.concurrency, "passed": knee.passed, "rule": KNEE_RULE}
        if knee
        else None,
        "baseline": _comparison(report.comparison) if report.comparison else None,
        "notes": list(report.notes),
    }


def _comparison(comparison: BaselineComparison) -> Json:
    return {
        "at": comparison.at,
        "changes": [{**asdict(change), "change": change.share} for change in comparison.changes],
        "caveats": list(comparison.caveats),
    }


def _result_json(result: LoadMetrics, warnings: Sequence[str]) -> Json:
    measurement, latencies = result.measurement, result.latencies
    return {
        "load": measurement.name,
        "concurrency": measurement.concurrency,
        "seconds": measurement.seconds,
        "requests": {
            "completed": result.completed,
            "failed": dict(result.failures),
            "unfinished": measurement.unfinished,
        },
        "examples": _examples(result),
        "inputTokens": result.input_tokens,
        "outputTokens": result.output_tokens,
        "exactTokens": all(
            response.exact_tokens for response in measurement.responses if response.complete
        ),
        "cachedShare": result.cached_share,
        "requestsPerSecond": result.requests_per_second,
        "outputTokensPerSecond": result.output_per_second,
        "saturatedOutputTokensPerSecond": result.saturated_output_per_second,
        "totalTokensPerSecond": result.total_per_second,
        "tokensPerSecondPerUser": result.per_user,
        "meanConcurrency": result.mean_concurrency,
        "bottleneck": str(result.bottleneck),
        "latencySeconds": {
            "ttft": _distribution(latencies.ttft),
            "tpot": _distribution(latencies.tpot),
            "itl": _distribution(latencies.itl),
            "e2eLatency": _distribution(latencies.end_to_end),
        },
        "engine": {**_camel(asdict(result.activity)), "countersMatch": result.counters_match}
        if result.activity
        else None,
        "cost": _cost(result.cost),
        "client": _camel(asdict(result.client)),
        "warnings": list(warnings),
    }


def _examples(result: LoadMetrics) -> Json:
    """Return the server's message of the first failure of each kind."""
    examples: Json = {}
    for response in result.measurement.responses:
        if response.failure:
            examples.setdefault(response.failure, response.detail)
    return examples


def _distribution(distribution: Distribution | None) -> Json | None:
    return asdict(distribution) if distribution else None


def _cost(cost: TokenCost | None) -> Json | None:
    if cost is None:
        return None
    values = ((field.name, getattr(cost, field.name)) for field in fields(cost))
    return _camel(
        {
            name: str(value.rounded(9)) if isinstance(value, Money) else value
            for name, value in values
        }
    )


def _camel(named: Json) -> Json:
    return {to_camel(name): value for name, value in named.items()}
