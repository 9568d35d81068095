"""Parsing of engine flag values: from command-line text to typed values within bounds."""

import json
import re
from collections.abc import Callable, Mapping

from tessera.domain.vllm.facts import Flag, FlagType

# What `--max-model-len auto` means: as long as the memory allows.
AUTO = -1

# Without a way back: a thousand digits are tried once.
_SIZE = re.compile(r"([0-9]++(?:\.[0-9]++)?+)([kKmMgGtT])")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def read(flag: Flag, text: str) -> object:
    """Return the typed value; ValueError says what was expected."""
    if flag.accepts_none and text in ("", "None"):
        return None
    value = _READERS[flag.type or "str"](text)
    if flag.choices is not None and value not in flag.choices:
        raise ValueError(f"expected one of {', '.join(map(str, flag.choices))}")
    return value


def violated_bounds(flag: Flag, value: object) -> str | None:
    """Return the bounds in words if a number lies outside of them, else None."""
    if not isinstance(value, int | float):
        return None
    within = (
        (flag.gt is None or value > flag.gt)
        and (flag.ge is None or value >= flag.ge)
        and (flag.lt is None or value < flag.lt)
        and (flag.le is None or value <= flag.le)
    )
    return None if within else _bounds(flag)


def _bounds(flag: Flag) -> str:
    named = {"above": flag.gt, "at least": flag.ge, "below": flag.lt, "at most": flag.le}
    return " and ".join(f"{word} {bound:g}" for word, bound in named.items() if bound is not None)


def _parse_integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None


def _parse_size(text: str) -> int:
    """Return a size: lower-case suffixes are powers of 1000, upper-case ones of 1024."""
    size_match = _SIZE.fullmatch(text)
    if size_match is None:
        try:
            return int(text)
        except ValueError:
            raise ValueError("expected a whole number, or one such as 8k or 8K") from None
    digits, unit = size_match.groups()
    if unit in _DECIMAL:
        return round(float(digits) * _DECIMAL[unit])
    if "." in digits:
        raise ValueError(f"expected no fraction before {unit}; write {unit.lower()} or a whole one")
    return int(digits) * _BINARY[unit]


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON ({error.msg} at character {error.pos})") from None


_READERS: Mapping[FlagType, Callable[[str], object]] = {
    "float": _parse_number,
    "int": _parse_integer,
    "json": _parse_json,
    "jsonOrText": lambda text: _parse_json(text) if text.startswith("{") else text,
    "size": _parse_size,
    "sizeOrAuto": lambda text: AUTO if text == "auto" else _parse_size(text),
    "str": str,
    "word": lambda text: text.lower().replace("-", "_"),
}
