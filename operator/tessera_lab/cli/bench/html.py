"""The report of a load test as one self-contained HTML file."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape

from tessera.api.text import counted
from tessera.cli.plots import Plot, PlotSeries, Points, thin_out
from tessera.cli.text import format_time
from tessera_lab.cli.bench.report import (
    PERCENTILES,
    BenchReport,
    all_notes,
    client_lines,
    knee_lines,
    tables,
)
from tessera_lab.cli.html_file import html_file, html_plots, html_table
from tessera_lab.load.distribution import Distribution
from tessera_lab.load.engine_metrics import RUNNING, WAITING
from tessera_lab.load.load_metrics import LoadMetrics
from tessera_lab.load.responses import BenchResponse

# Loads in one plot; more lines cannot be distinguished.
_MAX_LINES = 8
_BINS = 50
# Title and unit of each plot, units per second, and seconds of a response, None if it has none.
_LATENCIES: Sequence[tuple[str, str, float, Callable[[BenchResponse], float | None]]] = (
    ("Time to first token (TTFT)", "seconds", 1, lambda response: response.ttft_seconds),
    ("Time per output token (TPOT)", "milliseconds", 1e3, lambda response: response.tpot_seconds),
    ("End-to-end latency", "seconds", 1, lambda response: response.ended_at - response.due_at),
)


def render_html(report: BenchReport) -> str:
    """Return the whole file."""
    title = f"Load test of {report.title}"
    return html_file(
        title,
        (
            f"<h1>{escape(title)}</h1>",
            *_header(report),
            *html_plots(plots(report)),
            *(html_table(head, rows) for head, rows in tables(report)),
            *_footer(report),
        ),
    )


def plots(report: BenchReport) -> Iterator[Plot]:
    """Yield the plots of a sweep first, then the distributions of latencies and their course."""
    if report.is_sweep:
        yield from _sweep(report)
    named_results = [
        (result, f"{result.measurement.name} concurrent" if report.is_sweep else "")
        for result in report.results[:_MAX_LINES]
    ]
    for title, unit, scale, latency in _LATENCIES:
        series = []
        for result, name in named_results:
            complete = (response for response in result.measurement.responses if response.complete)
            values = [value * scale for value in map(latency, complete) if value is not None]
            series.append(_cumulative(values, name))
        yield Plot(
            title=title,
            x_label=unit,
            y_label="share of responses, %",
            series=series,
            legend_below=True,
        )
    if len(report.results) == 1:
        yield from _over_time(report.results[0])


def _sweep(report: BenchReport) -> Iterator[Plot]:
    results = [result for result in report.results if result.measurement.concurrency is not None]
    marks = [(float(report.knee.concurrency), "knee")] if report.knee else []
    by_load = partial(Plot, x_label="concurrent requests", marks=marks)
    concurrencies = [float(result.measurement.concurrency or 0) for result in results]
    yield by_load(
        title="Output tokens per second by load",
        y_label="tokens/s",
        series=[
            _line("whole load", concurrencies, [result.output_per_second for result in results]),
            _line(
                "saturated",
                concurrencies,
                [result.saturated_output_per_second for result in results],
            ),
        ],
    )
    for name, unit, scale in (("TTFT", "seconds", 1.0), ("TPOT", "milliseconds", 1e3)):
        distributions = [getattr(result.latencies, name.lower()) for result in results]
        series = _percentiles(concurrencies, distributions, scale)
        yield by_load(title=f"{name} by load", y_label=unit, series=series)
    known = [
        (result.per_user, result.output_per_second, result.measurement.name)
        for result in results
        if result.per_user is not None
    ]
    yield Plot(
        title="Throughput per user and of the server",
        x_label="tokens/s per user (median)",
        y_label="tokens/s of the server",
        series=[PlotSeries(name="", points=[(user, total) for user, total, _ in known])],
        labels=known,
    )


def _over_time(result: LoadMetrics) -> Iterator[Plot]:
    measurement = result.measurement
    complete, failed = list[tuple[float, float]](), list[tuple[float, float]]()
    for response in measurement.responses:
        at = response.due_at - measurement.started_at
        if not response.complete:
            failed.append((at, 0.0))
        elif response.ttft_seconds is not None:
            complete.append((at, response.ttft_seconds))
    yield Plot(
        title="TTFT over time",
        x_label="seconds from the start to the request",
        y_label="TTFT, seconds; 0 for failures",
        series=[
            PlotSeries(name="completed", points=complete, dots=True),
            PlotSeries(name="failures" if failed else "", points=failed, dots=True, color=3),
        ],
    )
    over_time = partial(Plot, x_label="seconds")
    rates = _rates(measurement.responses, measurement.started_at, measurement.seconds)
    series = [PlotSeries(name="", points=rates)]
    yield over_time(title="Throughput over time", y_label="output tokens/s", series=series)
    yield over_time(
        title="Engine queue over time",
        y_label="requests",
        series=[
            PlotSeries(
                name=name,
                points=[
                    (snapshot.at - measurement.started_at, value)
                    for snapshot in measurement.during
                    if (value := snapshot.get(metric)) is not None
                ],
            )
            for name, metric in (("running (batch)", RUNNING), ("waiting", WAITING))
        ],
    )


def _rates(responses: Sequence[BenchResponse], began: float, seconds: float) -> Points:
    """Return output tokens per second in equal intervals."""
    width = seconds / _BINS
    bins = [0.0] * _BINS
    for response in responses:
        if response.first_token_at is None or not response.complete:
            continue
        received_at, per_chunk = response.first_token_at, response.output_tokens / response.chunks
        for gap in (0.0, *response.chunk_gaps):
            received_at += gap
            bins[min(_BINS - 1, int((received_at - began) / width))] += per_chunk
    return [((place + 0.5) * width, tokens / width) for place, tokens in enumerate(bins)]


def _cumulative(values: Sequence[float], name: str) -> PlotSeries:
    ordered = sorted(values)
    steps = [(value, 100 * (rank + 1) / len(ordered)) for rank, value in enumerate(ordered)]
    return PlotSeries(name=name, points=thin_out(steps))


def _percentiles(
    concurrencies: list[float], distributions: Sequence[Distribution | None], unit: float
) -> list[PlotSeries]:
    return [
        _line(
            name.upper(),
            concurrencies,
            [None if each is None else getattr(each, name) * unit for each in distributions],
        )
        for name in ("p50", "p95")
    ]


def _line(name: str, across: Sequence[float], up: Sequence[float | None]) -> PlotSeries:
    points = [(x, y) for x, y in zip(across, up, strict=True) if y is not None]
    return PlotSeries(name=name, points=points)


def _header(report: BenchReport) -> Iterator[str]:
    yield (
        f"<p>{escape(report.plan.description)}; seed {report.plan.seed}, "
        f"{counted(report.warmup, 'warm-up request')} not measured. "
        f"{format_time(report.at)} UTC, tessera {escape(report.tessera)}.</p>"
    )
    if report.interrupted:
        yield '<p class="stopped">Interrupted: figures are those of the requests up to then.</p>'


def _footer(report: BenchReport) -> Iterator[str]:
    paragraphs = [*knee_lines(report), *client_lines(report), f"Percentiles are by {PERCENTILES}."]
    yield from (f"<p>{escape(line)}</p>" for line in paragraphs)
    if notes := list(all_notes(report)):
        yield "<h2>Notes</h2>\n<ul>"
        yield from (f"<li>{escape(note)}</li>" for note in notes)
        yield "</ul>"
