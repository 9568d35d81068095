"""The report of a load test as one HTML file that needs nothing else."""

from collections.abc import Iterator, Sequence
from html import escape

from tessera.cli.bench_plots import Plot, Points, Series, svg, thinned
from tessera.cli.bench_report import (
    PERCENTILES,
    Report,
    all_notes,
    client_lines,
    knee_lines,
    tables,
)
from tessera.cli.text import moment
from tessera.domain.bench.answers import Answer
from tessera.domain.bench.counters import RUNNING, WAITING
from tessera.domain.bench.figures import Figures
from tessera.domain.bench.spread import Spread

_MOST_LINES = 8
"""Loads in one plot; more lines cannot be told apart."""
_PARTS = 50
_STYLE = """
:root { color-scheme: light dark; --fore: #1c1917; --back: #fff; --soft: #e7e5e4; }
@media (prefers-color-scheme: dark) { :root { --fore: #e7e5e4; --back: #1c1917; --soft: #44403c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fore); background: var(--back);
  max-width: 1360px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid var(--soft); }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--fore); }
.grid { stroke: var(--soft); } .mark { stroke: var(--fore); stroke-dasharray: 4 3; }
.stopped { border-left: 4px solid #be123c; padding-left: 0.6rem; }
"""


def html(report: Report) -> str:
    """The whole file."""
    title = escape(f"Load test of {report.title}")
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{title}</h1>",
            *_head(report),
            '<div class="plots">',
            *(
                f"<figure><figcaption>{escape(plot.title)}</figcaption>\n{drawn}\n</figure>"
                for plot in plots(report)
                if (drawn := svg(plot))
            ),
            "</div>",
            *(_table(head, rows) for head, rows in tables(report)),
            *_foot(report),
            "</body>\n</html>\n",
        )
    )


def plots(report: Report) -> Iterator[Plot]:
    """Of a sweep what it is about first, then how latencies are spread and went over time."""
    if report.swept:
        yield from _sweep(report)
    shown = [
        (one, f"{one.level.name} at once" if report.swept else "")
        for one in report.levels[:_MOST_LINES]
    ]
    yield Plot(
        title="Time to first token",
        across="seconds",
        up="share of answers, %",
        series=[_cumulated(_firsts(one), name) for one, name in shown],
        low=True,
    )
    yield Plot(
        title="Time between tokens, mean of each answer",
        across="milliseconds",
        up="share of answers, %",
        series=[_cumulated(_per_token(one), name) for one, name in shown],
        low=True,
    )
    yield Plot(
        title="Whole answers",
        across="seconds",
        up="share of answers, %",
        series=[_cumulated(_answers(one), name) for one, name in shown],
        low=True,
    )
    if len(report.levels) == 1:
        yield from _course(report.levels[0])


def _sweep(report: Report) -> Iterator[Plot]:
    levels = [one for one in report.levels if one.level.concurrency is not None]
    mark = (float(report.knee.concurrency), "knee") if report.knee else None
    at = [float(one.level.concurrency or 0) for one in levels]
    yield Plot(
        title="Output tokens a second by load",
        across="requests at once",
        up="tokens/s",
        series=[
            Series(
                name="over the whole load", points=_line(at, [o.output_per_second for o in levels])
            ),
            Series(name="while all places are taken", points=_line(at, [o.full for o in levels])),
        ],
        mark=mark,
    )
    yield Plot(
        title="Time to first token by load",
        across="requests at once",
        up="seconds",
        series=_percentiles(at, [one.latencies.first_token for one in levels], 1),
        mark=mark,
    )
    yield Plot(
        title="Time between tokens by load",
        across="requests at once",
        up="milliseconds",
        series=_percentiles(at, [one.latencies.per_token for one in levels], 1000),
        mark=mark,
    )
    users = [(one.per_user, one.output_per_second, one.level.name) for one in levels]
    known = [(user, total, name) for user, total, name in users if user is not None]
    yield Plot(
        title="What a user gets against what the server gives",
        across="tokens/s of a user (median)",
        up="tokens/s of the server",
        series=[Series(name="", points=[(user, total) for user, total, _ in known])],
        labels=known,
    )


def _course(one: Figures) -> Iterator[Plot]:
    level = one.level
    whole = [answer for answer in level.answers if answer.whole and answer.to_first is not None]
    failed = [answer for answer in level.answers if not answer.whole]
    yield Plot(
        title="First tokens over time",
        across="seconds from the begin to the request",
        up="seconds to the first token; 0 for failures",
        series=[
            Series(
                name="whole answers",
                points=[(answer.due - level.began, answer.to_first or 0.0) for answer in whole],
                dots=True,
            ),
            Series(
                name="failures" if failed else "",
                points=[(answer.due - level.began, 0.0) for answer in failed],
                dots=True,
                color=3,
            ),
        ],
    )
    yield Plot(
        title="Tokens over time",
        across="seconds",
        up="output tokens/s",
        series=[Series(name="", points=_rates(level.answers, level.began, level.seconds))],
    )
    yield Plot(
        title="The engine over time",
        across="seconds",
        up="requests",
        series=[
            Series(
                name=name,
                points=[
                    (look.at - level.began, value)
                    for look in level.during
                    if (value := look.get(metric)) is not None
                ],
            )
            for name, metric in (("running (batch)", RUNNING), ("waiting", WAITING))
        ],
    )


def _rates(answers: Sequence[Answer], began: float, seconds: float) -> Points:
    """Output tokens a second in equal parts of the time."""
    width = seconds / _PARTS
    counted = [0.0] * _PARTS
    for answer in answers:
        if answer.first is None or not answer.whole:
            continue
        at, each = answer.first, answer.output_tokens / answer.chunks
        for gap in (0.0, *answer.gaps):
            at += gap
            counted[min(_PARTS - 1, int((at - began) / width))] += each
    return [((place + 0.5) * width, tokens / width) for place, tokens in enumerate(counted)]


def _cumulated(values: Sequence[float], name: str) -> Series:
    ordered = sorted(values)
    steps = [(value, 100 * (rank + 1) / len(ordered)) for rank, value in enumerate(ordered)]
    return Series(name=name, points=thinned(steps))


def _firsts(one: Figures) -> list[float]:
    return [a.to_first for a in one.level.answers if a.whole and a.to_first is not None]


def _per_token(one: Figures) -> list[float]:
    return [a.per_token * 1e3 for a in one.level.answers if a.whole and a.per_token is not None]


def _answers(one: Figures) -> list[float]:
    return [answer.ended - answer.due for answer in one.level.answers if answer.whole]


def _percentiles(at: list[float], spreads: Sequence[Spread | None], unit: float) -> list[Series]:
    return [
        Series(name="P50", points=_line(at, [s.p50 * unit if s else None for s in spreads])),
        Series(name="P95", points=_line(at, [s.p95 * unit if s else None for s in spreads])),
    ]


def _line(across: Sequence[float], up: Sequence[float | None]) -> Points:
    return [(x, y) for x, y in zip(across, up, strict=True) if y is not None]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{cells}</tr>\n{lines}\n</table></div>'


def _head(report: Report) -> Iterator[str]:
    yield (
        f"<p>{escape(report.told)}; seed {report.seed}, {report.warmup} requests before did not "
        f"count. {moment(report.at)} UTC, tessera {escape(report.tessera)}.</p>"
    )
    if report.interrupted:
        yield '<p class="stopped">Interrupted: this is what was measured until then.</p>'


def _foot(report: Report) -> Iterator[str]:
    told = [*knee_lines(report), *client_lines(report), f"Percentiles are by {PERCENTILES}."]
    yield from (f"<p>{escape(line)}</p>" for line in told)
    if notes := list(all_notes(report)):
        yield "<h2>Notes</h2>\n<ul>"
        yield from (f"<li>{escape(note)}</li>" for note in notes)
        yield "</ul>"
