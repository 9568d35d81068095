"""A forecast as text or JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from types import SimpleNamespace
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.cli.forecast.costs import MonthlyCost, api_cost, own_cost
from tessera.cli.output import Output
from tessera.cli.text import table
from tessera.domain.economics.break_even import MONTH_DAYS, MONTH_HOURS
from tessera.domain.economics.forecast import (
    TOKENS,
    Assumptions,
    Factor,
    Percentiles,
    TokenWeights,
    draws,
    percentiles,
)

LABELS: Mapping[Factor, str] = {
    Factor.REQUESTS: "requests a month",
    Factor.RETRIES: "retries of a request",
    Factor.PROMPT: "prompt tokens",
    Factor.HIDDEN: "hidden prompt tokens",
    Factor.TURNS: "turns",
    Factor.ANSWER: "answer tokens",
    Factor.ANSWERS: "answers to a request",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastReport:
    """A forecast with what it costs in the ways that were asked for."""

    assumptions: Assumptions
    tokens: Percentiles
    input_tokens: Percentiles
    output_tokens: Percentiles
    own: MonthlyCost | None
    api: MonthlyCost | None

    def change(self, factor: Factor, value: float) -> float:
        """Return by what the tokens change where one factor is not the likely one."""
        likely = self.assumptions.likely
        return replace(likely, **{factor: value}).monthly() / likely.monthly()


def build_report(arguments: SimpleNamespace, assumptions: Assumptions, day: date) -> ForecastReport:
    """Return the forecast of the assumptions; CommandError for invalid options of costs."""
    cases, likely = draws(assumptions), assumptions.likely
    return ForecastReport(
        assumptions=assumptions,
        tokens=percentiles(cases, TOKENS),
        input_tokens=percentiles(cases, TokenWeights(1, 0)),
        output_tokens=percentiles(cases, TokenWeights(0, 1)),
        own=own_cost(arguments, likely, cases, day),
        api=api_cost(arguments, likely, cases, day),
    )


def output(report: ForecastReport, form: str) -> Output:
    """Return the forecast as text or JSON."""
    return Output.of(form, _lines(report), partial(_body, report))


def _lines(report: ForecastReport) -> Iterator[str]:
    """Yield tables of the factors, and of what they multiply to."""
    assumptions = report.assumptions
    of_service = f" for {assumptions.service}" if assumptions.service else ""
    yield from (f"Forecast{of_service} of a month of {MONTH_DAYS} days", "")
    head = ("FACTOR", "LOW", "LIKELY", "HIGH", "TOKENS AT LOW", "TOKENS AT HIGH")
    body = [
        [
            LABELS[factor],
            *map(number, (each.low, each.likely, each.high)),
            f"{report.change(factor, each.low):.2f}x",
            f"{report.change(factor, each.high):.2f}x",
        ]
        for factor, each in assumptions.ranges.items()
    ]
    yield from (*table(head, body, str.rjust), "")
    quantities = [[label, *map(number, each)] for label, each in _quantities(report)]
    yield from (*table(("A MONTH", "P10", "P50", "P90"), quantities, str.rjust), "")
    yield from _notes(report)


def _quantities(report: ForecastReport) -> Iterator[tuple[str, Percentiles]]:
    yield "input tokens", report.input_tokens
    yield "output tokens", report.output_tokens
    yield "tokens", report.tokens
    if (own := report.own) is not None and own.gpu_hours is not None:
        yield "GPU-hours", own.gpu_hours
        yield f"{own.currency} on own GPUs", own.amount
    if (api := report.api) is not None:
        yield f"{api.currency} at the API", api.amount


def _notes(report: ForecastReport) -> Iterator[str]:
    likely = report.assumptions.likely
    yield (
        f"At the likely values: tokens {number(likely.monthly())} a month, requests "
        f"{number(likely.requests * likely.attempts / (MONTH_HOURS * 3600))} per second."
    )
    for where, cost in (("Own GPUs", report.own), ("API", report.api)):
        if cost is not None:
            per_request = cost.likely / likely.requests
            floor = "" if cost.gpu_hours is None else ", of which at least one runs all month"
            yield f"{where} ({cost.name}{floor}): {per_request:.6f} {cost.currency} for a request."
            yield from (f"Warning: {warning}" for warning in cost.warnings)
    yield "P10 to P90 has four of five cases; what prefix caches save is not counted."


def number(value: float) -> str:
    """Return a number with three digits at least, without decimals from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _body(report: ForecastReport) -> dict[str, Any]:
    assumptions = report.assumptions
    return {
        "service": assumptions.service,
        "days": MONTH_DAYS,
        "factors": {
            to_camel(factor): {
                **each.model_dump(),
                "tokensAtLow": report.change(factor, each.low),
                "tokensAtHigh": report.change(factor, each.high),
            }
            for factor, each in assumptions.ranges.items()
        },
        "likelyTokens": assumptions.likely.monthly(),
        "inputTokens": report.input_tokens._asdict(),
        "outputTokens": report.output_tokens._asdict(),
        "tokens": report.tokens._asdict(),
        "ownGpus": _cost_json(report, report.own),
        "api": _cost_json(report, report.api),
    }


def _cost_json(report: ForecastReport, cost: MonthlyCost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    return {
        "name": cost.name,
        "currency": cost.currency,
        **cost.amount._asdict(),
        "perRequest": cost.likely / report.assumptions.likely.requests,
        "gpuHours": cost.gpu_hours and cost.gpu_hours._asdict(),
        "warnings": cost.warnings,
    }
