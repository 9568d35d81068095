"""Scores of answers, from 0 to 1. Answers are hostile: nothing of them is run or trusted."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jsonschema_rs
import re2
from jsonschema_rs.canonical import Satisfiability

from tessera.api.text import counted
from tessera.batch_runner.input.rows import STRICT_DECODER

# More of an answer is not read.
MAX_ANSWER_BYTES = 256 * 2**10
MAX_CHOICES = 20
_RANKED = 10
_MAX_DEPTH = 64
# Time is at most this times the length of the answer: some 5 s for the longest one.
_MAX_PROGRAM = 4000
_MAX_NUMBER_LENGTH = 64
# The last number of an answer is looked for in so much of its end.
_MAX_TAIL = 64 * 2**10
# Alternatives of a schema multiply, and so does what two references each refer to.
_MAX_BRANCHES = 32
# Branching keywords of a schema times the names that it requires; 1 s where all multiply.
_MAX_BRANCH_NAMES = 2000
# Patterns of a schema; each may take this much memory when it is compiled.
_MAX_PATTERNS = 100
# All different schemas of a suite together: a schema of the most branches takes some 4 s, and the
# validator of a small one up to 130 times its bytes.
_MAX_SUITE_SCHEMAS: Mapping[str, tuple[str, int]] = {
    "branches": ("references and alternatives", 10 * _MAX_BRANCHES),
    "patterns": ("patterns", 4 * _MAX_PATTERNS),
    "size": ("bytes", 4 * 2**20),
}
# Instructions of all expressions of a suite times the bytes that are searched with each; some 1 s.
_MAX_STEPS = 100_000_000
# Compiling an expression costs as much as searching so many bytes with it.
_COMPILED_BYTES = 32
# Finding that an expression is too large takes at most as long as so many steps, some 50 ms.
_LARGE_STEPS = 10_000_000
# Bytes of a compiled expression and of what its searches remember.
_MAX_MEMORY = 2 * 2**20
_BRANCHING = frozenset({"$ref", "$dynamicRef", "not", "if", "allOf", "anyOf", "oneOf"})
_DEPENDENT = frozenset({"dependentRequired", "dependentSchemas", "dependencies"})
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=_MAX_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that an answer asks for; its arguments are text that should be JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """What a model said to one prompt."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: Mapping[str, float] | None = None
    """Those of the candidates for the first token, if the engine says any."""
    ranking: tuple[int, ...] = ()
    """Numbers of the documents, the most relevant first."""
    finish_reason: str = ""
    is_refused: bool = False
    """The engine or a filter refused to answer, or the engine failed each time."""
    output_tokens: int = 0
    ttft_seconds: float | None = None
    gaps: tuple[float, ...] = ()
    """Seconds between two tokens."""

    @property
    def is_empty(self) -> bool:
        return not (self.text.strip() or self.tool_calls or self.ranking)


Scorer: TypeAlias = Callable[[ModelAnswer], float]


class _SchemaContents(NamedTuple):
    """What a schema has, or several together."""

    branches: int = 0
    """References and alternatives."""
    keywords: int = 0
    """Keywords of which each has alternatives or a reference."""
    names: int = 0
    """Names that it requires, anywhere."""
    patterns: int = 0
    size: int = 0
    """Bytes; 0 of a part."""


@dataclass(slots=True)
class SuiteBudget:
    """What the regular expressions and the schemas of one suite may take while it is read."""

    steps: int = _MAX_STEPS
    """What is left, in instructions times bytes that are searched."""
    schemas: _SchemaContents = field(default_factory=_SchemaContents)
    """Sums over the schemas so far."""
    validators: dict[str, Callable[[Any], bool]] = field(default_factory=dict)
    """Equal schemas are compiled once."""

    def spend(self, steps: int) -> None:
        """Take the steps; ValueError where fewer are left."""
        self.steps -= steps
        if self.steps < 0:
            raise ValueError(
                "expected: the regular expressions of the suite until this row take more than "
                f"{_MAX_STEPS // 10**6} million steps, instructions times bytes of expression and "
                "example; shorten them, or split the suite into several gates"
            )

    def add_schema(self, schema: _SchemaContents) -> None:
        """Add a schema that no row had before; ValueError where all together are too many."""
        self.schemas = _summed((self.schemas, schema))
        for name, (noun, most) in _MAX_SUITE_SCHEMAS.items():
            if (count := getattr(self.schemas, name)) > most:
                raise ValueError(
                    f"expected: the different schemas of the suite until this row have {count} "
                    f"{noun}, limit {most}; use one schema for more rows, or split the suite into "
                    "several gates"
                )


def compile_scorer(
    name: str,
    expected: Any,
    example: str | None,
    documents: Sequence[str],
    budget: SuiteBudget | None = None,
) -> Scorer | None:
    """Return the scorer of a row; None for the judge, which needs two answers.

    Rows of one suite share a budget. ValueError says what to do where no answer can be right.
    """
    if name == "judge":
        _check_judge(expected)
        return None
    if name == "ranking":
        return _ranking(expected, len(documents))
    budget = budget or SuiteBudget()
    if name == "regex":
        scorer = _regex(expected, example, budget)
    elif name in _SCHEMA_COMPILERS:
        scorer = _SCHEMA_COMPILERS[name](expected, budget)
    else:
        scorer = _COMPILERS[name](expected)
    if example is not None and not scorer(ModelAnswer(text=example)):
        raise ValueError("example: this answer is wrong by expected; correct one of them")
    return scorer


def _check_judge(expected: Any) -> None:
    fields = expected if isinstance(expected, dict) else {"criterion": expected}
    texts = [fields.get("criterion"), fields.get("reference", "-")]
    if set(fields) - {"criterion", "reference"} or not all(
        isinstance(text, str) and text.strip() for text in texts
    ):
        raise ValueError(
            "expected: write what makes an answer good, as a text or as criterion and reference"
        )


def _texts(expected: Any) -> tuple[str, ...]:
    texts = tuple(expected) if isinstance(expected, list) else (expected,)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("expected: write a text that is not empty, or a list of such")
    if any(len(text.encode(errors="replace")) > MAX_ANSWER_BYTES for text in texts):
        raise ValueError("expected: no answer is as long; shorten it")
    return texts


def _exact(expected: Any) -> Scorer:
    texts = frozenset(text.strip() for text in _texts(expected))
    return lambda answer: float(answer.text.strip() in texts)


def _contains(expected: Any) -> Scorer:
    texts = _texts(expected)
    return lambda answer: float(all(text in answer.text for text in texts))


def _regex(expected: Any, example: str | None, budget: SuiteBudget) -> Scorer:
    if not isinstance(expected, str) or not expected:
        raise ValueError("expected: write a regular expression")
    pattern = _compile_pattern(expected, budget)
    texts = [expected, expected.strip("^$"), example or ""]
    size = _COMPILED_BYTES + sum(len(text.encode(errors="replace")) for text in texts)
    budget.spend(_program_size(pattern) * size)
    # Least and greatest of its matches are found quickly, though not for each expression.
    witnesses = [*_least_and_greatest(pattern), *texts]
    if not any(pattern.search(text) for text in witnesses if text.strip()):
        raise ValueError(
            "expected: no text was found that it matches; correct it, or add an answer that it "
            "matches as the field example"
        )
    return lambda answer: float(pattern.search(answer.text) is not None)


def _compile_pattern(expected: str, budget: SuiteBudget) -> Any:
    budget.spend(0)
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        pattern = re2.compile(expected, options)
    except (re2.error, UnicodeEncodeError) as error:
        if "too large" not in str(error):
            message = f"expected: no regular expression of RE2: {error}; correct it"
            raise ValueError(message) from None
        pattern = None
    if pattern is None or _program_size(pattern) > _MAX_PROGRAM:
        budget.steps -= _LARGE_STEPS
        raise ValueError("expected: too large a regular expression; use smaller repetitions")
    return pattern


def _program_size(pattern: Any) -> int:
    """Return the instructions of an expression."""
    return int(pattern._regexp.ProgramSize())


def _least_and_greatest(pattern: Any) -> tuple[str, ...]:
    is_bounded, *texts = pattern._regexp.PossibleMatchRange(64)
    return tuple(text.decode(errors="replace") for text in texts) if is_bounded else ()


def _json_schema(expected: Any, budget: SuiteBudget) -> Scorer:
    is_valid = _validator(json.dumps(expected), budget)

    def score(answer: ModelAnswer) -> float:
        return float(_is_valid_text(is_valid, answer.text))

    return score


def _validator(schema: str, budget: SuiteBudget) -> Callable[[Any], bool]:
    if schema not in budget.validators:
        budget.validators[schema] = _compile_schema(schema, budget)
    return budget.validators[schema]


def _compile_schema(schema: str, budget: SuiteBudget) -> Callable[[Any], bool]:
    fields = json.loads(schema)
    if not isinstance(fields, dict):
        raise ValueError("expected: write a JSON schema, which is an object")
    contents = _contents(fields)
    if contents.branches > _MAX_BRANCHES:
        raise ValueError(f"expected: more than {_MAX_BRANCHES} references and alternatives; cut it")
    if contents.keywords * contents.names > _MAX_BRANCH_NAMES:
        raise ValueError(
            f"expected: the schema has {counted(contents.keywords, 'keyword')} of alternatives and "
            f"requires {counted(contents.names, 'name')}, and their product is at most "
            f"{_MAX_BRANCH_NAMES}; require fewer names"
        )
    if contents.patterns > _MAX_PATTERNS:
        raise ValueError(
            f"expected: the schema has {counted(contents.patterns, 'pattern')}, limit "
            f"{_MAX_PATTERNS}; remove some"
        )
    budget.add_schema(contents._replace(size=len(schema)))
    try:
        validator = jsonschema_rs.validator_for(fields, pattern_options=_PATTERNS, offline=True)
        canonical = jsonschema_rs.canonicalize(fields, pattern_options=_PATTERNS, offline=True)
    except ValueError as error:
        text = str(error).partition("\n")[0]
        message = f"expected: no schema that stands for itself: {text}; correct it"
        raise ValueError(message) from None
    if canonical.satisfiability() is Satisfiability.NO:
        raise ValueError("expected: no value is valid by this schema; correct it")
    return validator.is_valid


def _branches(name: str, part: object) -> int:
    """Return the references and alternatives of a keyword itself."""
    if name in _BRANCHING:
        return len(part) if isinstance(part, list) else 1
    if name in _DEPENDENT and isinstance(part, dict):
        # Each entry doubles the cases, and what it demands is in half of them.
        return sum(2 + (len(names) if isinstance(names, list) else 3) for names in part.values())
    return 0


def _contents(schema: object) -> _SchemaContents:
    """Return what of a schema multiplies, and what each alternative has."""
    if isinstance(schema, list):
        parts = [_contents(part) for part in schema]
    elif isinstance(schema, dict):
        required, named = schema.get("required"), schema.get("patternProperties")
        own = _SchemaContents(
            branches=sum(_branches(name, part) for name, part in schema.items()),
            keywords=sum(name in _BRANCHING for name in schema),
            names=len(required) if isinstance(required, list) else 0,
            patterns=("pattern" in schema) + (len(named) if isinstance(named, dict) else 0),
        )
        parts = [own, *map(_contents, schema.values())]
    else:
        return _SchemaContents()
    return _summed(parts)


def _summed(parts: Iterable[_SchemaContents]) -> _SchemaContents:
    return _SchemaContents(*map(sum, zip(_SchemaContents(), *parts, strict=True)))


def _is_valid_text(is_valid: Callable[[Any], bool], text: str) -> bool:
    try:
        return is_valid(parse_json(text))
    except ValueError:  # of JSON, or of a text that is no UTF-8
        return False


def _number(expected: Any) -> Scorer:
    fields = expected if isinstance(expected, dict) else {"value": expected}
    value = _finite_number(fields.get("value"))
    tolerance = _finite_number(fields.get("tolerance", 0))
    if set(fields) - {"value", "tolerance"}:
        raise ValueError("expected: write a number, or value and tolerance")
    if tolerance < 0:
        raise ValueError("expected: tolerance is below 0, and no answer is as near; correct it")

    def score(answer: ModelAnswer) -> float:
        number = _last_number(answer.text)
        return float(number is not None and abs(number - value) <= tolerance)

    return score


def _finite_number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise ValueError("expected: write a finite number, or value and tolerance")
    return float(value)


def _last_number(text: str) -> float | None:
    """Return the last number, by which most answers end, with or without thousands."""
    matches = _NUMBER.findall(text[-_MAX_TAIL:])
    digits = matches[-1].replace(",", "") if matches else ""
    if not 0 < len(digits) <= _MAX_NUMBER_LENGTH or not math.isfinite(number := float(digits)):
        return None
    return number


def _choice(expected: Any) -> Scorer:
    fields = expected if isinstance(expected, dict) else {}
    choices, right = fields.get("choices"), fields.get("answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= MAX_CHOICES:
        raise ValueError(f"expected: write answer, and choices, a list of 2 to {MAX_CHOICES} texts")
    if len({*_texts(choices)}) < len(choices) or right not in choices or len(fields) > 2:
        raise ValueError("expected: write answer as one of choices, all different")

    def score(answer: ModelAnswer) -> float:
        if answer.logprobs is None:
            return float(answer.text.strip() == right)
        # Tokenizers write the same choice with and without a space before it.
        best = {choice: -math.inf for choice in choices}
        for token, logprob in answer.logprobs.items():
            if (choice := token.strip()) in best:
                best[choice] = max(best[choice], logprob)
        likeliest = max(best.values())
        return float(
            likeliest > -math.inf
            and [choice for choice in choices if best[choice] == likeliest] == [right]
        )

    return score


def _tool_call(expected: Any, budget: SuiteBudget) -> Scorer:
    fields = expected if isinstance(expected, dict) else {}
    name, schema = fields.get("name"), fields.get("schema", {})
    if not isinstance(name, str) or not name or set(fields) - {"name", "arguments", "schema"}:
        raise ValueError("expected: write name, and arguments or a schema of them")
    if "arguments" in fields:
        if "schema" in fields or not isinstance(fields["arguments"], dict):
            raise ValueError("expected: write arguments as an object, or a schema of them")
        schema = {"const": fields["arguments"]}
    is_valid = _validator(json.dumps(schema), budget)

    def score(answer: ModelAnswer) -> float:
        if [call.name for call in answer.tool_calls] != [name]:
            return 0.0
        return float(_is_valid_text(is_valid, answer.tool_calls[0].arguments or "{}"))

    return score


def _ranking(expected: Any, documents: int) -> Scorer:
    if not isinstance(expected, list) or not all(type(number) is int for number in expected):
        raise ValueError("expected: write the numbers of the relevant documents, from 0 on")
    relevant = frozenset(expected)
    if not relevant or len(relevant) < len(expected) or not relevant < {*range(documents)}:
        raise ValueError(
            f"expected: write some and not all of the documents, by different numbers from 0 to "
            f"{documents - 1}"
        )
    ideal = sum(_discount(rank) for rank in range(min(_RANKED, len(relevant))))

    def score(answer: ModelAnswer) -> float:
        ranking = tuple(dict.fromkeys(answer.ranking))[:_RANKED]
        gain = sum(_discount(rank) for rank, number in enumerate(ranking) if number in relevant)
        return gain / ideal

    return score


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 2)


def parse_json(content: bytes | str) -> Any:
    """Return the JSON value; ValueError for anything else, NaN and deep nesting among it."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = STRICT_DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply; flatten it") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos + 1}") from None
    if _depth_exceeds(value, _MAX_DEPTH):
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}; flatten it")
    return value


def _depth_exceeds(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


_NUMBER = re2.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_COMPILERS: Mapping[str, Callable[[Any], Scorer]] = {
    "exact": _exact,
    "contains": _contains,
    "number": _number,
    "choice": _choice,
}
_SCHEMA_COMPILERS: Mapping[str, Callable[[Any, SuiteBudget], Scorer]] = {
    "jsonSchema": _json_schema,
    "toolCall": _tool_call,
}
