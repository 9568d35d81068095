"""A forecast beside what was used, as text or JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.cli.forecast.forecast_report import LABELS, number
from tessera.cli.output import Output
from tessera.cli.text import table
from tessera.domain.economics.accuracy import Accuracy, FactorError, MeasuredUsage, compare
from tessera.domain.economics.forecast import (
    TOKENS,
    Assumptions,
    Factor,
    Percentiles,
    draws,
    percentiles,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """A comparison, with the range of the forecast."""

    assumptions: Assumptions
    usage: MeasuredUsage
    tokens: Percentiles
    accuracy: Accuracy


def build_report(assumptions: Assumptions, usage: MeasuredUsage) -> AccuracyReport:
    """Return which factors of the assumptions were wrong."""
    return AccuracyReport(
        assumptions=assumptions,
        usage=usage,
        tokens=percentiles(draws(assumptions), TOKENS),
        accuracy=compare(assumptions.likely, usage),
    )


def output(report: AccuracyReport, form: str) -> Output:
    """Return the comparison as text or JSON."""
    return Output.of(form, _lines(report), partial(_body, report))


def _lines(report: AccuracyReport) -> Iterator[str]:
    """Yield a table, and the factor that was wrong."""
    accuracy, tokens = report.accuracy, report.tokens
    of_service = f" of {report.assumptions.service}" if report.assumptions.service else ""
    head = ("FACTOR", "FORECAST", "ACTUAL", "TOKENS", "SHARE OF THE ERROR")
    body = [
        [
            _label(error),
            number(error.forecast),
            number(error.actual),
            f"{error.ratio:.2f}x",
            # Without the sign of a share that rounds to 0.
            f"{round(accuracy.share(error), 2) + 0.0:.0%}" if accuracy.causes else "-",
        ]
        for error in accuracy.errors
    ]
    yield from [
        f"Tokens a month{of_service}: P10 {number(tokens.p10)}, P50 {number(tokens.p50)}, P90 "
        f"{number(tokens.p90)}, at the likely values {number(accuracy.forecast_tokens)}",
        f"Actual: {number(accuracy.actual_tokens)}, {accuracy.ratio:.2f} times that of the "
        f"likely values, {_position(report)}",
        "",
        *table(head, body, str.rjust),
        "",
        *_verdict(report),
    ]


def _position(report: AccuracyReport) -> str:
    actual, tokens = report.accuracy.actual_tokens, report.tokens
    if actual > tokens.p90:
        return "above P90"
    return "below P10" if actual < tokens.p10 else "from P10 to P90"


def _verdict(report: AccuracyReport) -> Iterator[str]:
    accuracy = report.accuracy
    if not accuracy.causes:
        yield "The forecast was right: the tokens are within 5 % of it."
        return
    main, *others = accuracy.causes
    yield f"Main cause: {_cause(accuracy, main)}"
    if main.factors[1:]:
        yield _unseparated(report.usage, main)
    yield from (f"Also: {_cause(accuracy, error)}" for error in others)
    if report.assumptions.answers.high > 1:
        yield "Answers to a request are taken as forecast: engines count the tokens of all at once."


def _cause(accuracy: Accuracy, error: FactorError) -> str:
    return (
        f"{_label(error)}, {number(error.actual)} instead of {number(error.forecast)}: "
        f"{accuracy.share(error):.0%} of the error."
    )


def _label(error: FactorError) -> str:
    return " or ".join(LABELS[factor] for factor in error.factors)


def _unseparated(usage: MeasuredUsage, error: FactorError) -> str:
    """Return why several factors cannot be separated, and what would separate them."""
    if Factor.RETRIES in error.factors:
        reason = "which requests were sent again"
        fix = "senders with keys of their own have fewer requests of equal length"
    else:
        reason = "what in the prompts grew"
        fix = "users with keys or tokens of their own show their conversations"
    if usage.shortest_tokens is None:
        reason, fix = f"sums do not show {reason}", "pass records of single requests by --records"
    else:
        reason = f"the records do not show {reason}"
    return f"Cannot tell which of them: {reason}; {fix}."


def _body(report: AccuracyReport) -> dict[str, Any]:
    accuracy = report.accuracy
    has_causes = bool(accuracy.causes)
    return {
        "service": report.assumptions.service,
        "forecastTokens": accuracy.forecast_tokens,
        **report.tokens._asdict(),
        "actualTokens": accuracy.actual_tokens,
        "ratio": accuracy.ratio,
        "errors": [
            {
                "factors": [to_camel(factor) for factor in error.factors],
                "forecast": error.forecast,
                "actual": error.actual,
                "ratio": error.ratio,
                "share": accuracy.share(error) if has_causes else None,
            }
            for error in accuracy.errors
        ],
        "mainCause": [to_camel(name) for name in accuracy.causes[0].factors] if has_causes else [],
    }
