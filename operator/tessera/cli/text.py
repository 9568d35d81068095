"""Tables and amounts for people."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

# What a terminal obeys instead of showing it, and what cannot be written in UTF-8.
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """The text with control characters written out, whoever it comes from."""
    return _CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with aligned columns, the last one as long as it is."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def indent_lines(lines: Iterator[str], prefix: str) -> Iterator[str]:
    """Lines with something before each."""
    return (f"{prefix}{line}".rstrip() for line in lines)


def format_time(at: datetime) -> str:
    """To the second, in UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


def format_age(span: timedelta) -> str:
    """`40s`, `12m`, `5h`, `3d`: as kubectl writes ages."""
    seconds = max(0, int(span.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
