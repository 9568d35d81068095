"""Lines of a file of any size in bounded memory."""

import itertools
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

MAX_ROW_BYTES = 8 * 2**20
_CHUNK_BYTES = 2**20


class InputLine(NamedTuple):
    """One line of the input, without its end."""

    number: int
    """From 1 on, as editors show it."""
    offset: int
    content: bytes | None
    """None when the line is larger than a row may be."""


def read_lines(file: BinaryIO, observe: Callable[[bytes], object]) -> Iterator[InputLine]:
    """Every line from the file's position on; `passed` sees every byte, in order.

    A line that is too large is passed in pieces and never held.
    """
    offset = 0
    for number in itertools.count(1):
        piece = file.readline(MAX_ROW_BYTES + 1)
        if not piece:
            return
        observe(piece)
        complete = piece.endswith(b"\n") or len(piece) <= MAX_ROW_BYTES
        yield InputLine(number, offset, piece.rstrip(b"\r\n") if complete else None)
        offset += len(piece)
        while not complete and (piece := file.readline(_CHUNK_BYTES)):
            observe(piece)
            offset += len(piece)
            complete = piece.endswith(b"\n")
