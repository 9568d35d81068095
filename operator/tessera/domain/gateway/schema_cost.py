"""What a schema, a pattern or a grammar costs the engine that compiles it.

vLLM reads it in the thread that serves all clients, then a compiler tries each token of the
vocabulary in each state of the automaton. `docs/decisions/price-of-schemas.md` has how the prices
were measured, and `tools/measure_schemas.py` measures them again. All are CPU time for a vocabulary
of 128,000 tokens, in milliseconds.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from tessera.api.text import counted
from tessera.domain.gateway.pattern_cost import UNROLLED, grammar_ms, pattern_cost

MAX_SCHEMA_BYTES = 2**17
# Schemas within schemas.
MAX_LEVELS = 32
# Objects and arrays within each other, as vLLM has it.
MAX_NESTING = 64
MAX_COMPILER_SECONDS = 10
# Bytes of a schema times the levels above them: the reader takes 0.5 s for so many.
MAX_LEVEL_BYTES = 850_000
# Of counted repetitions in patterns, the sum of squares that is read in 0.5 s.
MAX_REPETITION = 1000

_BYTE_MS, _SCHEMA_MS = 0.035, 0.8
_LENGTH_MS, _LONG_LENGTH_MS, _MINIMUM_MS = 43.0, 8000.0, 25.0
_COUNT_MS = 10.0
_TAG_MS = 10.0
# A format is a pattern: those that cost more than others.
_FORMAT_MS, _FORMATS_MS = (
    2.0,
    {
        "email": 75.0,
        "hostname": 22.0,
        "json-pointer": 22.0,
        "relative-json-pointer": 16.0,
        "uri": 48.0,
        "uri-reference": 48.0,
        "uri-template": 220.0,
    },
)
# Other names are all that are none of these, by each of their characters.
_OTHER_NAMES = ("additionalProperties", "unevaluatedProperties")
_NAME_MS = 30.0
# A range of numbers is read as a pattern of its digits, which takes as long as so many bytes.
_RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_RANGE_LEVEL_BYTES = 1600
# By the second power of the optional properties of an object, and by the third where counted.
_OPTIONAL_MS, _COUNTED_OPTIONAL_MS = 0.014, 0.006

_MAX_PART = 40
_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_Place: TypeAlias = "tuple[_Place, str | int] | None"
_Waiting: TypeAlias = tuple[dict[str, object] | list[object], _Place, int, int, bool]


class Excess(NamedTuple):
    """What costs more than engines that tenants share may spend on it."""

    pointer: str
    """Where in the field, as a JSON pointer."""
    text: str


@dataclass(slots=True)
class _Price:
    """What is added up of one field."""

    ms: float
    level_bytes: int = 0
    squares: float = 0.0
    dearest: tuple[float, _Place, str] = (0.0, None, "")
    lengths: set[tuple[bool, float | None, float | None]] = field(default_factory=set)

    def add(self, ms: float, place: _Place, what: str) -> None:
        self.ms += ms
        if ms > self.dearest[0]:
            self.dearest = ms, place, what

    def add_schema(self, schema: Mapping[str, object], place: _Place) -> None:
        """Add what one schema and its keywords cost."""
        self.ms += _SCHEMA_MS
        if any(name in schema for name in _RANGES):
            self.level_bytes += _RANGE_LEVEL_BYTES
        if isinstance(name := schema.get("format"), str):
            self.add(
                _FORMATS_MS.get(name, _FORMAT_MS), (place, "format"), f"format: {_short(name)}"
            )
        if not _PRICED.isdisjoint(schema):
            is_of_names = place is not None and place[1] == "propertyNames"
            for keyword, ms in self._bounds(schema, is_of_names):
                self.add(ms, (place, keyword), f"{keyword}: {_short(schema[keyword])}")
            self._add_texts(schema, place)
        properties, required = schema.get("properties"), schema.get("required")
        if isinstance(properties, Mapping) and properties:
            optional = len(properties)
            if isinstance(required, Sequence):
                optional -= sum(name in properties for name in required if isinstance(name, str))
            optional = max(0, optional)
            ms = _OPTIONAL_MS * optional**2
            if "minProperties" in schema or "maxProperties" in schema:
                ms += _COUNTED_OPTIONAL_MS * optional**3
            self.add(ms, (place, "properties"), f"properties: {optional} that are not required")
            length = sum(len(name.encode()) for name in properties)
            for keyword in _OTHER_NAMES:
                if schema.get(keyword, False) is not False:
                    what = f"{keyword}: beside properties of {counted(length, 'letter')}"
                    self.add(_NAME_MS * length, (place, keyword), what)

    def _bounds(
        self, schema: Mapping[str, object], is_of_names: bool
    ) -> Iterator[tuple[str, float]]:
        for least, most in _COUNTED:
            low, high = _number(schema.get(least)), _number(schema.get(most))
            if low is None and high is None:
                continue
            keyword, bounds = least if high is None else most, (is_of_names, low, high)
            if least != "minLength":
                yield keyword, _COUNT_MS
                continue
            if bounds in self.lengths:
                # Equal repetitions of one thing are compiled once.
                continue
            self.lengths.add(bounds)
            if high is None or (low or 0) >= UNROLLED:
                yield keyword, _MINIMUM_MS * min(max(low or 0, 0), UNROLLED)
            else:
                yield keyword, _LENGTH_MS * high if high <= UNROLLED else _LONG_LENGTH_MS

    def _add_texts(self, schema: Mapping[str, object], place: _Place) -> None:
        patterns = [(name, schema[name]) for name in ("pattern", "regex") if name in schema]
        named = schema.get("patternProperties")
        if isinstance(named, Mapping):
            patterns += [("patternProperties", name) for name in named]
        for name, pattern in patterns:
            if isinstance(pattern, str):
                cost = pattern_cost(pattern)
                self.squares += cost.squares
                self.add(cost.ms, (place, name), f"{name}: {_short(pattern)}")
        grammar = schema.get("grammar")
        if isinstance(grammar, str):
            self.add(grammar_ms(grammar), (place, "grammar"), "grammar")
        if "begin" in schema:
            self.add(_TAG_MS, (place, "begin"), "begin")

    def excess(self) -> Excess | None:
        """Return what of the sum is too much."""
        _, place, what = self.dearest
        if self.ms > MAX_COMPILER_SECONDS * 1000:
            text = (
                f"engines compile it for {self.ms / 1000:.0f} s, limit {MAX_COMPILER_SECONDS} s, "
                f"most of it for {what}. Lower such bounds, or have fewer of them"
            )
        elif self.squares > MAX_REPETITION**2:
            text = f"its patterns repeat more than {MAX_REPETITION} times. Lower what is in braces"
        elif self.level_bytes > MAX_LEVEL_BYTES:
            text = (
                f"its bytes times the levels above them are {self.level_bytes}, limit "
                f"{MAX_LEVEL_BYTES}. Nest less deep, or send less"
            )
            place = None
        else:
            return None
        return Excess(_pointer(place), text)


_COUNTED = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minContains", "maxContains"),
    ("min", "max"),
)
_PRICED = frozenset(name for pair in _COUNTED for name in pair) | {
    "pattern",
    "regex",
    "patternProperties",
    "grammar",
    "begin",
}


def find_excess(values: dict[str, object], size: int, wrappers: int = 0) -> Excess | None:
    """Return why fields of so many bytes may not reach engines that tenants share.

    They are an object by their names, with so many objects or arrays around the schemas in each.
    Any object in it is priced as a schema, wherever it is: a reader that knows better would have to
    know what each engine does.
    """
    if size > MAX_SCHEMA_BYTES:
        return Excess(
            "", f"it has {counted(size, 'byte')}, limit {MAX_SCHEMA_BYTES}. Send a smaller schema"
        )
    price = _Price(ms=size * _BYTE_MS)
    # The object of all fields is around them as well.
    levels, nesting = MAX_LEVELS + wrappers, MAX_NESTING + wrappers + 1
    # A value, its place, the levels and the nesting above it, and whether its fields are names.
    waiting: list[_Waiting] = [(values, None, 0, 1, True)]
    while waiting:
        value, place, level, depth, is_names = waiting.pop()
        fields: Iterable[tuple[str | int, object]] = ()
        length = 4 * len(value)
        if isinstance(value, dict):
            fields = value.items()
            length += sum(map(len, value))
            if not is_names:
                level += 1
                price.add_schema(value, place)
        else:
            fields = enumerate(value)
        if level > levels or depth > nesting:
            text = f"schemas nest more than {MAX_LEVELS} deep, or JSON more than {MAX_NESTING}"
            return Excess(_pointer(place), f"{text}. Nest less deep")
        for name, child in fields:
            if isinstance(child, str):
                length += len(child)
            elif isinstance(child, dict | list):
                has_names = name in _NAMES and not is_names
                waiting.append((child, (place, name), level, depth + 1, has_names))
        price.level_bytes += length * level
    return price.excess()


def _pointer(place: _Place) -> str:
    parts: list[str] = []
    while place is not None:
        place, part = place
        parts.append(str(part)[:_MAX_PART].replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in reversed(parts))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_PART else f"{text[:_MAX_PART]}…"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # An integer may be larger than any float.
    return value if -math.inf < value < math.inf else UNROLLED + 1
