"""Tables, times and ages for a terminal."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

# Characters that a terminal executes instead of showing, and surrogates, which UTF-8 lacks.
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """Return the text with its control characters written out."""
    return _CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines with aligned columns, the last one unpadded."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def indent_lines(lines: Iterator[str], prefix: str) -> Iterator[str]:
    """Return the lines with a prefix before each."""
    return (f"{prefix}{line}".rstrip() for line in lines)


def column_head(key: str) -> str:
    """Return the head of a column for a camelCase key: `WARM IDLE` for `warmIdle`."""
    return "".join(f" {letter}" if letter.isupper() else letter for letter in key).upper()


def format_time(at: datetime) -> str:
    """Return a UTC time with seconds."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


def format_age(span: timedelta) -> str:
    """Return `40s`, `12m`, `5h` or `3d`, as kubectl writes ages."""
    seconds = max(0, int(span.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
