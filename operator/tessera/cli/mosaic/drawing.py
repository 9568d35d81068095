"""GPUs as a mosaic: every GPU a strip of tiles, one for each slice, in the terminal and as SVG.

A tile is as wide as its memory slices. Free memory slices where no profile fits are stranded.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from typing import TypeAlias

from tessera.cli.files import writable_file
from tessera.domain.hardware.gpu_layouts import Layout, fitting_placements
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.mig.fleet import FleetGpu

# Characters of a memory slice.
_MAX_CELL, _MIN_CELL = 11, 5
# Sizes in SVG's units.
_SLICE_WIDTH, _STRIP_HEIGHT, _GAP, _MAX_NAME_WIDTH, _NOTE_WIDTH = 90, 38, 8, 150, 130
# The line of a text in the middle of a strip.
_MIDDLE = _STRIP_HEIGHT // 2 + 4
_CHARACTER_WIDTH = 7
_COLORS = ("#4e79a7", "#59a14f", "#b07aa1", "#f28e2b", "#76b7b2", "#e15759", "#9c755f", "#edc948")
# Degrees of the stripes on further services of a color, each with wider gaps than those before.
_STRIPE_ANGLES = (45, 135, 0, 90)
_MIN_STRIPE_GAP = 7
_IDLE, _FREE, _STRANDED = "#d9d9d9", "#ffffff", "#8c8c8c"
# On a dark ground slices keep their colors and dark texts, names and free slices do not.
_STYLE = (
    ".ground{fill:#fff}"
    "@media (prefers-color-scheme:dark){.ground,.free rect{fill:#1c1917}.free rect{stroke:#8c8c8c}"
    ".name,.free text{fill:#e7e5e4}}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicTile:
    """A slice or free memory slices; starts and widths in memory slices."""

    start: int
    width: int
    profile: str | None = None
    service: str | None = None
    stranded: bool = False
    """Whether no profile fits on these free memory slices."""
    must_leave: bool = False
    """Whether the plan evicts the pod on the slice."""
    start_known: bool = True
    """Whether the start is observed rather than assumed."""
    load: float | None = None
    """GPU activity as a share of time; None if it is unknown."""
    hourly_price: Decimal | None = None
    """Price per hour; None without a price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One GPU to draw."""

    name: str
    tiles: tuple[MosaicTile, ...]
    stranded_price: Decimal | None = None
    """Price per hour of the memory slices that no slice covers; None without a price."""


# GPUs with headings between them.
Rows: TypeAlias = Sequence[Strip | str]


def fleet_tiles(gpu_model: GpuModel, gpu: FleetGpu) -> tuple[MosaicTile, ...]:
    """Return the tiles of a GPU by start, free memory slices included."""
    tiles = [
        MosaicTile(
            start=mig_slice.start,
            width=slice_width(gpu_model, mig_slice.profile),
            profile=mig_slice.profile,
            service=mig_slice.service,
        )
        for mig_slice in gpu.slices
    ]
    return with_free_tiles(gpu_model, gpu.layout, tiles)


def slice_width(gpu_model: GpuModel, profile: str) -> int:
    """Return the memory slices of a profile, or of the whole GPU."""
    return gpu_model.memory_slices_of(profile) or gpu_model.memory_slices


def with_free_tiles(
    gpu_model: GpuModel, layout: Layout, slice_tiles: Sequence[MosaicTile]
) -> tuple[MosaicTile, ...]:
    """Return the tiles of a GPU by start, with those of its free memory slices."""
    covered = {
        index for tile in slice_tiles for index in range(tile.start, tile.start + tile.width)
    }
    fillable: set[int] = set()
    if all(placement.profile != WHOLE_GPU for placement in layout):
        profiles = [gi_profile.name for gi_profile in gpu_model.profiles]
        for start, profile in fitting_placements(gpu_model, layout, profiles):
            fillable |= set(range(start, start + slice_width(gpu_model, profile)))
    tiles = list(slice_tiles)
    # Adjacent free memory slices of the same kind, fillable or stranded, share a tile.
    for (is_covered, is_fillable), indexes in groupby(
        range(gpu_model.memory_slices), key=lambda index: (index in covered, index in fillable)
    ):
        start, *others = indexes
        if not is_covered:
            tiles.append(MosaicTile(start=start, width=1 + len(others), stranded=not is_fillable))
    return tuple(sorted(tiles, key=attrgetter("start")))


def strip_lines(gpu_model: GpuModel, gpus: Sequence[FleetGpu]) -> Iterator[str]:
    """Yield a line for each GPU; equal widths are equal shares of its memory."""
    widest = max((len(gpu.name) for gpu in gpus), default=0)
    for gpu in gpus:
        labels = (_cell(tile, _MAX_CELL)[0] for tile in fleet_tiles(gpu_model, gpu))
        yield f"{gpu.name.ljust(widest)} |{'|'.join(labels)}|"


def mosaic_lines(rows: Rows, width: int) -> Iterator[str]:
    """Yield two lines for each GPU, services above figures, as wide as the terminal allows."""
    strips = [row for row in rows if isinstance(row, Strip)]
    name_width = max((len(strip.name) for strip in strips), default=0)
    axis = max(map(_memory_slices, strips), default=1)
    note_width = max((len(_note(strip)) for strip in strips), default=0)
    cell_width = max(_MIN_CELL, min(_MAX_CELL, (width - name_width - note_width - 2) // axis - 1))
    for row in rows:
        if isinstance(row, str):
            yield row
            continue
        labels, figures = zip(*(_cell(tile, cell_width) for tile in row.tiles), strict=True)
        yield f"{row.name.rjust(name_width)} |{'|'.join(labels)}|"
        yield f"{'':{name_width}} |{'|'.join(figures)}|{_note(row)}"


def _note(strip: Strip) -> str:
    return f" / {strip.stranded_price:.2f}" if strip.stranded_price else ""


def _memory_slices(strip: Strip) -> int:
    return sum(tile.width for tile in strip.tiles)


def _cell(tile: MosaicTile, cell_width: int) -> tuple[str, str]:
    """Return label and figures of a tile, each as wide as its memory slices."""
    width = tile.width * (cell_width + 1) - 1
    if tile.profile is None:
        blank = ("/" if tile.stranded else " ") * width
        return blank, blank
    label = f"{_short_profile(tile.profile)} {'*' * tile.must_leave}{tile.service or '-'}"
    label = label if len(label) <= width else label[: width - 1] + "~"
    return label.ljust(width), _figures(tile, width)[:width].ljust(width)


def _short_profile(profile: str) -> str:
    return profile.partition(".")[0]


def _figures(tile: MosaicTile, width: int | None = None) -> str:
    """Return start, activity and price, without the first of them where the tile is too narrow."""
    if tile.profile is None:
        return ""
    figures = [f"@{tile.start}"] if tile.start_known else []
    figures += [f"{tile.load:.0%}"] if tile.load is not None else []
    figures += [f"{tile.hourly_price:.2f}"] if tile.hourly_price is not None else []
    while width is not None and len(" ".join(figures)) > width and len(figures) > 1:
        figures = figures[1:]
    return " ".join(figures)


def write_svg(file: str, document: str) -> None:
    """Write the picture to a file; CommandError if its folder is not writable."""
    writable_file("--svg", file).write_text(document, encoding="utf-8")


def layouts_svg(gpu_model: GpuModel, before: Sequence[FleetGpu], after: Sequence[FleetGpu]) -> str:
    """Return the layouts as SVG, with the current ones beside them if there are any."""
    columns = [("before", before), ("after", after)] if before else [("", after)]
    return svg_document(
        [
            (
                f"{gpu_model.name} {title}".strip(),
                [Strip(name=gpu.name, tiles=fleet_tiles(gpu_model, gpu)) for gpu in gpus],
            )
            for title, gpus in columns
        ]
    )


def svg_document(columns: Sequence[tuple[str, Rows]]) -> str:
    """Return columns of strips as SVG, each with its title.

    A service has one fill everywhere, and no other service has it.
    """
    strips = [row for _, rows in columns for row in rows if isinstance(row, Strip)]
    names = sorted({tile.service for strip in strips for tile in strip.tiles if tile.service})
    fills = {name: _fill(number) for number, name in enumerate(names)}
    axis = max(map(_memory_slices, strips), default=1)
    note_width = _NOTE_WIDTH if any(strip.stranded_price for strip in strips) else 0
    longest = max((len(strip.name) for strip in strips), default=0)
    name_width = min(longest * _CHARACTER_WIDTH + _GAP, _MAX_NAME_WIDTH)
    width = name_width + axis * _SLICE_WIDTH + note_width + 2 * _GAP
    # Rows begin below the titles, if there are any.
    first = int(any(title for title, _ in columns))
    row_count = first + max((len(rows) for _, rows in columns), default=0)
    height = row_count * (_STRIP_HEIGHT + _GAP) + _GAP
    elements = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * len(columns)} {height}" '
        f'width="{width * len(columns)}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<style>{_STYLE}</style>',
        f'<rect class="ground" width="{width * len(columns)}" height="{height}"/>',
        *(_stripes(number) for number in range(len(_COLORS), len(names))),
    ]
    for index, (title, rows) in enumerate(columns):
        left = index * width + _GAP
        text_width = width - 2 * _GAP
        if title:
            elements.append(_text_element(left, _GAP + _MIDDLE, title, text_width, "name"))
        for number, row in enumerate(rows, first):
            top = number * (_STRIP_HEIGHT + _GAP) + _GAP * (1 - first)
            elements += (
                _strip_elements(row, left, top, name_width, fills)
                if isinstance(row, Strip)
                else [_text_element(left, top + _MIDDLE, row, text_width, "name")]
            )
    return "\n".join((*elements, "</svg>", ""))


def _fill(number: int) -> str:
    """Return the fill of a service: a color, or one with stripes once the colors are used up."""
    return _COLORS[number] if number < len(_COLORS) else f"url(#{_stripes_name(number)})"


def _stripes_name(number: int) -> str:
    return f"stripes-{number}"


def _stripes(number: int) -> str:
    """Return the pattern of a service; no two numbers have the same color, angle and gap."""
    round_, color = divmod(number, len(_COLORS))
    wider, angle = divmod(round_ - 1, len(_STRIPE_ANGLES))
    gap = _MIN_STRIPE_GAP * (wider + 1)
    return (
        f'<pattern id="{_stripes_name(number)}" width="{gap}" height="{gap}" '
        f'patternUnits="userSpaceOnUse" patternTransform="rotate({_STRIPE_ANGLES[angle]})">'
        f'<rect width="{gap}" height="{gap}" fill="{_COLORS[color]}"/>'
        f'<rect width="2" height="{gap}" fill="#ffffff" fill-opacity="0.6"/></pattern>'
    )


def _strip_elements(
    strip: Strip, left: int, top: int, name_width: int, fills: Mapping[str, str]
) -> Iterator[str]:
    yield _text_element(left, top + _MIDDLE, strip.name, name_width, "name")
    for tile in strip.tiles:
        yield _tile_element(tile, left + name_width, top, fills)
    if strip.stranded_price:
        side = left + name_width + _memory_slices(strip) * _SLICE_WIDTH + _GAP
        text = f"{strip.stranded_price:.2f} stranded"
        yield _text_element(side, top + _MIDDLE, text, _NOTE_WIDTH, "name")


def _text_element(x: int, y: int, text: str, width: int, style: str = "") -> str:
    """Return a text; one too long for its width is cut and has the whole as its title."""
    class_ = f' class="{style}"' if style else ""
    shown, title = text, ""
    if (fitting := width // _CHARACTER_WIDTH) < len(text):
        shown, title = f"{text[: fitting - 1]}…", f"<title>{html.escape(text)}</title>"
    return f'<text{class_} x="{x}" y="{y}">{title}{html.escape(shown)}</text>'


def _tile_element(tile: MosaicTile, left: int, top: int, fills: Mapping[str, str]) -> str:
    x, width = left + tile.start * _SLICE_WIDTH, tile.width * _SLICE_WIDTH
    text_width = width - _GAP
    if tile.profile is None:
        fill, title = (_STRANDED, "stranded") if tile.stranded else (_FREE, "free")
        label = title
    else:
        fill = fills.get(tile.service or "", _IDLE)
        name = f"{tile.service or 'idle'}{' displaced' * tile.must_leave}"
        title, label = f"{tile.profile} {name}", f"{_short_profile(tile.profile)} {name}"
    figures = _figures(tile, text_width // _CHARACTER_WIDTH)
    title = html.escape(f"{title} {_figures(tile)}".strip())
    rect = (
        f'<rect x="{x}" y="{top}" width="{width}" height="{_STRIP_HEIGHT}" '
        f'fill="{fill}" stroke="#333"/>'
    )
    texts = _text_element(x + 5, top + (16 if figures else _MIDDLE), label, text_width)
    if figures:
        texts += _text_element(x + 5, top + 32, figures, text_width)
    style = ' class="free"' if fill == _FREE else ""
    return f"<g{style}><title>{title}</title>{rect}{texts}</g>"
