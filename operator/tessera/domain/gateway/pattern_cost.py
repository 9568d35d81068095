"""What a regular expression or a grammar costs the engine that compiles it.

An automaton has a state for each character, also for those that a counted repetition unrolls, and
the compiler tries each token of the vocabulary there: many tokens pass a class of most characters.
Where optional characters follow each other, an automaton is in many of their states at once.
`schema_cost.py` says in which units, and how they were measured.
"""

import math
import re
from dataclasses import dataclass

# The compiler unrolls a repetition up to this bound.
UNROLLED = 128

_PATTERN_MS = 5.0
_WIDE_MS, _CLASS_MS, _LITERAL_MS = 36.0, 18.0, 0.1
# By the third power of the optional characters that follow each other.
_WIDE_RUN_MS, _RUN_MS = 0.2, 0.02
# By the second power of the choices of a grammar, each of which may be of nothing.
_CHOICE_MS = 0.8
_EMPTY = ('""', "?", "*", "{0")
_BRACES = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}")
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*+\]?|" + _BRACES.pattern + "|.", re.DOTALL)
_WIDE = re.compile(r"\.|\[\^|(?:\[.*)?\\[WSDpPX]", re.DOTALL)
_ESCAPED_CLASSES = ("\\w", "\\s", "\\d")


@dataclass(slots=True)
class PatternCost:
    """What a part of a pattern costs, which may be repeated."""

    ms: float = 0.0
    is_wide: bool = False
    """It has a class of most characters."""
    optional: float = 0.0
    """Characters in it that may be absent and follow each other."""
    chain: float = 0.0
    """Those of its longest repetition, which alone is no choice."""
    runs: float = 0.0
    """Third powers of the runs that have ended in it."""
    squares: float = 0.0
    """Of the bounds of counted repetitions."""
    is_literal: bool = False
    """It has a character that is always there, so that a run ends."""

    def add(self, atom: "PatternCost") -> None:
        """Append what follows."""
        self.ms += atom.ms
        self.is_wide |= atom.is_wide
        self.runs += atom.runs
        self.squares += atom.squares
        if atom.is_literal:
            self.end_run()
            self.optional, self.chain = atom.optional, atom.chain
            self.is_literal = True
        else:
            self.optional += atom.optional
            self.chain = max(self.chain, atom.chain)

    def end_run(self) -> None:
        """Count the optional characters until here."""
        self.runs += max(0.0, self.optional - self.chain) ** 3
        self.optional = self.chain = 0.0

    def repeat(self, least: int, most: int | None) -> None:
        """Repeat it; without `most`, without end."""
        times = max(1, min(least if most is None else most, UNROLLED))
        count = least if most is None else most
        span = 1 if most is None else min(most, UNROLLED) - min(least, UNROLLED)
        self.squares = (self.squares + 1) * max(1, count) ** 2 if count > 1 else self.squares
        self.ms, self.runs = self.ms * times, self.runs * times
        if not self.is_literal or least == 0:
            self.optional *= times
        self.optional += span
        self.chain = max(self.chain, span)
        self.is_literal = self.is_literal and least > 0


def pattern_cost(pattern: str) -> PatternCost:
    """Return what a regular expression costs, whatever it is."""
    whole, atom = PatternCost(ms=_PATTERN_MS), PatternCost()
    outer: list[tuple[PatternCost, bool]] = []
    is_choice = False
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text in "?*+":
            atom.repeat(int(text == "+"), 1 if text == "?" else None)
            continue
        if braces := _BRACES.fullmatch(text):
            atom.repeat(int(braces[1]), _most(braces))
            continue
        whole.add(atom)
        atom = PatternCost()
        if text == "(":
            outer.append((whole, is_choice))
            whole, is_choice = PatternCost(), False
        elif text == ")" and outer:
            atom, (whole, was_choice) = whole, outer.pop()
            atom.is_literal &= not is_choice
            is_choice = was_choice
        elif text == "|":
            is_choice = True
            # The choice before it may be empty.
            atom.optional = 1
        else:
            atom = _atom(text)
    whole.add(atom)
    for enclosing, _ in reversed(outer):
        enclosing.add(whole)
        whole = enclosing
    whole.end_run()
    whole.ms += whole.runs * (_WIDE_RUN_MS if whole.is_wide else _RUN_MS)
    return whole


def _most(braces: re.Match[str]) -> int | None:
    if not braces[2]:
        return int(braces[1])
    return int(braces[3]) if braces[3] else None


def _atom(text: str) -> PatternCost:
    if text in "^$":
        return PatternCost()
    if _WIDE.match(text):
        return PatternCost(ms=_WIDE_MS, is_wide=True)
    if text in _ESCAPED_CLASSES or (text[0] == "[" and len(text) > 1):
        return PatternCost(ms=_CLASS_MS)
    return PatternCost(ms=_LITERAL_MS, is_literal=True)


def grammar_ms(grammar: str) -> float:
    """Return what a grammar costs, however its rules use each other."""
    classes = sum(map(grammar.count, (".", "[", "\\")))
    repeated = math.prod(
        min(UNROLLED, max(1, int(braces[3] or braces[1]))) for braces in _BRACES.finditer(grammar)
    )
    optional = sum(map(grammar.count, "?*+"))
    choices = grammar.count("|") if any(map(grammar.count, _EMPTY)) else 0
    runs = _WIDE_RUN_MS * optional**3 + _CHOICE_MS * choices**2
    return classes * _WIDE_MS * repeated + runs
