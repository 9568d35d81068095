"""Plots as SVG, inline or as a file: axes, lines, dots and a legend."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 16, 44
# Points of a line; more cannot be distinguished at this width.
_MAX_POINTS = 600
COLORS = ("#0f766e", "#b45309", "#4338ca", "#be123c", "#4d7c0f", "#0369a1", "#7e22ce", "#57534e")

_FILE_STYLE = (
    "text{font:12px sans-serif;fill:#374151}.title{font-weight:bold}"
    ".grid{stroke:#e5e7eb}.mark{stroke:#9ca3af}"
)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotSeries:
    """One line, or dots."""

    name: str
    points: Points
    dots: bool = False
    color: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot whose axes begin at zero, so that no difference looks larger than it is."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[PlotSeries]
    mark: tuple[float, str] | None = None
    """A position on the x axis and the label of its vertical line."""
    legend_below: bool = False
    """Whether the legend is at the bottom right, where rising lines leave space."""
    labels: Sequence[tuple[float, float, str]] = field(default=())


def svg(plot: Plot) -> str:
    """Return the plot, or nothing when it has no points."""
    points = [point for series in plot.series for point in series.points]
    if not points:
        return ""
    frame = _Frame(_axis_maximum(x for x, _ in points), _axis_maximum(y for _, y in points))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">',
        *_axes(frame, plot),
        *(
            part
            for index, series in enumerate(plot.series)
            for part in _draw_series(frame, series, index)
        ),
        *_draw_marks(frame, plot),
        *_legend(plot),
        "</svg>",
    ]
    return "\n".join(parts)


def svg_file(plots: Sequence[Plot]) -> str:
    """Return the plots below one another, with their titles, as a file of their own."""
    row = HEIGHT + 28
    height = row * len(plots)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}">',
        f"<style>{_FILE_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, plot in enumerate(plots):
        parts += [
            f'<text class="title" x="8" y="{row * number + 20}">{escape(plot.title)}</text>',
            f'<g transform="translate(0 {row * number + 24})">',
            svg(plot).replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', 1),
            "</g>",
        ]
    return "\n".join((*parts, "</svg>")) + "\n"


def ticks(top: float, about: int = 5) -> list[float]:
    """Return ticks from zero in steps of 1, 2 or 5 times a power of ten, the last at or above
    `top`."""
    rough = top / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= rough * (1 - 1e-9))
    count = math.ceil(top / step - 1e-9)
    return [step * number for number in range(count + 1)]


def thin_out(points: Points, max_points: int = _MAX_POINTS) -> Points:
    """Return evenly fewer points, with the first and the last."""
    if len(points) <= max_points:
        return points
    step = (len(points) - 1) / (max_points - 1)
    return [points[round(step * number)] for number in range(max_points)]


class _Frame:
    """Maps values to pixels."""

    def __init__(self, x_maximum: float, y_maximum: float) -> None:
        self.x_ticks, self.y_ticks = ticks(x_maximum), ticks(y_maximum)

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self.x_ticks[-1]

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / self.y_ticks[-1]


def _axis_maximum(values: Iterator[float]) -> float:
    highest = max(values)
    return highest if highest > 0 and math.isfinite(highest) else 1.0


def _axes(frame: _Frame, plot: Plot) -> Iterator[str]:
    left, right, x_axis = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for value in frame.y_ticks:
        y = frame.y(value)
        yield f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    for value in frame.x_ticks:
        x = frame.x(value)
        yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{x_axis}"/>'
        yield f'<text x="{x:.1f}" y="{x_axis + 16}" text-anchor="middle">{value:.6g}</text>'
    middle = (left + right) / 2
    bottom = HEIGHT - 8
    yield f'<text x="{middle:.0f}" y="{bottom}" text-anchor="middle">{escape(plot.x_label)}</text>'
    yield (
        f'<text transform="translate(14 {(_TOP + x_axis) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(plot.y_label)}</text>'
    )


def _draw_series(frame: _Frame, series: PlotSeries, index: int) -> Iterator[str]:
    color = _color(series, index)
    pixels = [(frame.x(x), frame.y(y)) for x, y in thin_out(series.points)]
    if not series.dots:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        yield f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>'
    if series.dots or len(pixels) <= 20:
        yield from (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}" fill-opacity="0.7"/>'
            for x, y in pixels
        )


def _draw_marks(frame: _Frame, plot: Plot) -> Iterator[str]:
    if plot.mark is not None:
        x, x_axis = frame.x(plot.mark[0]), HEIGHT - _BOTTOM
        yield f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{x_axis}"/>'
        yield f'<text x="{x + 5:.1f}" y="{x_axis - 6}">{escape(plot.mark[1])}</text>'
    for x, y, label in plot.labels:
        place = f'x="{frame.x(x) - 6:.1f}" y="{frame.y(y) - 6:.1f}"'
        yield f'<text {place} text-anchor="end">{escape(label)}</text>'


def _legend(plot: Plot) -> Iterator[str]:
    named = [(index, series) for index, series in enumerate(plot.series) if series.name]
    x, top = _LEFT + 10, _TOP + 12
    if plot.legend_below:
        x, top = WIDTH - _RIGHT - 110, HEIGHT - _BOTTOM - 4 - 16 * len(named)
    for row, (index, series) in enumerate(named):
        y, color = top + 16 * row, _color(series, index)
        yield f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{color}"/>'
        yield f'<text x="{x + 16}" y="{y + 1}">{escape(series.name)}</text>'


def _color(series: PlotSeries, index: int) -> str:
    return COLORS[(index if series.color is None else series.color) % len(COLORS)]
