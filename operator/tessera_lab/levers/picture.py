"""Ladders as one SVG picture: what each lever brings, on a scale of factors."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from tessera_lab.levers.figure import LadderFigure, RungFigure

_WIDTH, _ROW, _LABEL, _VALUE, _HEAD, _FOOT = 600, 18, 190, 130, 46, 26
_STYLE = (
    ".ground{fill:#fff}text{font:12px sans-serif;fill:#374151}.title{font-weight:bold}"
    ".small{font-size:11px}"
    ".off{fill:#9ca3af}.grid{stroke:#e5e7eb}.have{fill:#0f766e}.lack{fill:#fde68a;stroke:#b45309}"
    ".sum{fill:#4338ca}.product{fill:none;stroke:#be123c;stroke-dasharray:4 2}"
    "@media (prefers-color-scheme:dark){.ground{fill:#1c1917}text{fill:#e7e5e4}.off{fill:#a8a29e}"
    ".grid{stroke:#44403c}.have{fill:#14b8a6}.sum{fill:#818cf8}.product{stroke:#fb7185}}"
)
_SAVINGS_WIDTH, _SAVINGS_LABEL, _SAVINGS_HEIGHT = 420, 70, 44
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def draw_ladders(figures: Sequence[LadderFigure], columns: int = 1) -> str:
    """Return the picture, with as many ladders side by side as there are columns."""
    panels = [_panel(figure) for figure in figures]
    height = max(_HEAD + _FOOT + _ROW * (len(figure.rungs) + 4) for figure in figures)
    rows = math.ceil(len(panels) / columns)
    width, total = _WIDTH * columns, height * rows + _ROW * 2
    parts = [*_begin(width, total, "What each lever brings")]
    for number, panel in enumerate(panels):
        x, y = _WIDTH * (number % columns), height * (number // columns)
        parts += [f'<g transform="translate({x} {y})">', *panel, "</g>"]
    return "\n".join((*parts, *_legend(total - _ROW), "</svg>")) + "\n"


def draw_savings(rows: Sequence[tuple[str, float, float]]) -> str:
    """Return bars of how many times less each load costs than with plain vLLM, and beside those
    than with its prefix cache, as a picture that a phone can show."""
    most = max(max(factors) for _, *factors in rows)
    scale = (_SAVINGS_WIDTH - _SAVINGS_LABEL - 50) / most
    height = _HEAD + _SAVINGS_HEIGHT * len(rows)
    parts = [*_begin(_SAVINGS_WIDTH, height, "Times less that output tokens cost")]
    for x, style, label in ((8, "have", "than plain vLLM"), (160, "sum", "with its prefix cache")):
        parts += [_bar(style, x, x + 12, 8), f'<text x="{x + 18}" y="21">{label}</text>']
    for number, (name, *factors) in enumerate(rows):
        y = _HEAD + _SAVINGS_HEIGHT * number
        parts.append(f'<text class="title" x="8" y="{y + 22}">{escape(name)}</text>')
        for row, (style, factor) in enumerate(zip(("have", "sum"), factors, strict=True)):
            end = _SAVINGS_LABEL + factor * scale
            parts += [
                _bar(style, _SAVINGS_LABEL, end, y + _ROW * row),
                f'<text x="{end + 6:.1f}" y="{y + _ROW * row + 13}">{factor:.1f}</text>',
            ]
    return "\n".join((*parts, "</svg>")) + "\n"


def _begin(width: int, height: int, label: str) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{label}">'
    )
    yield f"<style>{_STYLE}</style>"
    yield f'<rect class="ground" width="{width}" height="{height}"/>'


def _panel(figure: LadderFigure) -> Iterator[str]:
    most = max(figure.reached, figure.product, figure.reached_today, 2.0)
    top = next((tick for tick in _TICKS if tick >= most), most)

    def x(factor: float) -> float:
        return _LABEL + (_WIDTH - _LABEL - _VALUE) * math.log(max(factor, 1.0)) / math.log(top)

    bottom = _HEAD + _ROW * (len(figure.rungs) + 4)
    first, last = figure.baseline, figure.rungs[-1].after
    yield f'<text class="title" x="8" y="18">{escape(figure.name)}</text>'
    yield (
        f'<text class="small" x="8" y="34">{first.per_million_tokens:.2f} to '
        f"{last.per_million_tokens:.2f} USD per million output tokens, times less than plain vLLM"
        "</text>"
    )
    for tick in (tick for tick in _TICKS if tick <= top):
        at = f"{x(tick):.1f}"
        yield f'<line class="grid" x1="{at}" y1="{_HEAD}" x2="{at}" y2="{bottom}"/>'
        yield f'<text class="small" x="{at}" y="{bottom + 13}" text-anchor="middle">{tick}</text>'
    reached = 1.0
    for number, rung in enumerate(figure.rungs):
        y = _HEAD + _ROW * number
        after = figure.baseline.per_month / rung.after.per_month
        yield from _rung(rung, y, x(reached), x(after))
        reached = after
    sums = (
        ("Tessera today", figure.reached_today, "have"),
        ("All together", figure.reached, "sum"),
        ("Product of the single factors", figure.product, "product"),
    )
    for number, (label, factor, style) in enumerate(sums, len(figure.rungs) + 1):
        y = _HEAD + _ROW * number
        yield f'<text class="small" x="8" y="{y + 12}">{label}</text>'
        yield _bar(style, x(1.0), x(factor), y)
        yield f'<text class="small" x="{x(factor) + 5:.1f}" y="{y + 12}">{factor:.1f} times</text>'


def _rung(rung: RungFigure, y: int, begin: float, end: float) -> Iterator[str]:
    off = "" if rung.used else " off"
    yield f'<text class="small{off}" x="8" y="{y + 12}">{escape(rung.title)}</text>'
    if rung.used:
        left, right = min(begin, end), max(begin, end)
        yield _bar("have" if rung.offered else "lack", left, max(right, left + 1), y)
        text = f"{rung.here:.2f} (alone {rung.alone:.2f})"
        yield f'<text class="small" x="{right + 5:.1f}" y="{y + 12}">{text}</text>'
    else:
        text = "not computed" if rung.here is None else f"left out: {rung.here:.2f}"
        text += "" if rung.offered else ", not offered"
        yield f'<text class="small off" x="{begin + 5:.1f}" y="{y + 12}">{text}</text>'


def _bar(style: str, begin: float, end: float, y: int) -> str:
    return (
        f'<rect class="{style}" x="{begin:.1f}" y="{y + 3}" width="{end - begin:.1f}" '
        f'height="{_ROW - 6}"/>'
    )


def _legend(y: int) -> Iterator[str]:
    entries = (("have", "offered today"), ("lack", "not offered today"), ("sum", "all together"))
    for number, (style, label) in enumerate(entries):
        x = 8 + 150 * number
        yield f'<rect class="{style}" x="{x}" y="{y - 10}" width="12" height="12"/>'
        yield f'<text class="small" x="{x + 18}" y="{y}">{label}</text>'
    yield f'<text class="small" x="{x + 110}" y="{y}">The scale is logarithmic.</text>'
