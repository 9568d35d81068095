"""The report of a load test, and its tables for a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tessera.api.text import counted
from tessera.cli.numbers import format_seconds
from tessera.cli.text import format_time, table
from tessera.domain.money import Money
from tessera_lab.cli.bench.plan import BenchPlan
from tessera_lab.load.comparison import BaselineComparison, MetricChange
from tessera_lab.load.knee import KNEE_RULE, Knee
from tessera_lab.load.load_metrics import LoadMetrics

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


# Heads of latencies, and their names.
_LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "end_to_end"))
# Heads of columns with the figure that each one has and its format; None is a time.
_Columns = Sequence[tuple[str, str, str | None]]
_THROUGHPUT: _Columns = (
    ("CONCURRENCY", "mean_concurrency", ".1f"),
    ("REQ/S", "requests_per_second", ".2f"),
    ("OUT TOK/S", "output_per_second", ".0f"),
    ("SATURATED TOK/S", "saturated_output_per_second", ".0f"),
    ("TOTAL TOK/S", "total_per_second", ".0f"),
    ("TOK/S/USER", "per_user", ".1f"),
    ("BOTTLENECK", "bottleneck", ""),
)
_LATENCY: _Columns = (
    ("MEAN", "mean", None),
    ("P50", "p50", None),
    ("P90", "p90", None),
    ("P95", "p95", None),
    ("P99", "p99", None),
    ("MAX", "maximum", None),
)
_ENGINE: _Columns = (
    ("BATCH", "batch", ".1f"),
    ("RUNNING", "running", ".1f"),
    ("QUEUED", "queued_seconds", None),
    ("PREEMPTED", "preemptions", ".0f"),
    ("MAX KV USAGE", "max_kv_usage", ".1%"),
    ("PREFIX HITS", "prefix_hits", ".1%"),
    ("MFU", "mfu", ".1%"),
    ("MBU", "mbu", ".1%"),
)
# {code} is the currency, {ratio} that of the prices.
_COST: _Columns = (
    ("{code}/M OUT", "per_million_output", "4"),
    ("{code}/M TOTAL", "per_million_total", "4"),
    ("{code}/M OUT, IN AT 1/{ratio:f}", "per_million_weighted", "4"),
    ("OUT TOK/{code}", "output_tokens_per_unit", ",.0f"),
    ("TOTAL TOK/{code}", "total_tokens_per_unit", ",.0f"),
    ("RUN COST", "run", "6"),
)


def tables(report: BenchReport) -> Iterator[ReportTable]:
    """Yield all tables; throughput and latency always come together."""
    results = report.results
    names = [result.measurement.name for result in results]
    yield (
        ("LOAD", "COMPLETED", "FAILED", "SECONDS", *_heads(_THROUGHPUT)),
        [[*_outcome(result), *_cells(result, _THROUGHPUT)] for result in results],
    )
    yield (
        ("LOAD", "LATENCY", *_heads(_LATENCY)),
        [
            [name, head, *_cells(getattr(result.latencies, figure), _LATENCY)]
            for name, result in zip(names, results, strict=True)
            for head, figure in _LATENCIES
        ],
    )
    if any(result.activity for result in results):
        activities = [_cells(result.activity, _ENGINE) for result in results]
        yield ("LOAD", *_heads(_ENGINE)), _named(names, activities)
    price = report.plan.price
    if price is not None:
        code, ratio = price.per_hour.currency, price.output_input_ratio
        heads = [head.format(code=code, ratio=ratio) for head in _heads(_COST)]
        yield ("LOAD", *heads), _named(names, [_cells(result.cost, _COST) for result in results])
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


def _heads(columns: _Columns) -> list[str]:
    return [head for head, _, _ in columns]


def _cells(figures: object, columns: _Columns) -> list[str]:
    """Return the figures of an object; of None each one is missing."""
    return [_format(getattr(figures, name, None), digits) for _, name, digits in columns]


def _named(names: Sequence[str], rows: Sequence[list[str]]) -> list[list[str]]:
    return [[name, *row] for name, row in zip(names, rows, strict=True)]


def _outcome(result: LoadMetrics) -> list[str]:
    failed = ", ".join(f"{count} {kind}" for kind, count in result.failures.items())
    measurement = result.measurement
    return [measurement.name, str(result.completed), failed or "0", f"{measurement.seconds:.1f}"]


def _format(value: Any, digits: str | None) -> str:
    if value is None:
        return NONE
    if isinstance(value, Money):
        return str(value.rounded(int(digits or 0)))
    return format_seconds(value) if digits is None else format(value, digits)


_SECONDS = {"ttft": "TTFT", "tpot": "TPOT", "e2eLatency": "E2E"}
_RATES = {
    "requestsPerSecond": ("requests/s", ".2f"),
    "outputTokensPerSecond": ("output tokens/s", ".0f"),
    "perMillionOutput": ("cost of a million output tokens", ".4f"),
}


def _change(change: MetricChange) -> list[str]:
    share = NONE if change.share is None else f"{change.share:+.1%}"
    key, _, percentile = change.metric.partition(".")
    load = change.load
    if percentile:
        label = f"{_SECONDS[key]} {percentile.upper()}"
        return [load, label, format_seconds(change.before), format_seconds(change.now), share]
    label, format_spec = _RATES[key]
    return [load, label, format(change.before, format_spec), format(change.now, format_spec), share]
