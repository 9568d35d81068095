"""The report of a load test, and its tables for a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera.api.text import counted
from tessera.cli.text import format_time, table
from tessera.domain.money import Money
from tessera_lab.cli.bench.plan import BenchPlan
from tessera_lab.load.comparison import BaselineComparison, MetricChange
from tessera_lab.load.distribution import Distribution
from tessera_lab.load.engine_metrics import EngineActivity
from tessera_lab.load.knee import KNEE_RULE, Knee
from tessera_lab.load.load_metrics import LoadMetrics
from tessera_lab.load.token_cost import TokenCost

NONE = "-"
PERCENTILES = "nearest rank: the ceil(p n / 100)-th of n values in order, always a measured one"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """A finished load test."""

    tessera: str
    at: datetime
    plan: BenchPlan
    model: str
    endpoint: str
    warmup: int
    timeout_seconds: float
    results: tuple[LoadMetrics, ...]
    warnings: tuple[tuple[str, ...], ...]
    """Warnings of each load."""
    knee: Knee | None
    is_sweep: bool
    interrupted: bool
    notes: tuple[str, ...]
    comparison: BaselineComparison | None = None
    """The changes since an earlier report."""

    @property
    def title(self) -> str:
        return f"{self.model} at {self.plan.base}"


def as_text(report: BenchReport) -> str:
    """Return tables for a terminal."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: BenchReport) -> Iterator[str]:
    yield f"{report.title}, {format_time(report.at)} UTC"
    yield (
        f"{report.plan.description}; seed {report.plan.seed}, "
        f"{counted(report.warmup, 'warm-up request')} not measured"
    )
    if report.interrupted:
        yield "INTERRUPTED: the figures are those of the requests up to then"
    for head, rows in tables(report):
        yield ""
        yield from table(head, rows)
    yield ""
    yield from knee_lines(report)
    yield from client_lines(report)
    yield f"Percentiles are by {PERCENTILES}."
    yield from (f"Note: {note}" for note in all_notes(report))


ReportTable = tuple[Sequence[str], Sequence[Sequence[str]]]


def tables(report: BenchReport) -> Iterator[ReportTable]:
    """Yield all tables; throughput and latency always come together."""
    results = report.results
    yield (
        (
            *("LOAD", "COMPLETED", "FAILED", "SECONDS", "CONCURRENCY", "REQ/S", "OUT TOK/S"),
            *("SATURATED TOK/S", "TOTAL TOK/S", "TOK/S/USER", "BOTTLENECK"),
        ),
        [_throughput(result) for result in results],
    )
    yield (
        ("LOAD", "LATENCY", "MEAN", "P50", "P90", "P95", "P99", "MAX"),
        [row for result in results for row in _latency(result)],
    )
    if any(result.activity for result in results):
        yield (
            (
                *("LOAD", "BATCH", "RUNNING", "QUEUED", "PREEMPTED", "MAX KV USAGE"),
                *("PREFIX HITS", "MFU", "MBU"),
            ),
            [_engine(result.measurement.name, result.activity) for result in results],
        )
    if report.plan.price is not None:
        ratio, code = report.plan.price.output_input_ratio, report.plan.price.per_hour.currency
        yield (
            (
                *("LOAD", f"{code}/M OUT", f"{code}/M TOTAL", f"{code}/M OUT, IN AT 1/{ratio:f}"),
                *(f"OUT TOK/{code}", f"TOTAL TOK/{code}", "RUN COST"),
            ),
            [_money(result.measurement.name, result.cost) for result in results],
        )
    if report.comparison is not None and report.comparison.changes:
        yield (
            ("LOAD", f"SINCE {report.comparison.at[:16]}", "BEFORE", "NOW", "CHANGE"),
            [_change(result) for result in report.comparison.changes],
        )


def knee_lines(report: BenchReport) -> Iterator[str]:
    """Yield the knee of a sweep and its rule."""
    if not report.is_sweep:
        return
    if report.knee is None:
        yield (
            "Knee: not enough data; it needs three loads without failures, and one below the best"
        )
    elif report.knee.passed:
        yield f"Knee: {counted(report.knee.concurrency, 'concurrent request')}. It is {KNEE_RULE}."
    else:
        yield (
            f"Knee: {report.knee.concurrency} concurrent requests or more; no higher load was "
            f"tried. It is {KNEE_RULE}."
        )


def client_lines(report: BenchReport) -> Iterator[str]:
    """Yield the client's own limit, at its busiest load."""
    clients = [
        result.client for result in report.results if result.client.cpu_ms_per_request is not None
    ]
    if not clients:
        return
    client = max(clients, key=lambda result: result.cpu_share)
    yield (
        f"Client: {client.cpu_share:.0%} of a core, {client.cpu_ms_per_request:.2f} ms per request "
        f"({client.cpu_us_per_chunk or 0:.0f} us per chunk), so its limit is about "
        f"{client.requests_per_second or 0:.0f} such requests/s. Requests were sent up to "
        f"{client.late_seconds * 1e3:.1f} ms late (P95)."
    )


def all_notes(report: BenchReport) -> Iterator[str]:
    """Yield warnings, with their load where there are several, then what is missing."""
    for result, warnings in zip(report.results, report.warnings, strict=True):
        prefix = f"load {result.measurement.name}: " if report.is_sweep else ""
        yield from (prefix + warning for warning in warnings)
    if report.comparison is not None:
        yield from report.comparison.caveats
    yield from report.notes


def _throughput(result: LoadMetrics) -> list[str]:
    failed = ", ".join(f"{count} {kind}" for kind, count in result.failures.items())
    return [
        result.measurement.name,
        str(result.completed),
        failed or "0",
        f"{result.measurement.seconds:.1f}",
        f"{result.mean_concurrency:.1f}",
        f"{result.requests_per_second:.2f}",
        f"{result.output_per_second:.0f}",
        _format_number(result.saturated_output_per_second, ".0f"),
        f"{result.total_per_second:.0f}",
        _format_number(result.per_user, ".1f"),
        str(result.bottleneck),
    ]


def _latency(result: LoadMetrics) -> Iterator[list[str]]:
    latencies = result.latencies
    for name, distribution in (
        ("TTFT", latencies.ttft),
        ("TPOT", latencies.tpot),
        ("ITL", latencies.itl),
        ("E2E", latencies.end_to_end),
    ):
        yield [result.measurement.name, name, *_distribution_cells(distribution)]


def _distribution_cells(distribution: Distribution | None) -> list[str]:
    if distribution is None:
        return [NONE] * 6
    values = (
        distribution.mean,
        distribution.p50,
        distribution.p90,
        distribution.p95,
        distribution.p99,
        distribution.maximum,
    )
    return [format_seconds(value) for value in values]


def format_seconds(seconds: float) -> str:
    """Return about three digits in a suitable unit."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s"


def _engine(name: str, activity: EngineActivity | None) -> list[str]:
    if activity is None:
        return [name, *[NONE] * 8]
    return [
        name,
        _format_number(activity.batch, ".1f"),
        _format_number(activity.running, ".1f"),
        NONE if activity.queued_seconds is None else format_seconds(activity.queued_seconds),
        _format_number(activity.preemptions, ".0f"),
        _format_number(activity.max_kv_usage, ".1%"),
        _format_number(activity.prefix_hits, ".1%"),
        _format_number(activity.mfu, ".1%"),
        _format_number(activity.mbu, ".1%"),
    ]


def _money(name: str, cost: TokenCost | None) -> list[str]:
    if cost is None:
        return [name, *[NONE] * 6]
    return [
        name,
        _format_amount(cost.per_million_output),
        _format_amount(cost.per_million_total),
        _format_amount(cost.per_million_weighted),
        _format_number(cost.output_tokens_per_unit, ",.0f"),
        _format_number(cost.total_tokens_per_unit, ",.0f"),
        _format_amount(cost.run, 6),
    ]


_SECONDS = {"ttft": "TTFT", "tpot": "TPOT", "e2eLatency": "E2E"}
_RATES = {
    "requestsPerSecond": ("requests/s", ".2f"),
    "outputTokensPerSecond": ("output tokens/s", ".0f"),
    "perMillionOutput": ("cost of a million output tokens", ".4f"),
}


def _change(change: MetricChange) -> list[str]:
    share = NONE if change.share is None else f"{change.share:+.1%}"
    key, _, percentile = change.figure.partition(".")
    load = change.load
    if percentile:
        label = f"{_SECONDS[key]} {percentile.upper()}"
        return [load, label, format_seconds(change.before), format_seconds(change.now), share]
    label, format_spec = _RATES[key]
    return [load, label, format(change.before, format_spec), format(change.now, format_spec), share]


def _format_amount(value: Money | None, digits: int = 4) -> str:
    return NONE if value is None else str(value.rounded(digits))


def _format_number(value: float | None, format_spec: str) -> str:
    return NONE if value is None else format(value, format_spec)
