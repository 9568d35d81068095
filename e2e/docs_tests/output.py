"""Does a page show what a command prints?

Words and numbers have to be the same. What differs each time matches whatever is of its kind: ages,
moments, addresses. `…` stands for anything within its line, and alone on a line for any lines. How
wide the gaps of a table are says nothing.
"""

import re

# What is never the same twice: moments, addresses, ages.
_KINDS = (
    r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
    r"\d+\.\d+\.\d+\.\d+",
    r"(?:\d+[smhd])+",
)
_SPECIAL = re.compile(
    r"(?P<any>…)|(?P<gap>\s+)|" + "|".join(rf"(?P<k{n}>\b{one}\b)" for n, one in enumerate(_KINDS))
)


def matches(shown: str, printed: str) -> bool:
    """Whether `printed` is what the page shows."""
    return re.fullmatch(_pattern(shown), _trimmed(printed)) is not None


def _pattern(shown: str) -> str:
    lines = []
    for line in _trimmed(shown).splitlines():
        lines.append(r"(?:.*\n)*?" if line == "…" else _line(line) + r"\n")
    return "".join(lines)


def _line(line: str) -> str:
    parts, done = [], 0
    for special in _SPECIAL.finditer(line):
        parts.append(re.escape(line[done : special.start()]))
        parts.append(_of_its_kind(special))
        done = special.end()
    parts.append(re.escape(line[done:]))
    return "".join(parts)


def _of_its_kind(special: re.Match[str]) -> str:
    match special.lastgroup:
        case "any":
            return r".*"
        case "gap":
            return r"[^\S\n]+"
        case kind:
            return _KINDS[int(str(kind).removeprefix("k"))]


def _trimmed(text: str) -> str:
    """Without empty lines around it, and without white space at the ends of lines."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)
