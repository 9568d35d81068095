"""A fleet as a mosaic: every GPU a strip of tiles, one for each slice, in the terminal and as SVG.

A tile is as wide as its memory slices. What is left is stranded when no profile could be cut there.
"""

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.cli.errors import CommandError
from tessera.domain.mig.boards import WHOLE, Board
from tessera.domain.mig.fleet import Gpu
from tessera.domain.mig.layouts import additions

_CELL = 11
"""Characters of a memory slice."""
_WIDE, _HIGH, _GAP, _NAME = 90, 34, 8, 150
"""Of a memory slice, of a strip, between strips, of names; in SVG's units."""
_COLOURS = ("#4e79a7", "#59a14f", "#b07aa1", "#f28e2b", "#76b7b2", "#e15759", "#9c755f", "#edc948")
_IDLE, _FREE, _STRANDED = "#d9d9d9", "#ffffff", "#8c8c8c"


@dataclass(frozen=True, slots=True)
class Tile:
    """A slice or a hole; widths in memory slices."""

    start: int
    width: int
    profile: str | None
    service: str | None
    stranded: bool = False
    """A hole that no profile could fill."""


def tiles(board: Board, gpu: Gpu) -> tuple[Tile, ...]:
    """From the first memory slice to the last, holes included."""
    found = []
    for one in gpu.slices:
        cut = board.cut(one.profile)
        width = cut.memory_slices if cut else board.memory_slices
        found.append(Tile(one.start, width, one.profile, one.service))
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
            yield Tile(start, end - start, None, None, stranded=start not in fillable)
        start = max(end, start + 1)


def strips(board: Board, gpus: Sequence[Gpu]) -> Iterator[str]:
    """A line for each GPU; equal widths are equal shares of its memory."""
    widest = max((len(gpu.name) for gpu in gpus), default=0)
    for gpu in gpus:
        parts = (_text(tile) for tile in tiles(board, gpu))
        yield f"{gpu.name.ljust(widest)} |{'|'.join(parts)}|"


def _text(tile: Tile) -> str:
    room = tile.width * (_CELL + 1) - 1
    if tile.profile is None:
        return ("/" if tile.stranded else " ") * room
    short = tile.profile if tile.profile == WHOLE else tile.profile.split(".")[0]
    told = f"{short} {tile.service or '-'}"
    return (told if len(told) <= room else told[: room - 1] + "~").ljust(room)


def write_svg(file: str, board: Board, before: Sequence[Gpu], after: Sequence[Gpu]) -> None:
    """The layouts, or those before beside those after."""
    path = Path(file).expanduser()
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CommandError(f"--svg {file} cannot be written: give a file in a folder of yours")
    path.write_text(svg(board, before, after), encoding="utf-8")


def svg(board: Board, before: Sequence[Gpu], after: Sequence[Gpu]) -> str:
    """One picture; a service has the same colour everywhere, as far as there are colours."""
    names = sorted({one.service for gpu in (*before, *after) for one in gpu.slices if one.service})
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}
    columns = [("before", before), ("after", after)] if before else [("", after)]
    width = _NAME + board.memory_slices * _WIDE + 2 * _GAP
    height = (max(len(gpus) for _, gpus in columns) + 1) * (_HIGH + _GAP) + _GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(columns)}" '
        f'height="{height}" font-family="sans-serif" font-size="12">'
    ]
    for at, (title, gpus) in enumerate(columns):
        left = at * width + _GAP
        lines.append(f'<text x="{left}" y="{_HIGH // 2 + _GAP}">{board.name} {title}</text>')
        for number, gpu in enumerate(gpus, start=1):
            top = number * (_HIGH + _GAP)
            name = html.escape(gpu.name)
            lines.append(f'<text x="{left}" y="{top + _HIGH // 2 + 4}">{name}</text>')
            lines += [_drawn(tile, left + _NAME, top, colours) for tile in tiles(board, gpu)]
    return "\n".join((*lines, "</svg>", ""))


def _drawn(tile: Tile, left: int, top: int, colours: dict[str, str]) -> str:
    x, width = left + tile.start * _WIDE, tile.width * _WIDE
    fill = _STRANDED if tile.stranded else _FREE if tile.profile is None else _IDLE
    told = "stranded" if tile.stranded else "free"
    if tile.profile is not None:
        fill = colours.get(tile.service or "", _IDLE)
        told = html.escape(f"{tile.profile} {tile.service or 'idle'}")
    rect = f'<rect x="{x}" y="{top}" width="{width}" height="{_HIGH}" fill="{fill}" stroke="#333"/>'
    label = (
        f'<text x="{x + 5}" y="{top + _HIGH // 2 + 4}" textLength="{width - 10}" '
        * (len(told) * 7 > width)
        or f'<text x="{x + 5}" y="{top + _HIGH // 2 + 4}" '
    )
    return f"<g><title>{told}</title>{rect}{label}>{told}</text></g>"
