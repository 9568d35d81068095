"""The report of `tessera mix`, as a table or JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

from pydantic.alias_generators import to_camel

from tessera.api.text import counted
from tessera.cli.output import Output
from tessera.cli.text import format_time, table
from tessera.domain.economics.reservation import LoadCurve, break_even_use
from tessera_lab.cli.mix.live import LiveLoad
from tessera_lab.fleet.capacity_mix import (
    BURST_QUANTILE,
    MixOption,
    break_even_waste,
    effective_spot_price,
)
from tessera_lab.fleet.prices import GpuPrices

_HOUR = 3600.0
_HEADS = (
    "CHOICE",
    "RESERVED",
    "USE",
    "BURST CEILING",
    "FIXED",
    "ON DEMAND",
    "{currency}/MONTH",
    "WITH SPOT",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixReport:
    """Numbers of reserved replicas for a load."""

    curve: LoadCurve
    prices: GpuPrices
    """Of a replica and hour."""
    wasted: float
    """Share of the work on spot nodes that is lost."""
    options: tuple[MixOption, ...]
    currency: str = "USD"
    live: LiveLoad | None = None
    """What the load was counted from; None of a file."""
    notes: tuple[str, ...] = ()

    @property
    def break_even(self) -> float:
        return break_even_use(self.prices.reserved, self.prices.on_demand)

    @property
    def effective_spot(self) -> float:
        return effective_spot_price(self.prices.spot, self.wasted)

    def cheapest(self, *, spot: bool) -> MixOption:
        """Return the cheapest choice; the earlier one of two that cost the same."""
        return min(self.options, key=lambda each: each.total_spot if spot else each.total)

    def warnings(self) -> Iterator[str]:
        yield from self.notes
        for option in self.options:
            if option.use is not None and option.use < self.break_even:
                yield (
                    f"{option.reading}: what is reserved ({option.reserved}) is used for "
                    f"{option.use:.1%}, below the break-even of {self.break_even:.1%}"
                )


def output(report: MixReport, form: str) -> Output:
    """Return the choices as table or JSON."""
    return Output.of(form, _lines(report), partial(_body, report))


def _lines(report: MixReport) -> Iterator[str]:
    """Yield the choices with what the numbers mean."""
    curve, prices, currency = report.curve, report.prices, report.currency
    heads = [head.format(currency=currency) for head in _HEADS]
    rows = [_row(option) for option in report.options]
    on_demand, spot = report.cheapest(spot=False), report.cheapest(spot=True)
    yield from [
        *(_live_lines(report.live) if report.live is not None else ()),
        f"Load of {curve.seconds / _HOUR:.1f} h, in replicas: mean {curve.mean:.2f}, "
        f"P50 {curve.quantile(0.5)}, P95 {curve.quantile(BURST_QUANTILE)}, peak {curve.peak}",
        f"A replica costs {prices.on_demand:.2f} {currency} per hour on demand, "
        f"{prices.reserved:.2f} reserved, {prices.spot:.2f} on spot; with {report.wasted:.0%} of "
        f"the work wasted {report.effective_spot:.4f}",
        f"Reserved pays from {report.break_even:.1%} use on; spot costs less than reserved below "
        f"{break_even_waste(prices.spot, prices.reserved):.1%} waste, than on demand below "
        f"{break_even_waste(prices.spot, prices.on_demand):.1%}",
        "",
        *table(heads, rows, str.rjust),
        "",
        f"Cheapest: {on_demand.reading} with bursts on demand ({on_demand.total:,.2f} "
        f"{currency}), "
        f"{spot.reading} with bursts on spot ({spot.total_spot:,.2f} {currency})",
        *(f"Warning: {warning}" for warning in report.warnings()),
    ]


def _live_lines(live: LiveLoad) -> Iterator[str]:
    yield (
        f"{live.service}: {counted(live.requests, 'request')} since {format_time(live.since)} UTC, "
        f"of {live.input_tokens} input and {live.output_tokens} output tokens on average"
    )
    source = "as predicted for these lengths" if live.is_predicted else "as given"
    yield f"A replica carries {live.replica_rate:.2f} requests/s at the peak, {source}"
    if live.type_message:
        yield f"By the load: {live.type_message}"


def _row(option: MixOption) -> list[str]:
    return [
        option.reading,
        str(option.reserved),
        "-" if option.use is None else f"{option.use:.1%}",
        str(option.burst_ceiling),
        *(f"{usd:,.2f}" for usd in (option.fixed, option.variable, option.total)),
        f"{option.total_spot:,.2f}",
    ]


def _body(report: MixReport) -> dict[str, object]:
    """Return all numbers, money per hour or month as the name says."""
    curve, prices = report.curve, report.prices
    live = report.live
    return {
        **({} if live is None else {"source": _live_json(live)}),
        "load": {
            "hours": round(curve.seconds / _HOUR, 4),
            "meanReplicas": round(curve.mean, 4),
            "p50Replicas": curve.quantile(0.5),
            "p95Replicas": curve.quantile(BURST_QUANTILE),
            "peakReplicas": curve.peak,
        },
        "currency": report.currency,
        "replicaHour": {
            **{to_camel(tier): price for tier, price in asdict(prices).items()},
            "effectiveSpot": round(report.effective_spot, 4),
        },
        "breakEvenUse": round(report.break_even, 4),
        "breakEvenWaste": {
            "reserved": round(break_even_waste(prices.spot, prices.reserved), 4),
            "onDemand": round(break_even_waste(prices.spot, prices.on_demand), 4),
        },
        "choices": [
            {
                "choice": option.reading,
                "reserved": option.reserved,
                "use": None if option.use is None else round(option.use, 4),
                "burstCeiling": option.burst_ceiling,
                "fixedPerMonth": round(option.fixed, 2),
                "onDemandPerMonth": round(option.variable, 2),
                "totalPerMonth": round(option.total, 2),
                "totalWithSpotPerMonth": round(option.total_spot, 2),
            }
            for option in report.options
        ],
        "cheapest": report.cheapest(spot=False).reading,
        "cheapestWithSpot": report.cheapest(spot=True).reading,
        "warnings": list(report.warnings()),
    }


def _live_json(live: LiveLoad) -> dict[str, str | float | bool | None]:
    return {
        "service": str(live.service),
        "since": live.since.isoformat(),
        "requests": live.requests,
        "inputTokens": live.input_tokens,
        "outputTokens": live.output_tokens,
        "replicaRequestsPerSecond": round(live.replica_rate, 4),
        "predicted": live.is_predicted,
        "instanceTypes": live.type_message or None,
    }
