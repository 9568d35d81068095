"""The sizes of a model as table or JSON."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tessera.cli.size_ask import Ask
from tessera.cli.text import table
from tessera.domain.money import Money
from tessera.domain.precision import LOADED
from tessera.domain.prices import ASSUMED
from tessera.domain.size_table import Row, Verdict, break_even, replicas_before_parallel

_HEAD = (
    "GPU", "FORM", "PRECISION", "FITS", "KV TOKENS", "FULL", "TOK/S", "TTFT", "GAP", "PER HOUR",
    "PER M TOK",
)  # fmt: skip
_NAMED = 5
"""More products without a price are counted; JSON names them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was asked, and what came."""

    ask: Ask
    rows: tuple[Row, ...]
    simplest: Row | None


def as_table(report: Report) -> str:
    """For people."""
    best = _cheapest(report.rows)
    head = [*_HEAD, *_extra_head(report), "WHY"]
    body = [[*_cells(row), *_extra(report, row, best), row.why] for row in report.rows]
    lines = [*_about(report), "", *table(head, body), "", *_notes(report, best), ""]
    return "\n".join(lines)


def _about(report: Report) -> Iterator[str]:
    demand, ask = report.ask.demand, report.ask
    shape = demand.shape
    active = f", {shape.active_parameters / 1e9:.1f} active" if shape.active_parameters else ""
    yield f"{ask.name}: {shape.parameters / 1e9:.1f} billion weights{active}"
    promise = "promised" if ask.promised else "at most, as nothing is promised"
    yield (
        f"context {demand.max_model_len}, prompts of {demand.input_tokens} and answers of "
        f"{demand.output_tokens} tokens; first token within {_ms(demand.ttft.total_seconds())}, "
        f"{_ms(demand.inter_token.total_seconds())} between tokens ({promise})"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:g} s"


def _cells(row: Row) -> list[str]:
    return [
        row.hardware.product,
        row.hardware.name,
        row.label,
        row.verdict,
        f"{row.kv_tokens:,}" if row.kv_tokens else "-",
        f"{row.sequences:.1f}" if row.sequences else "-",
        "-" if row.tokens_per_second is None else f"~{row.tokens_per_second:,.0f}",
        "-" if row.ttft_ms is None else f"{row.ttft_ms:.0f} ms",
        "-" if row.inter_token_ms is None else f"{row.inter_token_ms:.1f} ms",
        "-" if row.hourly is None else f"{row.hourly.rounded(2)}",
        "-" if row.per_million is None else f"{row.per_million.rounded(3)}",
    ]


def _extra_head(report: Report) -> list[str]:
    wide = ["AGAINST BEST"] if report.ask.compare else []
    return [*wide, *(["BREAK-EVEN"] if report.ask.api_price else [])]


def _extra(report: Report, row: Row, best: Row | None) -> list[str]:
    cells = []
    if report.ask.compare:
        times = _times(row, best)
        cells.append("-" if times is None else f"{times:.2f}x")
    if report.ask.api_price:
        cells.append(_even(row, report.ask.api_price))
    return cells


def _times(row: Row, best: Row | None) -> float | None:
    if row.per_million is None or best is None or best.per_million is None:
        return None
    return row.per_million.nanos / best.per_million.nanos


def _even(row: Row, target: Money) -> str:
    """Tokens a second that pay for the hour, and what share of the full load that is."""
    if row.hourly is None or row.tokens_per_second is None:
        return "-"
    needed = break_even(row.hourly, target)
    share = needed / row.tokens_per_second
    return f"{needed:,.0f} tok/s ({share:.0%})" if share <= 1 else f"{needed:,.0f} tok/s (never)"


def _cheapest(rows: tuple[Row, ...]) -> Row | None:
    priced = [row for row in rows if row.verdict is Verdict.FITS and row.per_million is not None]
    return min(
        priced, key=lambda row: row.per_million.nanos if row.per_million else 0, default=None
    )


def _notes(report: Report, best: Row | None) -> Iterator[str]:
    """What to conclude, and what the figures stand on."""
    ask, found = report.ask, report.simplest
    if found is not None:
        keeps = "that keeps the promise" if ask.promised else "that serves it"
        price = f" at {found.hourly} an hour" if found.hourly else ""
        yield f"Simplest form {keeps}: {_form(found)}{price}."
    else:
        yield "Nothing here serves it: see why; ask for less context, another precision or GPU."
    if best is not None and best is not found and best.per_million is not None:
        yield f"Cheapest tokens at full load: {_form(best)}, {best.per_million} a million."
    yield from (
        f"OversizedAccelerator: {_form(row)}: {row.oversized}."
        for row in report.rows
        if row.oversized
    )
    yield from (f"{told}: prefer replicas." for told in replicas_before_parallel(report.rows))
    if any(row.serves and row.precision not in (None, LOADED) for row in report.rows):
        yield "int8 and int4 are other files of the model; fp8 the engine makes while loading."
    yield (
        "TOK/S, TTFT and GAP are predicted at full load; PER M TOK counts output tokens at full "
        "load; FULL is requests of the whole context at once."
    )
    if ask.book.name == ASSUMED:
        told = "single providers' list prices, for comparing only"
        yield f"Prices are {ASSUMED}: {told} (--prices FILE gives yours)."
    if ask.unpriced:
        count = len(ask.unpriced)
        names = ", ".join(ask.unpriced) if count <= _NAMED else f"{count} GPUs that Tessera knows"
        yield f"Prices ({ask.book.name}) lack {names}: --gpu shows these all the same."


def _form(row: Row) -> str:
    return f"{row.hardware.name} {row.hardware.product} in {row.label}"


def as_json(report: Report) -> str:
    """For programs: amounts as strings, times in milliseconds."""
    ask, demand = report.ask, report.ask.demand
    body = {
        "model": ask.name,
        "shape": demand.shape.model_dump(mode="json", by_alias=True, exclude_none=True),
        "context": demand.max_model_len,
        "inputTokens": demand.input_tokens,
        "outputTokens": demand.output_tokens,
        "ttftMs": demand.ttft.total_seconds() * 1e3,
        "interTokenMs": demand.inter_token.total_seconds() * 1e3,
        "promised": ask.promised,
        "prices": ask.book.name,
        "currency": ask.book.currency,
        "unpriced": list(ask.unpriced),
        "simplest": None if report.simplest is None else _fields(report.simplest, ask),
        "rows": [_fields(row, ask) for row in report.rows],
    }
    return json.dumps(body, indent=2) + "\n"


def _fields(row: Row, ask: Ask) -> dict[str, Any]:
    even = (
        break_even(row.hourly, ask.api_price) if row.hourly is not None and ask.api_price else None
    )
    return {
        "gpu": row.hardware.product,
        "form": row.hardware.name,
        "gpus": row.hardware.devices,
        "precision": row.label,
        "verdict": row.verdict,
        "why": row.why,
        "kvTokens": row.kv_tokens,
        "fullContextRequests": _rounded(row.sequences),
        "tokensPerSecond": _rounded(row.tokens_per_second),
        "ttftMs": _rounded(row.ttft_ms),
        "interTokenMs": _rounded(row.inter_token_ms),
        "usedShare": None if row.used is None else round(row.used, 4),
        "perHour": _amount(row.hourly),
        "perMillionTokens": _amount(row.per_million),
        "breakEvenTokensPerSecond": _rounded(even),
        "oversized": row.oversized,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _amount(value: Money | None) -> str | None:
    return None if value is None else f"{value.rounded(9):f}"


FORMS: Mapping[str, Callable[[Report], str]] = {"text": as_table, "json": as_json}
"""How the sizes can be written."""
