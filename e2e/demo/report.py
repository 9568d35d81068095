"""The report of a run of the demo: one HTML file with what was expected, seen, measured and paid.

It shows what has been recorded: what is missing, since the run was interrupted or nothing was
read, has a sentence in its place.
"""

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape
from operator import attrgetter

from demo.recorded import BillLine, Curve, RecordedRun, RecordedStep, by_tenant
from tessera.cli.plots import COLORS, Plot, PlotSeries, svg
from tessera_lab.cli.html_file import MARK, html_file

# Pixels of a chart: a phone shows them nearly in this size.
_WIDTH = 420
# Seconds between two points above which nothing was read.
_GAP = 5.0
_STYLE = """
body { max-width: 1320px; }
h1 { font-size: 1.7rem; line-height: 1.25; display: flex; gap: 0.7rem; align-items: center; }
h1 svg { width: 2.2rem; flex: none; }
h2 { margin: 2.2rem 0 0.6rem; font-size: 1.25rem; }
.dim, figcaption span { color: var(--dim); font-weight: normal; }
.steps { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
.steps li { border: 1px solid var(--soft); border-radius: 8px; padding: 0.7rem 1rem; }
.steps b { display: block; } .steps p { margin: 0.35rem 0; }
.steps i { font-style: normal; color: var(--dim); }
.time { height: 6px; background: var(--soft); border-radius: 3px; }
.time div { height: 6px; background: #0f766e; border-radius: 3px; min-width: 3px; }
.legend { list-style: none; padding: 0; margin: 0.2rem 0 0; display: flex; flex-wrap: wrap;
  gap: 0.1rem 1rem; font-size: 13px; }
.legend svg { width: 18px; height: 10px; margin-right: 0.4rem; }
.marks { columns: 3 240px; padding-left: 1.6rem; }
.missing { border-left: 4px solid #b45309; padding-left: 0.6rem; }
.mark { opacity: 0.35; }
.mosaic { overflow-x: auto; } .mosaic img { width: 100%; min-width: 640px; height: auto; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.plots.two { grid-template-columns: minmax(0, 900px); }
.bill { width: 100%; max-width: 760px; } .bill td + td, .bill th { white-space: nowrap; }
.bill .tenant td { font-weight: 600; } .bill .service td:first-child { padding-left: 1.6rem; }
.bill .bar { width: 30%; } .bill .bar div { height: 8px; background: #b45309; border-radius: 4px; }
@media (max-width: 500px) { th, td { padding: 0.2rem 0.4rem; } .bill .bar { width: 22%; } }
"""


def page(run: RecordedRun) -> str:
    """Return the whole HTML file."""
    title = f"Tessera in {_clock(run.seconds)}"
    return html_file(
        title,
        (
            f"<h1>{MARK}{escape(title)}</h1>",
            *_introduction(run),
            "<h2>Steps</h2>",
            *_steps(run),
            "<h2>What was measured</h2>",
            *_measured(run),
            "<h2>GPUs before and after</h2>",
            *_mosaics(run),
            "<h2>The bill of these minutes</h2>",
            *_bill(run.bill),
        ),
        _STYLE,
    )


def _introduction(run: RecordedRun) -> Iterator[str]:
    seconds = run.cpu_seconds
    cpu = "" if seconds is None else f", {seconds:.0f} s of CPU in all processes"
    yield (
        f"<p>A real control plane, where the chart of Tessera {escape(run.version)} was installed, "
        "with simulated GPU nodes and simulated engines: decisions, objects, and the rules of the "
        "bill are those of a cluster, GPU activity is simulated, and prices are the pools' own.</p>"
        f'<p class="dim">Started {escape(run.started)}, {run.seconds:.0f} s{cpu}.</p>'
    )
    if not run.steps or any(not step.seen for step in run.steps):
        yield '<p class="stopped">The run ended early: this is what it had recorded by then.</p>'


def _steps(run: RecordedRun) -> Iterator[str]:
    if not run.steps:
        yield _missing("No step had begun.")
        return
    yield '<ol class="steps">'
    for number, step in enumerate(run.steps, 1):
        yield from _step(number, step, max(run.seconds, 1.0))
    yield "</ol>"


def _step(number: int, step: RecordedStep, seconds: float) -> Iterator[str]:
    begin = min(max(step.from_s, 0.0), seconds)
    end = min(max(step.until_s, begin), seconds)
    yield (
        f"<li><b>{number}. {escape(step.title)}</b>"
        f'<span class="dim">{_clock(step.from_s)} to {_clock(step.until_s)}</span>'
        f'<div class="time"><div style="margin-left: {100 * begin / seconds:.1f}%; '
        f'width: {100 * (end - begin) / seconds:.1f}%"></div></div>'
        f"<p><i>Expected:</i> {escape(step.expected)}</p>"
        f"<p><i>Seen:</i> {escape(step.seen) or 'the run ended before'}</p></li>"
    )


def _measured(run: RecordedRun) -> Iterator[str]:
    curves = run.curves
    charts = (
        ("Ready replicas", "by service", "replicas", 1, curves.replicas),
        ("Requests that wait", "gateway and engines", "requests", 1, curves.queue),
        ("GPU activity", "DCGM, mean of a service's devices", "percent", 100, curves.activity),
        ("Arrivals", "at the gateway, by service", "requests/s", 1, curves.arrivals),
        ("Price", "of replicas, by service", "USD/hour", 1, curves.dollars_per_hour),
        ("Dollars so far", "by tenant", "USD", 1, curves.dollars),
    )  # fmt: skip
    moments = sorted(run.moments, key=attrgetter("at_s"))
    marks = [(moment.at_s, str(number)) for number, moment in enumerate(moments, 1)]
    services = _colors(line for *_, lines in charts[:-1] for line in lines)
    yield '<div class="plots">'
    for title, what, unit, scale, lines in charts:
        colors = _colors(lines) if lines is curves.dollars else services
        series = [_series(curve, scale, colors[curve.name]) for curve in lines]
        series = [line for line in series if line.points]
        plot = Plot(
            title=title,
            x_label="seconds",
            y_label=unit,
            # The names are below the plot, where they cover no line.
            series=[replace(line, name="") for line in series],
            marks=marks,
            width=_WIDTH,
            x_maximum=run.seconds,
            gap=_GAP,
        )
        yield f"<figure><figcaption>{title} <span>{what}</span></figcaption>"
        yield svg(plot) or _missing("Nothing was recorded.")
        yield from _legend(series)
        yield "</figure>"
    yield "</div>"
    if moments:
        yield '<p class="dim">Numbers above the charts:</p><ol class="marks">'
        for moment in moments:
            yield f"<li>{escape(moment.text)}, {_clock(moment.at_s)}</li>"
        yield "</ol>"


def _colors(curves: Iterable[Curve]) -> dict[str, int]:
    """Return the number of the color of each name; from the second round on lines are dashed."""
    names = dict.fromkeys(curve.name for curve in curves)
    return {name: number for number, name in enumerate(names)}


def _series(curve: Curve, scale: float, color: int) -> PlotSeries:
    points = [(at, value * scale) for at, value in curve.points if math.isfinite(value)]
    return PlotSeries(name=curve.name, points=points, color=color)


def _legend(series: Sequence[PlotSeries]) -> Iterator[str]:
    yield '<ul class="legend">'
    for line in series:
        number = line.color or 0
        dashes = ' stroke-dasharray="7 4"' if number >= len(COLORS) else ""
        most = max(value for _, value in line.points)
        yield (
            f'<li><svg viewBox="0 0 18 10" aria-hidden="true"><polyline stroke-width="3"{dashes} '
            f'class="c{number % len(COLORS)}" points="0,5 18,5"/></svg>{escape(line.name)} '
            f'<span class="dim">at most {most:.3g}</span></li>'
        )
    yield "</ul>"


def _mosaics(run: RecordedRun) -> Iterator[str]:
    yield '<div class="plots two">'
    for title, document in (("Before", run.mosaic_before), ("After", run.mosaic_after)):
        yield f"<figure><figcaption>{title}</figcaption>"
        if "<g>" in document:
            # As an image a document runs no script and shares no names with the page.
            data = base64.b64encode(document.encode()).decode()
            yield (
                f'<div class="mosaic"><img alt="GPUs and their slices, {title.lower()}" '
                f'src="data:image/svg+xml;base64,{data}"></div>'
            )
        else:
            yield _missing("The run ended before the GPUs were drawn.")
        yield "</figure>"
    yield "</div>"


def _bill(lines: Iterable[BillLine]) -> Iterator[str]:
    bills = by_tenant(lines)
    if not bills:
        yield _missing("The run ended before the bill was read.")
        return
    whole = sum(bill.usd for bill in bills)
    yield '<table class="bill"><tr><th>tenant, service</th><th>USD</th><th>share</th><th></th></tr>'
    for bill in bills:
        yield _bill_row("tenant", bill.tenant or "no tenant: unused", bill.usd, bill.share)
        for line in sorted(bill.lines, key=lambda each: -each.usd):
            yield _bill_row("service", line.service, line.usd, line.share)
    yield f'<tr class="tenant"><td>all</td><td>{whole:.4f}</td><td></td><td></td></tr></table>'


def _bill_row(kind: str, name: str, usd: float, share: float) -> str:
    bar = f'<div style="width: {100 * min(max(share, 0.0), 1.0):.1f}%"></div>'
    return (
        f'<tr class="{kind}"><td>{escape(name)}</td><td>{usd:.4f}</td><td>{share:.1%}</td>'
        f'<td class="bar">{bar}</td></tr>'
    )


def _missing(text: str) -> str:
    return f'<p class="missing">{text}</p>'


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
