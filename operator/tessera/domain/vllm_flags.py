"""Arguments of `vllm serve`, checked by the table of a version without importing vLLM.

The rules are those of the engine's own parser: the model is the positional argument, `_` equals `-`
in names, `--no-…` turns a switch off, JSON flags also take dotted keys, `-O3` is a level, and a
unique beginning of a name is accepted. Bounds of numbers are checked here although the parser lets
them pass, since the engine would then exit a moment later.
"""

import difflib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tessera.domain import engine_values
from tessera.domain.engine_facts import Flag, Table, known_versions, table
from tessera.domain.engine_old_flags import OLD_FLAGS

__all__ = [
    "PASSES_PARSER",
    "Kind",
    "Problem",
    "check",
    "defaults",
    "known_versions",
    "parse",
    "table",
]

MODEL = "model_tag"
"""Destination of the positional argument."""


class Kind(StrEnum):
    """What can be wrong with an argument."""

    UNKNOWN = "Unknown"
    ABBREVIATED = "Abbreviated"
    AMBIGUOUS = "Ambiguous"
    REMOVED = "Removed"
    RENAMED = "Renamed"
    MISSING_VALUE = "MissingValue"
    UNEXPECTED_VALUE = "UnexpectedValue"
    UNEXPECTED_ARGUMENT = "UnexpectedArgument"
    BAD_VALUE = "BadValue"
    OUT_OF_RANGE = "OutOfRange"


PASSES_PARSER = frozenset({Kind.ABBREVIATED, Kind.OUT_OF_RANGE})
"""What the engine's parser accepts; anything else makes it exit with code 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with one argument, said to the person who wrote it."""

    flag: str
    kind: Kind
    message: str


def check(args: Sequence[str], table: Table) -> tuple[Problem, ...]:
    """Everything that is wrong with the arguments, in their order."""
    return tuple(_Reading(args, table).problems)


def parse(args: Sequence[str], table: Table) -> Mapping[str, Any]:
    """Typed values by destination, without defaults and without what `check` calls unusable."""
    return _Reading(args, table).values


def defaults(table: Table) -> Mapping[str, Any]:
    """The default of every flag that has one."""
    return {flag.dest: flag.default for flag in table.flags if flag.default is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spelling:
    """An option as written: `--flag.key=value` in its parts."""

    option: str
    key: str | None
    value: str | None


class _Reading:
    """One pass over the arguments; `values` and `problems` are its result."""

    def __init__(self, args: Sequence[str], table: Table) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._table = table
        self._left = deque(args)
        while self._left:
            word = self._left.popleft()
            if _is_option(word):
                self._option(_spelling(word))
            elif word != "--":
                self._positional(word)

    def _positional(self, word: str) -> None:
        if MODEL in self.values:
            message = f"{word}: only one model is served and {self.values[MODEL]} was named before"
            self._complain(word, Kind.UNEXPECTED_ARGUMENT, f"{message}; quote it or leave it out")
        else:
            self.values[MODEL] = word

    def _option(self, spelling: _Spelling) -> None:
        spelling = self._written_out(spelling)
        flag = self._table.by_option.get(spelling.option)
        if flag is None:
            self._take_all()
        elif spelling.key is not None:
            self._keyed(flag, spelling)
        elif flag.action == "switch":
            self._switch(flag, spelling)
        elif flag.action != "help":
            self._store(flag, spelling)

    def _written_out(self, spelling: _Spelling) -> _Spelling:
        """The spelling with its full option; what no option is meant by is complained of."""
        option = spelling.option
        if option in self._table.by_option:
            return spelling
        if not option.startswith("--") and option[:2] in self._table.by_option:
            return _Spelling(option=option[:2], key=None, value=option[2:])
        if option in OLD_FLAGS:
            self._old(option)
            return spelling
        meant = [known for known in self._table.by_option if known.startswith(option)]
        if len(meant) == 1:
            message = f"{option} is short for {meant[0]}; write it out"
            self._complain(
                option, Kind.ABBREVIATED, f"{message}, since the next version may differ"
            )
            return _Spelling(option=meant[0], key=spelling.key, value=spelling.value)
        if meant:
            message = f"{option} could mean {' or '.join(meant[:4])}; write it out"
            self._complain(option, Kind.AMBIGUOUS, message)
        else:
            self._unknown(option)
        return spelling

    def _unknown(self, option: str) -> None:
        near = difflib.get_close_matches(option, self._table.by_option, n=1, cutoff=0.75)
        hint = f"did you mean {near[0]}?" if near else "leave it out"
        message = f"vllm serve {self._table.version} has no option {option}; {hint}"
        self._complain(option, Kind.UNKNOWN, message)

    def _old(self, option: str) -> None:
        old = OLD_FLAGS[option]
        kind = Kind.REMOVED if old.now is None else Kind.RENAMED
        instead = "" if old.now is None else f"; use {old.now}"
        message = (
            f"vllm serve {self._table.version} has no {option} any more{instead}: {old.advice}"
        )
        self._complain(option, kind, message)

    def _switch(self, flag: Flag, spelling: _Spelling) -> None:
        option = spelling.option
        if spelling.value is not None:
            message = (
                f"{option} takes no value, but {spelling.value!r} was given; write only {option}"
            )
            self._complain(option, Kind.UNEXPECTED_VALUE, message)
        else:
            self.values[flag.dest] = not (
                option.startswith("--no-") and option.replace("--no-", "--", 1) in flag.options
            )

    def _store(self, flag: Flag, spelling: _Spelling) -> None:
        texts = self._texts(flag, spelling)
        if not texts and flag.nargs != "?":
            self._missing(spelling.option)
            return
        found = [value for text in texts for value in self._typed(flag, spelling.option, text)]
        if len(found) < len(texts):
            return
        if flag.action == "append":
            self.values.setdefault(flag.dest, []).extend(found)
        elif flag.nargs == "+":
            self.values[flag.dest] = tuple(found)
        else:
            self.values[flag.dest] = found[0] if found else None

    def _keyed(self, flag: Flag, spelling: _Spelling) -> None:
        """`--json-flag.key.key value`: one entry of the flag's JSON object."""
        name = f"{spelling.option}.{spelling.key}"
        texts = self._texts(flag, spelling)
        if flag.type not in ("json", "jsonOrText"):
            message = (
                f"{name}: only JSON flags take keys after a dot; write {spelling.option} alone"
            )
            self._complain(name, Kind.UNKNOWN, message)
        elif not texts:
            self._missing(name)
        else:
            held = self.values.get(flag.dest)
            self.values[flag.dest] = _with_entry(held, str(spelling.key).split("."), texts[0])

    def _texts(self, flag: Flag, spelling: _Spelling) -> list[str]:
        if spelling.value is not None:
            return [spelling.value]
        return self._take_all() if flag.nargs == "+" else self._take_one()

    def _take_one(self) -> list[str]:
        follows = self._left and not _is_option(self._left[0]) and self._left[0] != "--"
        return [self._left.popleft()] if follows else []

    def _take_all(self) -> list[str]:
        taken: list[str] = []
        while more := self._take_one():
            taken += more
        return taken

    def _typed(self, flag: Flag, option: str, text: str) -> list[object]:
        """The value as a list of one, or nothing after a complaint."""
        try:
            value = engine_values.read(flag, text)
        except ValueError as error:
            self._complain(option, Kind.BAD_VALUE, f"{option} {text}: {error}")
            return []
        bounds = engine_values.missed_bounds(flag, value)
        if bounds is not None:
            message = f"{option} {text}: must be {bounds}, or the engine exits at its start"
            self._complain(option, Kind.OUT_OF_RANGE, message)
        return [value]

    def _missing(self, option: str) -> None:
        message = f"{option} needs a value; write {option} VALUE or {option}=VALUE"
        self._complain(option, Kind.MISSING_VALUE, message)

    def _complain(self, flag: str, kind: Kind, message: str) -> None:
        self.problems.append(Problem(flag=flag, kind=kind, message=message))


def _is_option(word: str) -> bool:
    """A word that begins with a dash is an option unless it is a negative number or a sentence."""
    if len(word) < 2 or not word.startswith("-") or word == "--":
        return False
    return not (word[1:].replace(".", "", 1).isdigit() or " " in word.partition("=")[0])


def _spelling(word: str) -> _Spelling:
    name, equals, value = word.partition("=")
    given = value if equals else None
    if name.startswith("-O"):
        return _Spelling(option="--optimization-level", key=None, value=name[2:] or given)
    option, _, key = name.partition(".")
    if option.startswith("--"):
        option = option.replace("_", "-")
    return _Spelling(option=option, key=key or None, value=given)


def _with_entry(held: object, keys: list[str], text: str) -> dict[str, Any]:
    """A copy of the object with one entry set; a key that ends in `+` is appended to."""
    result: dict[str, Any] = dict(held) if isinstance(held, dict) else {}
    key, *deeper = keys
    if deeper:
        result[key] = _with_entry(result.get(key), deeper, text)
    elif key.endswith("+"):
        before = result.get(key[:-1])
        result[key[:-1]] = [*(before if isinstance(before, list) else ()), _loose(text)]
    else:
        result[key] = _loose(text)
    return result


def _loose(text: str) -> object:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
