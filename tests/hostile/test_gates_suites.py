"""Suites that somebody poisoned: each is refused with its reason, and soon, or costs its owner only
time that is bounded."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tessera.batch_runner.gate.job import wire_report
from tessera.batch_runner.gate.scorers import ModelAnswer, compile_scorer
from tessera.batch_runner.gate.suite import MAX_SUITE_BYTES, PromptSuite, SuiteError, parse_suite
from tessera.batch_runner.progress import encode_report
from tessera.domain.observed.gate_reports import gate_report
from tests.hostile.score import SCORE

# Of a thread: what takes longer on a busy machine would take minutes where it explodes.
_CPU_SECONDS = 1.5


def a_row(**fields: Any) -> bytes:
    messages = [{"role": "user", "content": fields.pop("content", "x")}]
    return json.dumps({"messages": messages, "scorer": "exact", "expected": "a", **fields}).encode()


def a_suite(*rows: bytes) -> PromptSuite:
    return parse_suite(b"\n".join(rows))


@contextmanager
def soon() -> Iterator[None]:
    begin = time.thread_time()
    yield
    seconds = time.thread_time() - begin
    SCORE.add(int(seconds > _CPU_SECONDS))
    assert seconds <= _CPU_SECONDS


def fault_of(*rows: bytes) -> str:
    """Return what a suite is refused with, as the status of its gate says it."""
    with soon(), pytest.raises(SuiteError) as caught:
        a_suite(*rows)
    report = {"phase": "gate", "state": "suiteInvalid", "version": "b"}
    fields = wire_report({**report, "message": str(caught.value)})
    parsed = gate_report(encode_report(fields).decode())
    SCORE.add(int(parsed is None))
    assert parsed is not None
    assert parsed.state == "suiteInvalid"
    return parsed.message


def a_schema(schema: Any) -> bytes:
    return a_row(scorer="jsonSchema", expected=schema)


def a_regex(pattern: str, **fields: Any) -> bytes:
    return a_row(scorer="regex", expected=pattern, **fields)


def doubled_references(depth: int) -> Any:
    """Return a schema of a few lines that takes two to the depth steps to follow."""
    twice = {
        f"d{number}": {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}] * 2} for number in range(depth)
    }
    return {"$defs": {**twice, f"d{depth}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def negated_alternatives(width: int) -> Any:
    """Return a schema of which it takes the power of its width to say whether a value is valid."""
    parts = [
        {"anyOf": [{"not": {"required": [f"p{outer}{inner}"]}} for inner in range(width)]}
        for outer in range(width)
    ]
    return {"not": {"allOf": parts}}


def dependent_names(fields: int, names: int) -> Any:
    """Return a schema in which each of the fields needs names of its own."""
    return {
        "dependentRequired": {
            f"a{field}": [f"b{field}-{name}" for name in range(names)] for field in range(fields)
        }
    }


def long_alternatives(pairs: int, names: int) -> Any:
    """Return a schema of few alternatives, of which all pairs are compared by all their names."""
    return {
        "allOf": [
            {
                "anyOf": [
                    {"required": [f"{side}{pair}-{name}" for name in range(names)]} for side in "ab"
                ]
            }
            for pair in range(pairs)
        ]
    }


POISONED: dict[str, tuple[tuple[bytes, ...], str]] = {
    "one id twice": ((a_row(id="k"), a_row(id="k", content="y")), "id: k is that of line 1"),
    "the name of a row without one": (
        (a_row(), a_row(id="line-1", content="y")),
        "id: line-1 is that of line 1",
    ),
    "rows that contradict each other": ((a_row(), a_row(expected="b")), "contradicts that of"),
    "one prompt that counts twice": ((a_row(id="a"), a_row(id="b")), "no prompt counts twice"),
    "a line of 64 MiB": (
        (b'{"a":"' + b"x" * (MAX_SUITE_BYTES - 8) + b'"}',),
        "more than 512 KiB",
    ),
    "a file of more": ((b"x" * (MAX_SUITE_BYTES + 1),), "more than 64 MiB"),
    "a million empty lines": ((b"\n" * 1_000_000,), "more than 100000 lines"),
    "deep nesting": ((b"[" * 400_000,), "nested too deeply"),
    "a number of many digits": ((a_row(weight=7).replace(b"7", b"1" * 5000),), "4300 digits"),
    "a schema of elsewhere": (
        (a_schema({"$ref": "http://evil.example/s.json"}),),
        "Retrieval is disabled",
    ),
    "a schema of this disk": ((a_schema({"$ref": "file:///etc/passwd"}),), "stands for itself"),
    "a meta-schema of elsewhere": (
        (a_schema({"$schema": "http://evil.example/s.json"}),),
        "stands for itself",
    ),
    "references that double": ((a_schema(doubled_references(40)),), "references and alternatives"),
    "alternatives that multiply": (
        (a_schema(negated_alternatives(6)),),
        "references and alternatives",
    ),
    "many fields that need the same names": (
        (
            a_schema(
                {
                    "dependentRequired": {
                        f"a{field}": [f"b{n}" for n in range(9)] for field in range(500)
                    }
                }
            ),
        ),
        "references and alternatives",
    ),
    "fields that need names of their own": (
        (a_schema(dependent_names(16, 16)),),
        "references and alternatives",
    ),
    "fields that need schemas": (
        (a_schema({"dependentSchemas": {f"a{n}": {"required": [f"b{n}"]} for n in range(16)}}),),
        "references and alternatives",
    ),
    "fields that need names, as of draft 7": (
        (a_schema({"dependencies": dependent_names(16, 16)["dependentRequired"]}),),
        "references and alternatives",
    ),
    "few alternatives of many names": (
        (a_schema(long_alternatives(10, 100)),),
        "line 1: expected: the schema has 11 keywords of alternatives and requires 2000 names",
    ),
    "a thousand patterns of a schema": (
        (
            a_schema(
                {"properties": {f"p{n}": {"pattern": f"^[a-z]{{1,1000}}{n}$"} for n in range(1000)}}
            ),
        ),
        "line 1: expected: the schema has 1000 patterns, limit 100",
    ),
    "schemas that multiply, one for each row": (
        tuple(
            a_row(scorer="jsonSchema", id=str(number), content=str(number), expected=schema)
            for number in range(100)
            for schema in [{"anyOf": [{"const": f"{number}{name}"} for name in "abcdefgh"]}]
        ),
        "different schemas of the suite until this row have 328 references and alternatives",
    ),
    "a schema of many names for each row": (
        tuple(
            a_row(
                scorer="jsonSchema", id=str(n), content=str(n), expected={"title": str(n) * 100_000}
            )
            for n in range(50)
        ),
        "bytes, limit 4194304",
    ),
    "a thousand patterns": (
        tuple(a_regex("x" * 700 + str(n), content=str(n)) for n in range(1000)),
        "until this row take more than 100 million steps",
    ),
    "a thousand patterns that are too large": (
        tuple(a_regex(r"\pL" * 300 + str(n), content=str(n)) for n in range(1000)),
        "too large a regular expression",
    ),
    "a long example of a large pattern": (
        (a_regex("[ab]*a[ab]{1000}c", example="ab" * 100_000 + "a" * 1001 + "c"),),
        "line 1: expected: the regular expressions of the suite until this row take more than",
    ),
    "a pattern of a schema that backtracks": (
        (a_schema({"type": "string", "pattern": "(a+)+$(?=b)"}),),
        "stands for itself",
    ),
    "a pattern of a schema that explodes": (
        (a_schema({"type": "string", "pattern": "((a{1000}){1000}){1000}"}),),
        "stands for itself",
    ),
    "a pattern that explodes": ((a_regex("((a{1000}){1000}){1000}"),), "RE2"),
    "a pattern of 300 kB": (
        (a_regex("(a|b)?" * 50_000, example="ab"),),
        "too large a regular expression",
    ),
    "the name of a field of 3 kB": ((a_row(**{"x" * 3000: 1}),), "1 broken line"),
    "the name of a field that is no text": ((a_row(**{"\ud800": 1}),), "unicode"),
    "names of control characters": (
        tuple(a_row(id="\u2028" * 128, content=str(number)) for number in range(9)),
        "8 broken lines",
    ),
    "all weight on nothing": ((a_row(weight=0),), "weight"),
}


@pytest.mark.parametrize("poison", POISONED)
def test_a_poisoned_suite_is_refused_soon_and_with_its_reason(poison: str) -> None:
    rows, words = POISONED[poison]
    fault = fault_of(*rows)
    assert words in fault


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-Infinity", "1e999", "-1", "1001"])
def test_no_weight_is_without_bounds(weight: str) -> None:
    fault_of(a_row(weight=7).replace(b"7", weight.encode()))


@pytest.mark.parametrize(
    "stratum", ["total", "small", "small\u200b", "\uff41ll", "\u0430ll", "all\n", "a" * 41, "", "-"]
)
def test_no_stratum_looks_like_another_or_like_a_sum(stratum: str) -> None:
    assert "stratum" in fault_of(a_row(stratum=stratum))


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "(?:a?){400}a{400}", "[ab]*a[ab]{300}c"])
def test_a_regular_expression_that_explodes_elsewhere_does_not_here(pattern: str) -> None:
    with soon():
        score = a_suite(a_regex(pattern, example="x" * 9 + "y" + "a" * 600 + "c")).prompts[0].scorer
        assert score is not None
        score(ModelAnswer(text="ab" * 8_000))


@pytest.mark.parametrize(
    "answer",
    ["[" * 100_000, "1" * 5000, '"\\ud800"', "1e999", "NaN", '{"a":' * 60 + "{}" + "}" * 60],
)
def test_an_answer_of_hostile_json_is_wrong_and_ends_nothing(answer: str) -> None:
    parts = {"a": {"$ref": "#"}}
    schema = {"type": ["object", "string"], "properties": parts, "minProperties": 1}
    score = compile_scorer("jsonSchema", schema, None, ())
    assert score is not None
    with soon():
        assert score(ModelAnswer(text=answer)) == 0


def test_the_last_number_of_a_mebibyte_of_numbers_is_found_soon() -> None:
    score = compile_scorer("number", 6, None, ())
    assert score is not None
    with soon():
        assert score(ModelAnswer(text="5 " * 500_000 + "6")) == 1
