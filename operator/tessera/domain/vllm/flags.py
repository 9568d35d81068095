"""Validation of `vllm serve` arguments against the table of a version, without importing vLLM.

The rules are those of the engine's own parser: the model is the positional argument, `_` equals `-`
in names, `--no-…` turns a switch off, JSON flags also take dotted keys, `-O3` is a level, and a
unique prefix of a name is accepted. Bounds of numbers are checked in addition, since the engine
exits at its start when one is violated.
"""

import difflib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tessera.domain.vllm import flag_values as engine_values
from tessera.domain.vllm.facts import EngineFacts, Flag, versions_with
from tessera.domain.vllm.outdated_flags import OLD_FLAGS

# Destination of the positional argument.
MODEL_DEST = "model_tag"

# Unknown options for which a similar one is suggested, and by how many letters that may be longer
# or shorter: a comparison with all options takes longer than to judge the whole spec.
_MAX_SUGGESTIONS = 3
_MAX_LENGTH_DIFFERENCE = 5
# Levels of a JSON flag that dotted keys may name; no option of the engine has so many.
_MAX_KEY_LEVELS = 16


class FlagProblemKind(StrEnum):
    """The kinds of problems that an argument can have."""

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


# What the engine's parser accepts; anything else makes it exit with code 2.
PASSES_PARSER = frozenset({FlagProblemKind.ABBREVIATED, FlagProblemKind.OUT_OF_RANGE})


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagProblem:
    """One problem of one argument, with a message for its author."""

    flag: str
    kind: FlagProblemKind
    message: str


def check(args: Sequence[str], facts: EngineFacts) -> tuple[FlagProblem, ...]:
    """Return all problems of the arguments, in the order of the arguments."""
    return tuple(_FlagParser(args, facts, suggestions=_MAX_SUGGESTIONS).problems)


def parse(args: Sequence[str], facts: EngineFacts) -> Mapping[str, Any]:
    """Return typed values by destination, without defaults and without unusable arguments."""
    return _FlagParser(args, facts).values


def defaults(facts: EngineFacts) -> Mapping[str, Any]:
    """Return the default of every flag that has one, by destination."""
    return {flag.dest: flag.default for flag in facts.flags if flag.default is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _WrittenOption:
    """An option as written, `--flag.key=value`, in its parts."""

    option: str
    key: str | None
    value: str | None


class _FlagParser:
    """One pass over the arguments; `values` and `problems` are its result."""

    def __init__(self, args: Sequence[str], facts: EngineFacts, suggestions: int = 0) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[FlagProblem] = []
        self._facts = facts
        self._suggestions = suggestions
        self._remaining = deque(args)
        while self._remaining:
            word = self._remaining.popleft()
            if _is_option(word):
                self._parse_option(_parse_word(word))
            elif word != "--":
                self._parse_positional(word)

    def _parse_positional(self, word: str) -> None:
        if MODEL_DEST in self.values:
            message = (
                f"{word}: only 1 model is served and {self.values[MODEL_DEST]} is named already; "
                "quote it or remove it"
            )
            self._report(word, FlagProblemKind.UNEXPECTED_ARGUMENT, message)
        else:
            self.values[MODEL_DEST] = word

    def _parse_option(self, written: _WrittenOption) -> None:
        written = self._resolve_option(written)
        flag = self._facts.by_option.get(written.option)
        if flag is None:
            self._take_all()
        elif written.key is not None:
            self._set_json_key(flag, written)
        elif flag.action in ("switch", "help"):
            self._set_switch(flag, written)
        else:
            self._set_value(flag, written)

    def _resolve_option(self, written: _WrittenOption) -> _WrittenOption:
        """Return the option under its full name; report abbreviated and unknown names."""
        option = written.option
        if option in self._facts.by_option:
            return written
        # A short option may carry its value without a space, as in `-tp2`.
        if not option.startswith("--") and option[:2] in self._facts.by_option:
            return _WrittenOption(option=option[:2], key=None, value=option[2:])
        if option in OLD_FLAGS:
            self._report_outdated(option)
            return written
        matches = self._facts.options_with(option)
        if len(matches) == 1:
            message = (
                f"{option} is short for {matches[0]}; write it out, since the prefix may be "
                "ambiguous in the next version"
            )
            self._report(option, FlagProblemKind.ABBREVIATED, message)
            return _WrittenOption(option=matches[0], key=written.key, value=written.value)
        if matches:
            message = f"{option} could mean {' or '.join(matches[:4])}; write it out"
            self._report(option, FlagProblemKind.AMBIGUOUS, message)
        else:
            self._report_unknown(option)
        return written

    def _report_unknown(self, option: str) -> None:
        if versions := versions_with(option):
            hint = (
                f", but {versions[-1]} has; remove it, or set spec.engine.version to such a version"
            )
        else:
            similar = self._similar_option(option)
            hint = "; remove it" if similar is None else f"; did you mean {similar}?"
        message = f"vllm serve {self._facts.version} has no option {option}{hint}"
        self._report(option, FlagProblemKind.UNKNOWN, message)

    def _similar_option(self, option: str) -> str | None:
        """Return the option that was probably meant, for the first few that are unknown."""
        if not self._suggestions:
            return None
        self._suggestions -= 1
        near = (
            each
            for each in self._facts.by_option
            if abs(len(each) - len(option)) <= _MAX_LENGTH_DIFFERENCE
        )
        return next(iter(difflib.get_close_matches(option, near, n=1, cutoff=0.75)), None)

    def _report_outdated(self, option: str) -> None:
        old_flag = OLD_FLAGS[option]
        kind = FlagProblemKind.REMOVED if old_flag.replacement is None else FlagProblemKind.RENAMED
        use_hint = "" if old_flag.replacement is None else f"; use {old_flag.replacement}"
        message = (
            f"vllm serve {self._facts.version} has no {option} any more{use_hint}: "
            f"{old_flag.advice}"
        )
        self._report(option, kind, message)

    def _set_switch(self, flag: Flag, written: _WrittenOption) -> None:
        option = written.option
        value = written.value
        if value is not None:
            message = f"{option} takes no value, but {value!r} was given; write only {option}"
            self._report(option, FlagProblemKind.UNEXPECTED_VALUE, message)
        else:
            self.values[flag.dest] = not _turns_off(option, flag)

    def _set_value(self, flag: Flag, written: _WrittenOption) -> None:
        texts = self._value_texts(flag, written)
        option = written.option
        if not texts and flag.nargs != "?":
            self._report_missing_value(option)
            return
        typed_values = [value for text in texts for value in self._typed_value(flag, option, text)]
        if len(typed_values) < len(texts):
            return
        if flag.action == "append":
            self.values.setdefault(flag.dest, []).extend(typed_values)
        elif flag.nargs == "+":
            self.values[flag.dest] = tuple(typed_values)
        else:
            self.values[flag.dest] = typed_values[0] if typed_values else None

    def _set_json_key(self, flag: Flag, written: _WrittenOption) -> None:
        """Set one entry of the flag's JSON object, written as `--json-flag.key.key value`."""
        name = f"{written.option}.{written.key}"
        texts = self._value_texts(flag, written)
        if flag.type not in ("json", "jsonOrText"):
            message = f"{name}: only JSON flags take keys after a dot; write {written.option} alone"
            self._report(name, FlagProblemKind.UNKNOWN, message)
        elif not texts:
            self._report_missing_value(name)
        elif len(keys := str(written.key).split(".", _MAX_KEY_LEVELS)) > _MAX_KEY_LEVELS:
            message = (
                f"{written.option}: a key has more than {_MAX_KEY_LEVELS} levels; write the value "
                "as JSON"
            )
            self._report(written.option, FlagProblemKind.BAD_VALUE, message)
        else:
            current_value = self.values.get(flag.dest)
            self.values[flag.dest] = _with_entry(current_value, keys, texts[0])

    def _value_texts(self, flag: Flag, written: _WrittenOption) -> list[str]:
        if written.value is not None:
            return [written.value]
        return self._take_all() if flag.nargs == "+" else self._take_one()

    def _take_one(self) -> list[str]:
        follows = (
            self._remaining and not _is_option(self._remaining[0]) and self._remaining[0] != "--"
        )
        return [self._remaining.popleft()] if follows else []

    def _take_all(self) -> list[str]:
        words: list[str] = []
        while next_words := self._take_one():
            words += next_words
        return words

    def _typed_value(self, flag: Flag, option: str, text: str) -> list[object]:
        """Return the value as a list of one; report a bad value and return an empty list."""
        try:
            value = engine_values.read(flag, text)
        except ValueError as error:
            self._report(option, FlagProblemKind.BAD_VALUE, f"{option} {text}: {error}")
            return []
        bounds = engine_values.violated_bounds(flag, value)
        if bounds is not None:
            message = f"{option} {text}: must be {bounds}, else the engine exits at its start"
            self._report(option, FlagProblemKind.OUT_OF_RANGE, message)
        return [value]

    def _report_missing_value(self, option: str) -> None:
        message = f"{option} needs a value; write {option} VALUE or {option}=VALUE"
        self._report(option, FlagProblemKind.MISSING_VALUE, message)

    def _report(self, flag: str, kind: FlagProblemKind, message: str) -> None:
        self.problems.append(FlagProblem(flag=flag, kind=kind, message=message))


def _is_option(word: str) -> bool:
    """Return whether a word of the command line is an option rather than a value."""
    if len(word) < 2 or not word.startswith("-") or word == "--":
        return False
    # As in argparse: a negative number is a value, and so is a text with spaces in its name part.
    return not (word[1:].replace(".", "", 1).isdigit() or " " in word.partition("=")[0])


def _turns_off(option: str, flag: Flag) -> bool:
    """Return whether the option sets its switch to False.

    `--no-x` does so for `--x`, and since 0.33 `--disable-x` for `--enable-x` and the reverse.
    """
    for prefix, opposite in (
        ("--no-", "--"),
        ("--disable-", "--enable-"),
        ("--enable-", "--disable-"),
    ):
        if option.startswith(prefix) and option.replace(prefix, opposite, 1) == flag.name:
            return True
    return False


def _parse_word(word: str) -> _WrittenOption:
    name, equals, value = word.partition("=")
    explicit_value = value if equals else None
    if name.startswith("-O"):
        return _WrittenOption(
            option="--optimization-level", key=None, value=name[2:] or explicit_value
        )
    option, _, key = name.partition(".")
    if option.startswith("--"):
        option = option.replace("_", "-")
    return _WrittenOption(option=option, key=key or None, value=explicit_value)


def _with_entry(current_value: object, keys: list[str], text: str) -> dict[str, Any]:
    """Return a copy of the object with one entry set; a key that ends in `+` appends to a list."""
    result: dict[str, Any] = dict(current_value) if isinstance(current_value, dict) else {}
    key, *nested_keys = keys
    if nested_keys:
        result[key] = _with_entry(result.get(key), nested_keys, text)
    elif key.endswith("+"):
        previous = result.get(key[:-1])
        result[key[:-1]] = [*(previous if isinstance(previous, list) else ()), _json_or_text(text)]
    else:
        result[key] = _json_or_text(text)
    return result


def _json_or_text(text: str) -> object:
    """Return the parsed text where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
