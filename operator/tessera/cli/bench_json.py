"""The report of a load test as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tessera.cli.bench_report import PERCENTILES, Report
from tessera.domain.bench.changes import Against
from tessera.domain.bench.dollars import Dollars
from tessera.domain.bench.figures import Figures
from tessera.domain.bench.knee import RULE
from tessera.domain.bench.spread import Spread
from tessera.domain.money import Money

Json = dict[str, Any]
KIND = "TesseraBench"
FORM = 1
"""Counts changes of the form that a reader of an older one would not understand."""


def as_json(report: Report) -> str:
    """Everything with all digits; what is not known is null."""
    return json.dumps(fields(report), indent=2) + "\n"


def fields(report: Report) -> Json:
    price, peaks, knee = report.price, report.peaks, report.knee
    return {
        "kind": KIND,
        "form": FORM,
        "tessera": report.tessera,
        "at": report.at.isoformat(),
        "url": report.url,
        "model": report.model,
        "endpoint": report.endpoint,
        "load": report.told,
        "seed": report.seed,
        "warmup": report.warmup,
        "timeoutSeconds": report.timeout_seconds,
        "percentiles": PERCENTILES,
        "interrupted": report.interrupted,
        "peaks": asdict(peaks) if peaks else None,
        "price": {
            "perHour": str(price.per_hour.rounded(9)),
            "currency": price.per_hour.currency,
            "outputOverInput": str(price.output_over_input),
        }
        if price
        else None,
        "levels": [
            _level(one, found) for one, found in zip(report.levels, report.cautions, strict=True)
        ],
        "knee": {"concurrency": knee.concurrency, "passed": knee.passed, "rule": RULE}
        if knee
        else None,
        "baseline": _against(report.against) if report.against else None,
        "notes": list(report.notes),
    }


def _against(found: Against) -> Json:
    return {
        "at": found.at,
        "changes": [{**asdict(one), "share": one.share} for one in found.changes],
        "doubts": list(found.doubts),
    }


def _level(one: Figures, cautions: Sequence[str]) -> Json:
    level, found = one.level, one.latencies
    return {
        "load": level.name,
        "concurrency": level.concurrency,
        "seconds": level.seconds,
        "requests": {
            "whole": one.whole,
            "failed": dict(one.failures),
            "unfinished": level.unfinished,
        },
        "examples": _examples(one),
        "inputTokens": one.input_tokens,
        "outputTokens": one.output_tokens,
        "exactTokens": all(answer.exact for answer in level.answers if answer.whole),
        "cachedShare": one.cached_share,
        "requestsPerSecond": one.requests_per_second,
        "outputTokensPerSecond": one.output_per_second,
        "outputTokensPerSecondWhileFull": one.full,
        "totalTokensPerSecond": one.total_per_second,
        "tokensPerSecondPerUser": one.per_user,
        "held": one.held,
        "boundBy": str(one.bound),
        "latencySeconds": {
            "firstToken": _of(found.first_token),
            "perToken": _of(found.per_token),
            "gap": _of(found.gap),
            "answer": _of(found.answer),
        },
        "engine": {**_camel(asdict(one.work)), "trusted": one.trusted} if one.work else None,
        "cost": _cost(one.dollars),
        "client": _camel(asdict(one.client)),
        "cautions": list(cautions),
    }


def _examples(one: Figures) -> Json:
    """What the server said to the first failure of each kind."""
    found: Json = {}
    for answer in one.level.answers:
        if answer.failure:
            found.setdefault(answer.failure, answer.detail)
    return found


def _of(spread: Spread | None) -> Json | None:
    return asdict(spread) if spread else None


def _cost(found: Dollars | None) -> Json | None:
    if found is None:
        return None
    exact: dict[str, Any] = {
        name: str(value.rounded(9)) if isinstance(value, Money) else value
        for name, value in (
            ("per_million_output", found.per_million_output),
            ("per_million_total", found.per_million_total),
            ("per_million_weighted", found.per_million_weighted),
            ("output_tokens_per_unit", found.output_tokens_per_unit),
            ("total_tokens_per_unit", found.total_tokens_per_unit),
            ("run", found.run),
        )
    }
    return _camel(exact)


def _camel(named: Json) -> Json:
    """Keys as the wire writes them."""
    return {
        first + "".join(word.capitalize() for word in rest): value
        for first, *rest, value in ((*name.split("_"), value) for name, value in named.items())
    }
