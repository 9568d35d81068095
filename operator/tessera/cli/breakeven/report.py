"""The answer of `tessera breakeven` as a table, JSON, CSV or a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from functools import partial
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.api.text import counted
from tessera.cli.breakeven.request import BreakEvenRequest
from tessera.cli.output import Output
from tessera.cli.plots import Plot, PlotSeries, svg_file
from tessera.cli.text import cell, table
from tessera.domain.economics.break_even import MONTH_HOURS, BreakEven, VolumeCosts
from tessera.domain.money import Money

_DAY_SECONDS = 86_400
_POINTS = 100
# The volumes of the table, as shares of the break-even or of what stands for it.
_TABLE_SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)


def output(request: BreakEvenRequest, form: str) -> Output:
    """Return the answer as table, JSON or CSV."""
    return Output.of(form, _lines(request), partial(_body, request), partial(_csv, request))


def _lines(request: BreakEvenRequest) -> Iterator[str]:
    break_even = request.comparison.break_even()
    yield from (*_premises(request), "", *_conclusions(request, break_even), "")
    yield from _volume_table(request, break_even)
    if request.measured:
        yield from ("", *_measured_table(request))
    if months := _months(request):
        yield from ("", *_months_table(months))
    yield from (f"Warning: {warning}" for warning in request.warnings)


def _premises(request: BreakEvenRequest) -> Iterator[str]:
    comparison, replica = request.comparison, request.replica
    own, use, prices = comparison.own, comparison.request, comparison.prices
    speed = "as given" if not replica.is_predicted else "predicted"
    rate = cell(replica.output_rate, f"; {{:,.0f}} output tok/s at full load, {speed}")
    yield (
        f"Own GPUs ({replica.name}): {own.hourly.formatted(4)} per hour, "
        f"{_rounded(own.hourly.times(MONTH_HOURS))} per month for each replica"
        f"{'' if replica.output_rate is None else rate}"
    )
    if own.monthly.nanos:
        yield f"Besides: {_rounded(own.monthly)} per month for operation, engineers and SLA"
    yield (
        f"API ({request.api}): per 1M tokens {prices.input.formatted(4)} input, "
        f"{prices.cached_input.rounded(4)} cached input, {prices.output.rounded(4)} output; "
        f"{prices.blended(use).rounded(4)} for this mix"
    )
    yield (
        f"Request: {use.input_tokens:,.0f} input ({use.cached_tokens:,.0f} cached) and "
        f"{use.output_tokens:,.0f} output tokens"
    )
    peak = comparison.peak
    if peak.ratio > 1:
        yield f"Peak: {peak.ratio:g} times the mean for {peak.hours:g} h of the day"


def _conclusions(request: BreakEvenRequest, break_even: BreakEven | None) -> Iterator[str]:
    if break_even is None:
        yield (
            "Break-even: never; to earn its price a replica would have to answer "
            f"{cell(request.comparison.needed_load(), '{:.1f}')} times its full load"
        )
    else:
        yield (
            f"Break-even: {break_even.requests_per_day:,.0f} requests/day on "
            f"{counted(break_even.replicas, 'replica')}, "
            f"{break_even.tokens_per_month:,.0f} tokens/month"
        )
        share = (
            "; write --tokens-per-second for the share of the full load"
            if break_even.utilization is None
            else f", {break_even.utilization:.1%} of the full load"
        )
        yield (
            f"Needed: {break_even.tokens_per_second:,.1f} tok/s all day, of them "
            f"{break_even.output_tokens_per_second:,.1f} output{share}"
        )
        if break_even.always_from > break_even.requests_per_day:
            yield (
                f"From {break_even.always_from:,.0f} requests/day on own GPUs cost less "
                "with any number of replicas"
            )
    if request.requests_per_day is not None:
        yield _verdict(request.comparison.at(request.requests_per_day))


def _verdict(costs: VolumeCosts) -> str:
    saving = _saving(Money(costs.api.nanos - costs.own.nanos, costs.own.currency))
    parts = [f"At {costs.requests_per_day:,.0f} requests/day own GPUs {saving} per month"]
    if _mix_is_cheaper(costs):
        parts.append(
            f"{counted(costs.mixed_replicas, 'own replica')} with the API for the rest cost "
            f"{_rounded(costs.mixed)}"
        )
    if costs.spike_premium.nanos:
        parts.append(f"replicas for the peak alone cost {_rounded(costs.spike_premium)}")
    return "; ".join(parts)


def _mix_is_cheaper(costs: VolumeCosts) -> bool:
    return costs.mixed.nanos < min(costs.api.nanos, costs.own.nanos)


def _volume_table(request: BreakEvenRequest, break_even: BreakEven | None) -> Iterator[str]:
    demand = request.requests_per_day
    volumes = {share * _center(request, break_even) for share in _TABLE_SHARES}
    rows = [
        request.comparison.at(volume)
        for volume in sorted(volumes | ({demand} if demand is not None else set()))
    ]
    columns: dict[str, Callable[[VolumeCosts], str]] = {
        "REQUESTS/DAY": lambda row: f"{row.requests_per_day:,.0f}",
        "TOKENS/MONTH": lambda row: f"{row.tokens_per_month:,.0f}",
        "REPLICAS": lambda row: str(row.replicas),
        "USE": lambda row: cell(row.utilization, "{:.1%}"),
        "API": lambda row: _rounded(row.api),
        "OWN GPUS": lambda row: _rounded(row.own),
    }
    if any(map(_mix_is_cheaper, rows)):
        columns["OWN AND API"] = lambda row: f"{_rounded(row.mixed)} ({row.mixed_replicas} own)"
    notes = {demand: "demand"}
    if break_even is not None:
        notes[break_even.requests_per_day] = "break-even"
    body = [
        [*(column(row) for column in columns.values()), notes.get(row.requests_per_day, "")]
        for row in rows
    ]
    yield from table([*columns, ""], body, str.rjust, 0)


def _center(request: BreakEvenRequest, break_even: BreakEven | None) -> float:
    """Return the requests per day around which volumes are shown."""
    if break_even is not None:
        return break_even.requests_per_day
    full_replica = (request.comparison.own.capacity or 1.0) * _DAY_SECONDS
    return request.requests_per_day or full_replica


def _measured_table(request: BreakEvenRequest) -> Iterator[str]:
    heads = (
        "MEASURED FROM",
        "DAYS",
        "REQUESTS",
        "INPUT TOKENS",
        "CACHED TOKENS",
        "OUTPUT TOKENS",
        "API",
    )
    body = [
        [
            f"{month.start}",
            f"{month.days:.1f}",
            f"{month.requests:,}",
            f"{month.use.input_tokens:,}",
            f"{month.use.cached_tokens:,}",
            f"{month.use.output_tokens:,}",
            _rounded(request.comparison.prices.cost(month.use)),
        ]
        for month in request.measured
    ]
    yield from table(heads, body, str.rjust)


def _months(request: BreakEvenRequest) -> list[VolumeCosts]:
    """Return the costs of the months from now on; nothing where prices are not said to fall."""
    decline, demand = request.yearly_decline, request.requests_per_day
    if decline is None or demand is None:
        return []
    return list(request.comparison.months(demand, decline, request.months))


def _months_table(months: Sequence[VolumeCosts]) -> Iterator[str]:
    savings = [costs.api.nanos - costs.own.nanos for costs in months]
    currency = months[0].own.currency
    body = [
        [str(number), _rounded(costs.api), _rounded(costs.own), _rounded(Money(saving, currency))]
        for number, (costs, saving) in enumerate(zip(months, savings, strict=True), start=1)
    ]
    yield from table(("MONTH", "API", "OWN GPUS", "SAVING"), body, str.rjust)
    first, total = unprofitable_from(months), sum(savings)
    end = (
        f"Own GPUs cost less in all {counted(len(months), 'month')}"
        if first is None
        else f"The API costs less from month {first} on"
    )
    yield f"{end}; together own GPUs {_saving(Money(total, currency))}"


def _saving(amount: Money) -> str:
    rounded = _rounded(Money(abs(amount.nanos), amount.currency))
    return f"save {rounded}" if amount.nanos >= 0 else f"cost {rounded} more"


def unprofitable_from(months: Sequence[VolumeCosts]) -> int | None:
    """Return the first month in which the API costs less; None if own GPUs always do."""
    numbered = enumerate(months, start=1)
    return next((month for month, costs in numbered if costs.api.nanos < costs.own.nanos), None)


def _body(request: BreakEvenRequest) -> dict[str, Any]:
    """Return amounts as strings."""
    comparison, demand, months = request.comparison, request.requests_per_day, _months(request)
    return {
        "currency": comparison.own.hourly.currency,
        **_plain(request),
        "breakEven": _plain(comparison.break_even()),
        "demand": None if demand is None else _plain(comparison.at(demand)),
        "outlook": _plain(months),
        "unprofitableFrom": unprofitable_from(months),
        "curve": _plain(_curve(request)),
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, with the names of fields in camelCase."""
    match value:
        case Money():
            return f"{value.rounded(9):f}"
        case date():
            return value.isoformat()
        case float():
            return round(value, 4)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _ if is_dataclass(value):
            names = [field.name for field in fields(value)]
            return {to_camel(name): _plain(getattr(value, name)) for name in names}
        case _:
            return value


def _csv(request: BreakEvenRequest) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the demand curve."""
    rows = [_plain(costs) for costs in _curve(request)]
    return [*rows[0]], rows


def _curve(request: BreakEvenRequest) -> list[VolumeCosts]:
    """Return the costs of evenly more requests, to twice the break-even and beyond the demand."""
    center = _center(request, request.comparison.break_even())
    end = 2 * max(center, request.requests_per_day or 0.0)
    return [request.comparison.at(end * point / _POINTS) for point in range(1, _POINTS + 1)]


def draw(request: BreakEvenRequest) -> str:
    """Return the demand curve as SVG, with the break-even marked."""
    break_even, curve = request.comparison.break_even(), _curve(request)
    series: Mapping[str, Callable[[VolumeCosts], Money]] = {
        "API": lambda costs: costs.api,
        "own GPUs": lambda costs: costs.own,
        "own GPUs and API": lambda costs: costs.mixed,
    }
    marks = []
    if break_even is not None:
        volume = break_even.requests_per_day
        marks = [(volume, f"break-even: {volume:,.0f} requests/day")]
    plot = Plot(
        # Without the address, for which the picture is too narrow.
        title=f"Own GPUs ({request.replica.name}), API ({request.api.partition(',')[0]})",
        x_label="requests per day",
        y_label=f"{request.comparison.own.hourly.currency} per month",
        series=[
            PlotSeries(
                name=name,
                points=[(costs.requests_per_day, cost(costs).nanos / 1e9) for costs in curve],
            )
            for name, cost in series.items()
        ],
        marks=marks,
    )
    return svg_file([plot])


def _rounded(amount: Money) -> str:
    return f"{amount.rounded(2):,}"
