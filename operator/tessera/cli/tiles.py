"""GPUs as a mosaic: every GPU a strip of tiles, one for each slice, in the terminal and as SVG.

A tile is as wide as its memory slices. What is left is stranded when no profile could be cut there.
"""

import html
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TypeAlias

from tessera.cli.errors import CommandError
from tessera.domain.mig.boards import WHOLE, Board
from tessera.domain.mig.fleet import Gpu
from tessera.domain.mig.layouts import additions

_CELL, _LEAST = 11, 5
"""Characters of a memory slice: at most, at least."""
_WIDE, _HIGH, _GAP, _NAME, _NOTE = 90, 38, 8, 150, 130
"""Of a memory slice, of a strip, between strips, of names, of notes; in SVG's units."""
_COLOURS = ("#4e79a7", "#59a14f", "#b07aa1", "#f28e2b", "#76b7b2", "#e15759", "#9c755f", "#edc948")
_IDLE, _FREE, _STRANDED = "#d9d9d9", "#ffffff", "#8c8c8c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A slice or a hole; widths in memory slices."""

    start: int
    width: int
    profile: str | None = None
    service: str | None = None
    stranded: bool = False
    """A hole that no profile could fill."""
    leaves: bool = False
    """Who sits on it has to leave it."""
    placed: bool = True
    """It is known to start there."""
    load: float | None = None
    """Share of the time in which it computes."""
    price: Decimal | None = None
    """Of an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One GPU to draw."""

    name: str
    tiles: tuple[Tile, ...]
    stranded: Decimal | None = None
    """Price of an hour of what no slice covers."""


Rows: TypeAlias = Sequence[Strip | str]
"""GPUs, with headings between them."""


def tiles(board: Board, gpu: Gpu) -> tuple[Tile, ...]:
    """From the first memory slice to the last, holes included."""
    found = []
    for one in gpu.slices:
        cut = board.cut(one.profile)
        width = cut.memory_slices if cut else board.memory_slices
        found.append(Tile(start=one.start, width=width, profile=one.profile, service=one.service))
    return tuple(sorted([*found, *_holes(board, gpu, found)], key=_start))


def _start(tile: Tile) -> int:
    return tile.start


def _holes(board: Board, gpu: Gpu, taken: Sequence[Tile]) -> Iterator[Tile]:
    held = {at for tile in taken for at in range(tile.start, tile.start + tile.width)}
    profiles = [cut.profile for cut in board.cuts]
    fillable: set[int] = set()
    if WHOLE not in {one.profile for one in gpu.slices}:
        for spot in additions(board, gpu.layout, profiles):
            cut = board.cut(spot.profile)
            fillable |= set(range(spot.start, spot.start + (cut.memory_slices if cut else 0)))
    start = 0
    while start < board.memory_slices:
        end = start
        while (
            end < board.memory_slices
            and end not in held
            and (end in fillable) == (start in fillable)
        ):
            end += 1
        if end > start:
            yield Tile(start=start, width=end - start, stranded=start not in fillable)
        start = max(end, start + 1)


def strips(board: Board, gpus: Sequence[Gpu]) -> Iterator[str]:
    """A line for each GPU; equal widths are equal shares of its memory."""
    widest = max((len(gpu.name) for gpu in gpus), default=0)
    for gpu in gpus:
        parts = (_label(tile, _room(tile, _CELL)) for tile in tiles(board, gpu))
        yield f"{gpu.name.ljust(widest)} |{'|'.join(parts)}|"


def lines(rows: Rows, width: int) -> Iterator[str]:
    """Two lines for each GPU, what sits there above its figures, as wide as the terminal allows."""
    names = max((len(row.name) for row in rows if isinstance(row, Strip)), default=0)
    axis = max((_axis(row) for row in rows if isinstance(row, Strip)), default=1)
    noted = max((len(_note(row)) for row in rows if isinstance(row, Strip)), default=0)
    cell = max(_LEAST, min(_CELL, (width - names - noted - 2) // axis - 1))
    for row in rows:
        if isinstance(row, str):
            yield row
            continue
        labels = (_label(tile, _room(tile, cell)) for tile in row.tiles)
        figures = (_figures(tile, _room(tile, cell)) for tile in row.tiles)
        yield f"{row.name.rjust(names)} |{'|'.join(labels)}|"
        yield f"{'':{names}} |{'|'.join(figures)}|{_note(row)}"


def _note(strip: Strip) -> str:
    return f" / {strip.stranded:.2f}" if strip.stranded else ""


def _axis(strip: Strip) -> int:
    return sum(tile.width for tile in strip.tiles)


def _room(tile: Tile, cell: int) -> int:
    return tile.width * (cell + 1) - 1


def _label(tile: Tile, room: int) -> str:
    if tile.profile is None:
        return ("/" if tile.stranded else " ") * room
    short = tile.profile if tile.profile == WHOLE else tile.profile.split(".")[0]
    told = f"{short} {'*' * tile.leaves}{tile.service or '-'}"
    return (told if len(told) <= room else told[: room - 1] + "~").ljust(room)


def _figures(tile: Tile, room: int) -> str:
    """Start, load and price; where there is no room for all, the price alone."""
    if tile.profile is None:
        return ("/" if tile.stranded else " ") * room
    told = _told(tile)
    while len(" ".join(told)) > room and len(told) > 1:
        told = told[1:]
    return " ".join(told)[:room].ljust(room)


def _told(tile: Tile) -> list[str]:
    told = [f"@{tile.start}"] if tile.placed else []
    told += [f"{tile.load:.0%}"] if tile.load is not None else []
    return told + ([f"{tile.price:.2f}"] if tile.price is not None else [])


def write_svg(file: str, picture: str) -> None:
    """The picture as a file."""
    path = Path(file).expanduser()
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CommandError(f"--svg {file} cannot be written: give a file in a folder of yours")
    path.write_text(picture, encoding="utf-8")


def svg(board: Board, before: Sequence[Gpu], after: Sequence[Gpu]) -> str:
    """The layouts, or those before beside those after."""
    columns = [("before", before), ("after", after)] if before else [("", after)]
    return picture(
        [
            (
                f"{board.name} {title}".strip(),
                [Strip(name=gpu.name, tiles=tiles(board, gpu)) for gpu in gpus],
            )
            for title, gpus in columns
        ]
    )


def picture(columns: Sequence[tuple[str, Rows]]) -> str:
    """Columns with their titles; a service has the same colour everywhere, as far as there are
    colours."""
    shown = [row for _, rows in columns for row in rows if isinstance(row, Strip)]
    colours = _colours(shown)
    axis = max(map(_axis, shown), default=1)
    noted = _NOTE if any(strip.stranded for strip in shown) else 0
    width = _NAME + axis * _WIDE + noted + 2 * _GAP
    height = (max((len(rows) for _, rows in columns), default=0) + 1) * (_HIGH + _GAP) + _GAP
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(columns)}" '
        f'height="{height}" font-family="sans-serif" font-size="12">'
    ]
    for at, (title, rows) in enumerate(columns):
        left = at * width + _GAP
        drawn.append(_words(left, _GAP, title))
        for number, row in enumerate(rows, start=1):
            top = number * (_HIGH + _GAP)
            drawn += (
                _row(row, left, top, colours)
                if isinstance(row, Strip)
                else [_words(left, top, row)]
            )
    return "\n".join((*drawn, "</svg>", ""))


def _colours(shown: Iterable[Strip]) -> dict[str, str]:
    names = sorted({tile.service for strip in shown for tile in strip.tiles if tile.service})
    return {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}


def _row(strip: Strip, left: int, top: int, colours: dict[str, str]) -> Iterator[str]:
    yield _words(left, top, strip.name)
    for tile in strip.tiles:
        yield _drawn(tile, left + _NAME, top, colours)
    if strip.stranded:
        side = left + _NAME + _axis(strip) * _WIDE + _GAP
        yield _words(side, top, f"{strip.stranded:.2f} stranded")


def _words(left: int, top: int, told: str) -> str:
    return f'<text x="{left}" y="{top + _HIGH // 2 + 4}">{html.escape(told)}</text>'


def _drawn(tile: Tile, left: int, top: int, colours: dict[str, str]) -> str:
    x, width = left + tile.start * _WIDE, tile.width * _WIDE
    fill = _STRANDED if tile.stranded else _FREE if tile.profile is None else _IDLE
    told, figures = "stranded" if tile.stranded else "free", ""
    if tile.profile is not None:
        fill = colours.get(tile.service or "", _IDLE)
        told = html.escape(f"{tile.profile} {tile.service or 'idle'}{' leaves' * tile.leaves}")
        figures = " ".join(_told(tile))
    rect = f'<rect x="{x}" y="{top}" width="{width}" height="{_HIGH}" fill="{fill}" stroke="#333"/>'
    title = f"<title>{told}{f' {figures}' if figures else ''}</title>"
    words = _fitted(told, x, top + (16 if figures else _HIGH // 2 + 4), width)
    return f"<g>{title}{rect}{words}{_fitted(figures, x, top + 32, width) if figures else ''}</g>"


def _fitted(told: str, x: int, y: int, width: int) -> str:
    squeezed = f' textLength="{width - 10}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{x + 5}" y="{y}"{squeezed * (len(told) * 7 > width)}>{told}</text>'
