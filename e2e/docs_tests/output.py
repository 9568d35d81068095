"""Compares the output of a command with what a page shows.

Words and numbers have to be the same. What differs each time matches anything of its kind: ages,
times, addresses. `…` stands for any text within its line, and alone on a line for any lines. The
width of the gaps of a table does not matter.
"""

import re

# What differs each time: times, addresses, ages.
_KINDS = (
    r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
    r"\d+\.\d+\.\d+\.\d+",
    r"(?:\d+[smhd])+",
)
_SPECIAL = re.compile(
    r"(?P<any>…)|(?P<gap>\s+)|"
    + "|".join(rf"(?P<k{n}>\b{pattern}\b)" for n, pattern in enumerate(_KINDS))
)


def matches(shown: str, printed: str) -> bool:
    """Return whether `printed` is what the page shows."""
    return re.fullmatch(_pattern(shown), _trim(printed)) is not None


def _pattern(shown: str) -> str:
    lines = []
    for line in _trim(shown).splitlines():
        lines.append(r"(?:.*\n)*?" if line == "…" else _line(line) + r"\n")
    return "".join(lines)


def _line(line: str) -> str:
    parts, done = [], 0
    for special in _SPECIAL.finditer(line):
        parts.append(re.escape(line[done : special.start()]))
        parts.append(_kind_pattern(special))
        done = special.end()
    parts.append(re.escape(line[done:]))
    return "".join(parts)


def _kind_pattern(special: re.Match[str]) -> str:
    match special.lastgroup:
        case "any":
            return r".*"
        case "gap":
            return r"[^\S\n]+"
        case kind:
            return _KINDS[int(str(kind).removeprefix("k"))]


def _trim(text: str) -> str:
    """Remove empty lines around the text, and white space at the ends of lines."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)
