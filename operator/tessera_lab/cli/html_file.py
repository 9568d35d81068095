"""Reports as HTML files that need no script, no font and no other host."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from tessera.cli.plots import COLORS, DARK_COLORS, Plot, svg

# The mark of Tessera: a GPU as a mosaic.
MARK = (
    '<svg viewBox="0 0 32 32" aria-hidden="true">'
    '<rect x="1" y="1" width="13" height="30" rx="2" fill="#0f766e"/>'
    '<rect x="17" y="1" width="14" height="13" rx="2" fill="#d97706"/>'
    '<rect x="17" y="17" width="6" height="14" rx="2" fill="#6366f1"/>'
    '<rect x="25" y="17" width="6" height="14" rx="2" fill="#e11d48"/></svg>'
)
_STYLE = """
:root { color-scheme: light dark; --fore: #1c1917; --back: #fff; --soft: #e7e5e4; --dim: #57534e; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fore); background: var(--back);
  max-width: 1360px; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid var(--soft); }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; overflow-wrap: normal; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 1.5rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--fore); }
.grid { stroke: var(--soft); } .mark { stroke: var(--fore); stroke-dasharray: 4 3; }
.stopped { border-left: 4px solid #be123c; padding-left: 0.6rem; }
"""
_DARK = ":root { --fore: #e7e5e4; --back: #1c1917; --soft: #44403c; --dim: #a8a29e; }"


def html_file(title: str, body: Iterable[str], style: str = "") -> str:
    """Return the whole file; the body and the style are HTML and CSS, the title is text."""
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}",
            *_series_colors(COLORS),
            "@media (prefers-color-scheme: dark) {",
            _DARK,
            *_series_colors(DARK_COLORS),
            "}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        )
    )


def html_plots(plots: Iterable[Plot]) -> Iterator[str]:
    """Yield the plots that have points, each with its title."""
    yield '<div class="plots">'
    for plot in plots:
        if image := svg(plot):
            yield f"<figure><figcaption>{escape(plot.title)}</figcaption>\n{image}\n</figure>"
    yield "</div>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts, which scrolls where it is wider than the screen."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{cells}</tr>\n{lines}\n</table></div>'


def _series_colors(colors: Sequence[str]) -> Iterator[str]:
    for number, color in enumerate(colors):
        shapes = f"circle.c{number}, rect.c{number}"
        yield f"polyline.c{number} {{ stroke: {color}; }} {shapes} {{ fill: {color}; }}"
