"""Lines of a file of any size in bounded memory."""

import itertools
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

LARGEST_ROW = 8 * 2**20
_PIECE = 2**20


class Line(NamedTuple):
    """One line of the input, without its end."""

    number: int
    """From 1 on, as editors show it."""
    offset: int
    content: bytes | None
    """None when the line is larger than a row may be."""


def lines(file: BinaryIO, passed: Callable[[bytes], object]) -> Iterator[Line]:
    """Every line from the file's position on; `passed` sees every byte, in order.

    A line that is too large is passed in pieces and never held.
    """
    offset = 0
    for number in itertools.count(1):
        piece = file.readline(LARGEST_ROW + 1)
        if not piece:
            return
        passed(piece)
        whole = piece.endswith(b"\n") or len(piece) <= LARGEST_ROW
        yield Line(number, offset, piece.rstrip(b"\r\n") if whole else None)
        offset += len(piece)
        while not whole and (piece := file.readline(_PIECE)):
            passed(piece)
            offset += len(piece)
            whole = piece.endswith(b"\n")
