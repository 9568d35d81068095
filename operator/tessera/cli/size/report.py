"""The size table of a model as text or JSON."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from tessera.api.text import counted
from tessera.cli.output import Output
from tessera.cli.size.request import SizeRequest
from tessera.cli.text import cell, table
from tessera.domain.economics.break_even import break_even_rate
from tessera.domain.money import Money
from tessera.domain.sizing.precision import ONLINE_QUANTIZED
from tessera.domain.sizing.prices import ASSUMED
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.table import SizeRow, SizeVerdict, replicas_before_parallel


def _is_of_others(row: SizeRow) -> bool:
    return row.step is not None and row.step.error is not None and not row.step.error.rows


def _error(row: SizeRow) -> str:
    return cell(row.rate_error, "{:.0%}" + "*" * _is_of_others(row))


_Column: TypeAlias = Callable[[SizeRow], str]
_COLUMNS: Mapping[str, _Column] = {
    "GPU": lambda row: row.hardware.product,
    "INSTANCE": lambda row: row.hardware.name,
    "PRECISION": lambda row: row.label,
    "RESULT": lambda row: row.verdict,
    "KV TOKENS": lambda row: f"{row.kv_tokens:,}" if row.kv_tokens else "-",
    "MAX CONCURRENCY": lambda row: f"{row.max_concurrency:.1f}" if row.max_concurrency else "-",
    "TOK/S": lambda row: cell(row.tokens_per_second, "~{:,.0f}"),
    "TTFT": lambda row: cell(row.ttft_ms, "{:.0f} ms"),
    "ITL": lambda row: cell(row.inter_token_ms, "{:.1f} ms"),
    "ERROR": _error,
    "SOURCE": lambda row: cell(row.step and row.step.source),
    "PER HOUR": lambda row: cell(row.hourly and row.hourly.rounded(2)),
    "PER M TOK": lambda row: cell(row.per_million and row.per_million.rounded(3)),
}
# A pooling model has these in place of the columns of tokens that it does not generate.
_INPUT_COLUMNS = {"TOK/S": "INPUT TOK/S", "TTFT": "ANSWER", "PER M TOK": "PER M INPUT TOK"}
# Up to so many products without a price are named, more are counted; JSON names them all.
_MAX_NAMED = 5
_MAX_RIVALS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeReport:
    """The rows for a request."""

    request: SizeRequest
    rows: tuple[SizeRow, ...]

    @property
    def simplest(self) -> SizeRow | None:
        """The fitting row with the fewest devices, then the lowest price; None without any."""
        fitting = [row for row in self.rows if row.verdict is SizeVerdict.FITS]
        return min(fitting, key=_simplicity_order, default=None)

    @property
    def cheapest(self) -> SizeRow | None:
        """The fitting row with the cheapest tokens; None without any."""
        return _cheapest(self.rows)

    @property
    def cheapest_by_seller(self) -> Mapping[str, SizeRow]:
        """The same among the prices of each seller."""
        sellers = sorted({row.seller for row in self.rows if row.seller})
        cheapest = {
            seller: _cheapest([row for row in self.rows if row.seller == seller])
            for seller in sellers
        }
        return {seller: row for seller, row in cheapest.items() if row is not None}


def _cheapest(rows: Iterable[SizeRow]) -> SizeRow | None:
    priced = [
        (row.per_million.nanos, number, row)
        for number, row in enumerate(rows)
        if row.verdict is SizeVerdict.FITS and row.per_million is not None
    ]
    return min(priced)[2] if priced else None


def _simplicity_order(row: SizeRow) -> tuple[int, bool, int, str, str, str]:
    price = row.hourly.nanos if row.hourly else 0
    hardware = row.hardware
    return (
        hardware.devices, row.hourly is None, price, hardware.product, hardware.name, row.label,
    )  # fmt: skip


def output(report: SizeReport, form: str) -> Output:
    """Return the table as text or JSON."""
    return Output.of(form, _lines(report), partial(_body, report))


def _lines(report: SizeReport) -> Iterator[str]:
    best = report.cheapest
    columns = {
        **_columns(report.request.demand),
        **_optional_columns(report, best),
        "REASON": _message,
    }
    body = [[column(row) for column in columns.values()] for row in report.rows]
    yield from (*_summary(report), "", *table(list(columns), body), "", *_notes(report, best))


def _columns(demand: Demand) -> Mapping[str, _Column]:
    """Return the columns of a model; one that pools has no ITL, and an encoder no KV cache."""
    if not demand.is_pooling:
        return _COLUMNS
    unused = {"ITL"} | ({"KV TOKENS", "MAX CONCURRENCY"} if demand.shape.encoder_only else set())
    return {
        _INPUT_COLUMNS.get(head, head): column
        for head, column in _COLUMNS.items()
        if head not in unused
    }


def _message(row: SizeRow) -> str:
    return row.message


def _summary(report: SizeReport) -> Iterator[str]:
    demand, request = report.request.demand, report.request
    shape = demand.shape
    active = f", {shape.active_parameters / 1e9:.1f} active" if shape.active_parameters else ""
    yield f"{request.name}: {shape.parameters / 1e9:.1f} billion weights{active}"
    source = "--slo" if request.has_slo else "as without spec.slo, since no --slo is given"
    if demand.is_pooling:
        yield (
            f"texts of {counted(demand.input_tokens, 'token')}, at most {demand.max_model_len}; an "
            f"answer within {_format_seconds(demand.ttft.total_seconds())} ({source}: its TTFT)"
        )
        return
    yield (
        f"context {demand.max_model_len}, prompts of {demand.input_tokens} and responses of "
        f"{counted(demand.output_tokens, 'token')}; TTFT at most "
        f"{_format_seconds(demand.ttft.total_seconds())}, ITL at most "
        f"{_format_seconds(demand.inter_token.total_seconds())} ({source})"
    )


def _format_seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:g} s"


def _optional_columns(report: SizeReport, best: SizeRow | None) -> Mapping[str, _Column]:
    request, columns = report.request, dict[str, _Column]()
    if any(row.seller for row in report.rows):
        columns["SELLER"] = lambda row: cell(row.seller or None)
    if request.compare:
        columns["VS BEST"] = lambda row: cell(_price_ratio(row, best), "{:.2f}x")
    if price := request.api_price:
        columns["BREAK-EVEN"] = lambda row: _break_even_cell(row, price)
    return columns


def _price_ratio(row: SizeRow, best: SizeRow | None) -> float | None:
    if row.per_million is None or best is None or best.per_million is None:
        return None
    return row.per_million.nanos / best.per_million.nanos


def _break_even_cell(row: SizeRow, target: Money) -> str:
    """Return the tokens per second that pay for the hour, with their share of the full load."""
    if row.hourly is None or row.tokens_per_second is None:
        return "-"
    needed = break_even_rate(row.hourly, target)
    share = needed / row.tokens_per_second
    return f"{needed:,.0f} tok/s ({share:.0%})" if share <= 1 else f"{needed:,.0f} tok/s (never)"


def _notes(report: SizeReport, best: SizeRow | None) -> Iterator[str]:
    """Yield conclusions, and notes on the assumptions of the table."""
    request, simplest = report.request, report.simplest
    if simplest is not None:
        qualifier = "within the SLO" if request.has_slo else "that fits"
        price = f" at {simplest.hourly} per hour" if simplest.hourly else ""
        yield f"Simplest instance {qualifier}: {_describe(simplest)}{price}."
    else:
        yield "No instance fits: use less context, another precision or another GPU."
    if best is not None and best is not simplest and best.per_million is not None:
        price, unit = str(best.per_million), "tokens"
        if request.demand.is_pooling:
            price, unit = best.per_million.formatted(4), "input tokens"
        yield f"Cheapest tokens at full load: {_describe(best)}, {price} per 1M {unit}."
    if best is not None and (rivals := list(_rivals(report, best))):
        named = ", ".join(map(_describe, rivals[:_MAX_RIVALS]))
        more = len(rivals) - _MAX_RIVALS
        yield f"As cheap within the errors of both: {named}{f' and {more} more' * (more > 0)}."
    yield from _seller_note(report)
    yield from (
        f"OversizedAccelerator: {_describe(row)}: {row.oversize_message}."
        for row in report.rows
        if row.oversize_message
    )
    yield from (
        f"{comparison}: prefer replicas." for comparison in replicas_before_parallel(report.rows)
    )
    if any(row.can_serve and row.precision not in (None, ONLINE_QUANTIZED) for row in report.rows):
        yield "int8 and int4 need other files of the model; the engine quantizes to fp8 at load."
    if request.demand.is_pooling:
        yield (
            "INPUT TOK/S and ANSWER, the time to an answer, are predicted at full load; PER M "
            "INPUT TOK is the price of 1M input tokens at full load."
        )
    else:
        yield (
            "TOK/S, TTFT and ITL are predicted at full load; PER M TOK is the price of 1M output "
            "tokens at full load; MAX CONCURRENCY is the number of concurrent requests of the "
            "whole context."
        )
    yield from _error_notes(report)
    if request.book.name == ASSUMED:
        yield (
            f"Prices are {ASSUMED}: list prices of the sellers in the rows, for comparing only "
            "(--prices FILE replaces them)."
        )
    if request.unpriced:
        count = len(request.unpriced)
        names = (
            ", ".join(request.unpriced) if count <= _MAX_NAMED else f"{counted(count, 'known GPU')}"
        )
        yield f"No price ({request.book.name}) for {names}: name it with --gpu to size it anyway."


def _error_notes(report: SizeReport) -> Iterator[str]:
    """Yield what the errors say, and which rows are as cheap within them."""
    steps = [row.step for row in report.rows if row.step is not None]
    if any(step.error is not None for step in steps):
        other = ""
        if any(map(_is_of_others, report.rows)):
            other = "; * no step of such a model was measured, so it is that of other models"
        yield (
            "ERROR is the root mean square error of tokens per second and of prices of tokens: "
            "Table as steps of a real engine showed it, Roofline as steps of hardware or kernels "
            f"did that were predicted unmeasured{other}."
        )


def _rivals(report: SizeReport, best: SizeRow) -> Iterator[SizeRow]:
    """Yield rows whose tokens cost no more than the cheapest within the errors of both."""
    for row in report.rows:
        if row is best or row.verdict is not SizeVerdict.FITS or row.per_million is None:
            continue
        error = math.hypot(row.rate_error or 0.0, best.rate_error or 0.0)
        if best.per_million and row.per_million.nanos <= best.per_million.nanos * (1 + error):
            yield row


def _seller_note(report: SizeReport) -> Iterator[str]:
    """Yield the cheapest tokens of each seller, where prices of several are compared."""
    cheapest = report.cheapest_by_seller
    if len(cheapest) > 1:
        of_each = "; ".join(
            f"of {seller}: {_describe(row)}, {row.per_million and row.per_million.formatted(4)}"
            for seller, row in cheapest.items()
        )
        yield (
            f"Prices are of {len(cheapest)} sellers, whose terms differ. Cheapest tokens {of_each} "
            "per 1M."
        )


def _describe(row: SizeRow) -> str:
    return f"{row.hardware.name} {row.hardware.product} in {row.label}"


def _body(report: SizeReport) -> dict[str, Any]:
    """Return amounts as strings, and times in milliseconds."""
    request, demand = report.request, report.request.demand
    return {
        "model": request.name,
        "shape": demand.shape.model_dump(mode="json", by_alias=True, exclude_none=True),
        "context": demand.max_model_len,
        "inputTokens": demand.input_tokens,
        "outputTokens": demand.output_tokens,
        "ttftMs": demand.ttft.total_seconds() * 1e3,
        "itlMs": demand.inter_token.total_seconds() * 1e3,
        "sloSet": request.has_slo,
        "prices": request.book.name,
        "currency": request.book.currency,
        "unpriced": list(request.unpriced),
        "simplest": None if report.simplest is None else _row_json(report.simplest, request),
        "rows": [_row_json(row, request) for row in report.rows],
    }


def _row_json(row: SizeRow, request: SizeRequest) -> dict[str, Any]:
    is_pooling = request.demand.is_pooling
    rate, per_million = _rounded(row.tokens_per_second), _amount(row.per_million)
    break_even = (
        break_even_rate(row.hourly, request.api_price)
        if row.hourly is not None and request.api_price
        else None
    )
    return {
        "gpu": row.hardware.product,
        "instance": row.hardware.name,
        "gpus": row.hardware.devices,
        "precision": row.label,
        "result": row.verdict,
        "message": row.message,
        "kvTokens": row.kv_tokens,
        "maxConcurrency": _rounded(row.max_concurrency),
        "tokensPerSecond": None if is_pooling else rate,
        "inputTokensPerSecond": rate if is_pooling else None,
        "ttftMs": _rounded(row.ttft_ms),
        "itlMs": _rounded(row.inter_token_ms),
        "utilization": None if row.memory_share is None else round(row.memory_share, 4),
        "source": None if row.step is None else row.step.source,
        "error": None if row.rate_error is None else round(row.rate_error, 4),
        "stepError": _step_error(row),
        "perHour": _amount(row.hourly),
        "seller": row.seller or None,
        "perMillionTokens": None if is_pooling else per_million,
        "perMillionInputTokens": per_million if is_pooling else None,
        "breakEvenTokensPerSecond": _rounded(break_even),
        "oversized": row.oversize_message,
    }


def _step_error(row: SizeRow) -> dict[str, Any] | None:
    """Return the errors of the step time as shares, and of how many measured steps they are."""
    error = row.step.error if row.step is not None else None
    if error is None:
        return None
    return {"decode": error.decode, "prompts": error.prompts, "rows": error.rows}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _amount(value: Money | None) -> str | None:
    return None if value is None else f"{value.rounded(9):f}"
