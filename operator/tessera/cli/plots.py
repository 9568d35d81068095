"""Plots as SVG, inline or as a file: axes, lines, dots and a legend."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 16, 44
# Points of a line; more cannot be distinguished at this width.
_MAX_POINTS = 600
# Points of a line that are drawn as circles too.
_MAX_CIRCLES = 20
COLORS = ("#0f766e", "#b45309", "#4338ca", "#be123c", "#4d7c0f", "#0369a1", "#7e22ce", "#57534e")

# The same on a dark ground.
DARK_COLORS = (
    "#2dd4bf", "#fbbf24", "#a5b4fc", "#fb7185", "#a3e635", "#38bdf8", "#d8b4fe", "#d6d3d1"
)  # fmt: skip
# Half of a letter of a label, at most, in pixels.
_HALF = 3.5

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
    """Number of the color, by default that of the line; from the second round on it is dashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot whose axes begin at zero, so that no difference looks larger than it is."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[PlotSeries]
    marks: Sequence[tuple[float, str]] = ()
    """Positions on the x axis, in order, and the label of the vertical line of each."""
    legend_below: bool = False
    """Whether the legend is at the bottom right, where rising lines leave space."""
    labels: Sequence[tuple[float, float, str]] = ()
    width: int = WIDTH
    x_maximum: float = 0
    """Where the x axis may not end before, so that plots of one time can be compared."""
    gap: float = math.inf
    """The distance on the x axis above which no line joins two points."""


def svg(plot: Plot) -> str:
    """Return the plot, or nothing when it has no points."""
    points = [point for series in plot.series for point in series.points]
    if not points:
        return ""
    x_maximum = max(_axis_maximum(x for x, _ in points), plot.x_maximum)
    frame = _Frame(plot.width, x_maximum, _axis_maximum(y for _, y in points))
    parts = [
        f'<svg viewBox="0 0 {plot.width} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">',
        *_axes(frame, plot),
        *(
            part
            for index, series in enumerate(plot.series)
            for part in _draw_series(frame, series, index, plot.gap)
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

    def __init__(self, width: int, x_maximum: float, y_maximum: float) -> None:
        self.right = width - _RIGHT
        self.x_ticks, self.y_ticks = ticks(x_maximum), ticks(y_maximum)

    def x(self, value: float) -> float:
        return _LEFT + (self.right - _LEFT) * value / self.x_ticks[-1]

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / self.y_ticks[-1]


def _axis_maximum(values: Iterator[float]) -> float:
    highest = max(values)
    return highest if highest > 0 and math.isfinite(highest) else 1.0


def _axes(frame: _Frame, plot: Plot) -> Iterator[str]:
    left, right, x_axis = _LEFT, frame.right, HEIGHT - _BOTTOM
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


def _draw_series(frame: _Frame, series: PlotSeries, index: int, gap: float) -> Iterator[str]:
    name, color = _class_and_color(series, index)
    dashes = ' stroke-dasharray="7 4"' if _number(series, index) >= len(COLORS) else ""
    for points in [series.points] if series.dots else _joined(series.points, gap):
        pixels = [(frame.x(x), frame.y(y)) for x, y in thin_out(points)]
        if not series.dots:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
            yield (
                f'<polyline class="{name}" fill="none" stroke="{color}" stroke-width="2"{dashes} '
                f'points="{path}"/>'
            )
        if series.dots or len(series.points) <= _MAX_CIRCLES or len(points) == 1:
            yield from (
                f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}" '
                'fill-opacity="0.7"/>'
                for x, y in pixels
            )


def _joined(points: Points, gap: float) -> Iterator[Points]:
    """Yield the runs of points between which no gap is wider."""
    begin = 0
    for index in range(1, len(points)):
        if points[index][0] - points[index - 1][0] > gap:
            yield points[begin:index]
            begin = index
    yield points[begin:]


def _draw_marks(frame: _Frame, plot: Plot) -> Iterator[str]:
    labels: list[tuple[float, str]] = []
    for position, label in plot.marks:
        x = frame.x(position)
        yield f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{HEIGHT - _BOTTOM}"/>'
        middle, text = x, label
        # Labels that would lie over one another become the first and the last of them.
        while labels and middle - labels[-1][0] < (len(labels[-1][1]) + len(text) + 1) * _HALF:
            before, first = labels.pop()
            middle, text = (before + x) / 2, f"{first.partition('-')[0]}-{label}"
        labels.append((middle, text))
    for middle, text in labels:
        half = len(text) * _HALF
        shown = min(max(middle, half), plot.width - half)
        yield f'<text x="{shown:.1f}" y="{_TOP - 4}" text-anchor="middle">{escape(text)}</text>'
    for x, y, label in plot.labels:
        place = f'x="{frame.x(x) - 6:.1f}" y="{frame.y(y) - 6:.1f}"'
        yield f'<text {place} text-anchor="end">{escape(label)}</text>'


def _legend(plot: Plot) -> Iterator[str]:
    named = [(index, series) for index, series in enumerate(plot.series) if series.name]
    x, top = _LEFT + 10, _TOP + 12
    if plot.legend_below:
        x, top = plot.width - _RIGHT - 110, HEIGHT - _BOTTOM - 4 - 16 * len(named)
    for row, (index, series) in enumerate(named):
        y, (name, color) = top + 16 * row, _class_and_color(series, index)
        yield f'<rect class="{name}" x="{x}" y="{y - 8}" width="10" height="10" fill="{color}"/>'
        yield f'<text x="{x + 16}" y="{y + 1}">{escape(series.name)}</text>'


def _class_and_color(series: PlotSeries, index: int) -> tuple[str, str]:
    """Return the class, by which a page can give another color, and the color."""
    place = _number(series, index) % len(COLORS)
    return f"c{place}", COLORS[place]


def _number(series: PlotSeries, index: int) -> int:
    return index if series.color is None else series.color
