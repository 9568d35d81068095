"""The report of `tessera engine`, as a table or JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from tessera.api.text import counted
from tessera.cli.numbers import format_seconds
from tessera.cli.output import Output
from tessera.cli.text import cell, table
from tessera.domain.hardware.weights import billing_weight
from tessera_lab.cli.engine.loads import RequestLoad
from tessera_lab.engine.play import Capacity, PlayedLoad, usd_per_million

_PERCENTILES = (50, 95, 99)


class SetupResult(NamedTuple):
    """What one setup did with the load."""

    name: str
    played: PlayedLoad
    capacity: Capacity | None
    """The highest rate, where an SLO is given; `played` is the load at this rate."""

    @property
    def output_tokens_per_second(self) -> float:
        return (self.capacity or self.played).output_tokens_per_second

    @property
    def requests_per_second(self) -> float:
        return self.played.requests_per_second if self.capacity is None else self.capacity.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """Setups of an engine on one load; the first is what the others are compared with."""

    load: RequestLoad
    slo: tuple[float, float] | None
    """Objectives of TTFT and ITL in seconds."""
    price: float | None
    """USD per hour of a GPU."""
    results: tuple[SetupResult, ...]

    def usd_per_million(self, result: SetupResult) -> float | None:
        """Return the price of a million output tokens; None without prices or tokens."""
        rate = result.output_tokens_per_second
        if self.price is None or not rate:
            return None
        hourly = self.price * float(billing_weight(result.played.setup.hardware))
        return usd_per_million(hourly, rate)

    def gain(self, result: SetupResult) -> float | None:
        """Return the rate of requests as a multiple of the first setup's; None if that is 0."""
        first = self.results[0].requests_per_second
        return result.requests_per_second / first if first else None

    def warnings(self) -> Iterator[str]:
        for name, played, _ in self.results:
            if played.rejected:
                yield (
                    f"{name}: {counted(played.rejected, 'request')} of "
                    f"{len(self.load.requests)} are longer than max_model_len "
                    f"{played.setup.max_model_len} and are not served"
                )


def output(report: EngineReport, form: str) -> Output:
    """Return the setups as table or JSON."""
    return Output.of(form, _lines(report), partial(_body, report))


def _lines(report: EngineReport) -> Iterator[str]:
    """Yield the setups side by side."""
    heads = ["SETUP", "OUT TOK/S", "REQ/S", "GAIN", "TTFT P95", "TPOT P95", "E2E MEAN"]
    heads += ["SLOTS IN USE", "IDLE SLOT STEPS", "PADDED", "CACHED", "KV WASTE", "PREEMPTED", "MFU"]
    if report.price is not None:
        heads.append("USD/M OUT")
    if report.slo is not None:
        heads.append("LIMIT")
    rows = [_row(report, result) for result in report.results]
    yield from (_load_line(report), "", *table(heads, rows, str.rjust))
    yield from (f"Warning: {warning}" for warning in report.warnings())


def _load_line(report: EngineReport) -> str:
    requests = [each.request for each in report.load.requests]
    prompt = sum(request.prompt_tokens for request in requests) / len(requests)
    output = sum(request.output_tokens for request in requests) / len(requests)
    arrivals = report.load.arrivals
    if report.slo is not None:
        ttft, itl = map(format_seconds, report.slo)
        arrivals = f"at the highest rate whose P95 keeps TTFT {ttft} and TPOT {itl}"
    return (
        f"Load {report.load.name}: {counted(len(requests), 'request')} {arrivals}, "
        f"tokens per request: {prompt:,.0f} in, {output:,.0f} out"
    )


def _row(report: EngineReport, result: SetupResult) -> list[str]:
    played = result.played
    tpot = played.tpot(95)
    row = [
        result.name,
        f"{result.output_tokens_per_second:,.0f}",
        f"{result.requests_per_second:.3g}",
        cell(report.gain(result), "{:.3g}x"),
        format_seconds(played.ttft(95)),
        "-" if tpot is None else format_seconds(tpot),
        format_seconds(played.mean_latency),
        f"{played.slot_occupancy:.1%}",
        f"{played.idle_slot_steps:,}",
        f"{played.padded_tokens:,}",
        f"{played.cached_share:.1%}",
        cell(played.kv_waste, "{:.1%}"),
        str(played.preemptions),
        f"{played.mfu:.1%}",
    ]
    if report.price is not None:
        row.append(cell(report.usd_per_million(result), "{:.4f}"))
    if result.capacity is not None:
        row.append(result.capacity.limited_by)
    return row


def _body(report: EngineReport) -> dict[str, object]:
    """Return all numbers, seconds and shares as they are."""
    return {
        "load": {
            "name": report.load.name,
            "requests": len(report.load.requests),
            "arrivals": report.load.arrivals,
            "seed": report.load.seed,
        },
        "slo": report.slo and {"ttftSeconds": report.slo[0], "itlSeconds": report.slo[1]},
        "setups": [_setup_json(report, result) for result in report.results],
        "warnings": list(report.warnings()),
    }


def _setup_json(report: EngineReport, result: SetupResult) -> dict[str, object]:
    played, capacity = result.played, result.capacity
    speculation = played.setup.speculation
    tpot = {f"p{percent}": played.tpot(percent) for percent in _PERCENTILES}
    return {
        "setup": result.name,
        "outputTokensPerSecond": _rounded(result.output_tokens_per_second),
        "inputTokensPerSecond": _rounded(played.input_tokens_per_second),
        "requestsPerSecond": _rounded(result.requests_per_second),
        "gain": _rounded(report.gain(result)),
        "seconds": _rounded(played.seconds),
        "busySeconds": _rounded(played.busy_seconds),
        "ttftSeconds": {f"p{percent}": _rounded(played.ttft(percent)) for percent in _PERCENTILES},
        "tpotSeconds": {name: _rounded(seconds) for name, seconds in tpot.items()},
        "e2eSeconds": {
            "mean": _rounded(played.mean_latency),
            **{f"p{percent}": _rounded(played.latency(percent)) for percent in _PERCENTILES},
        },
        "slotOccupancy": _rounded(played.slot_occupancy),
        "idleSlotSteps": played.idle_slot_steps,
        "paddedTokens": played.padded_tokens,
        "cachedShare": _rounded(played.cached_share),
        "kvTokens": played.setup.memory.kv_tokens,
        "kvWaste": _rounded(played.kv_waste),
        "preemptions": played.preemptions,
        "mfu": _rounded(played.mfu),
        "acceptance": None if speculation is None else _rounded(speculation.acceptance),
        "draftCost": None if speculation is None else _rounded(speculation.draft_cost),
        "usdPerMillionOutput": _rounded(report.usd_per_million(result)),
        "limit": None if capacity is None else capacity.limited_by,
        "rejected": played.rejected,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
