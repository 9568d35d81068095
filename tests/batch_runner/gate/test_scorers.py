"""Scores of answers, hostile ones among them."""

import json
import time
from typing import Any

import pytest

from tessera.batch_runner.gate.scorers import ModelAnswer, ToolCall, compile_scorer

DOCUMENTS = ("a", "b", "c", "d")
CALL = {"name": "weather", "arguments": {"city": "Bern", "days": 2}}


def score(name: str, expected: Any, answer: ModelAnswer | str, example: str | None = None) -> float:
    scorer = compile_scorer(name, expected, example, DOCUMENTS)
    assert scorer is not None
    return scorer(ModelAnswer(text=answer) if isinstance(answer, str) else answer)


def a_call(arguments: str, name: str = "weather") -> ModelAnswer:
    return ModelAnswer(tool_calls=(ToolCall(name=name, arguments=arguments),))


@pytest.mark.parametrize(
    ("name", "expected", "right", "wrong"),
    [
        ("exact", "Bern", " Bern\n", "bern"),
        ("exact", ["yes", "Yes"], "Yes", "Yes, I think"),
        ("contains", ["red", "blue"], "blue and red", "red"),
        ("regex", r"^\d{4}-\d{2}$", "2026-11", "2026-11-01"),
        ("number", 1234.5, "That is 7 boxes, so 1,234.50", "1234.5 is wrong, it is 7"),
        ("number", {"value": 10, "tolerance": 0.5}, "about 10.4", "about 10.6"),
        ("number", -3, "x = -3", "no number"),
        ("jsonSchema", {"type": "object", "required": ["a"]}, '{"a": 1}', "```{}```"),
        (
            "choice",
            {"choices": ["A", "B"], "answer": "B"},
            ModelAnswer(text="A", logprobs={" A": -2.0, "B": -0.3, "Certainly": -0.1}),
            ModelAnswer(text="B", logprobs={" A": -0.1, "B": -0.3}),
        ),
        ("choice", {"choices": ["A", "B"], "answer": "B"}, "B", "The answer is B"),
        ("toolCall", CALL, a_call('{"days": 2.0, "city": "Bern"}'), a_call('{"city": "Bern"}')),
        ("toolCall", {"name": "weather"}, a_call(""), a_call("{}", "news")),
        ("toolCall", CALL, a_call(json.dumps(CALL["arguments"])), "weather(Bern, 2)"),
        (
            "toolCall",
            {"name": "weather", "schema": {"required": ["city"]}},
            a_call('{"city": "x"}'),
            a_call('{"town": "x"}'),
        ),
    ],
)
def test_a_right_answer_has_the_score_1_and_a_wrong_one_0(
    name: str, expected: Any, right: ModelAnswer | str, wrong: ModelAnswer | str
) -> None:
    assert (score(name, expected, right), score(name, expected, wrong)) == (1, 0)


def test_a_ranking_is_scored_by_its_gain_and_a_repeated_document_counts_once() -> None:
    assert score("ranking", [2, 0], ModelAnswer(ranking=(0, 2, 1, 3))) == 1
    assert score("ranking", [2], ModelAnswer(ranking=(1, 2))) == pytest.approx(0.63, abs=0.01)
    repeated = ModelAnswer(ranking=(2, 2, 2, 9, -1))
    assert score("ranking", [2, 0], repeated) == pytest.approx(0.61, abs=0.01)


@pytest.mark.parametrize(
    ("name", "expected", "part"),
    [
        ("exact", "", "not empty"),
        ("exact", 3, "not empty"),
        ("contains", [], "not empty"),
        ("contains", "x" * 2_000_000, "no answer is as long"),
        ("regex", "(", "no regular expression"),
        ("regex", r"(a)\1", "no regular expression"),
        ("regex", "(((a{100}){100}){100})", "no regular expression"),
        ("regex", "(x?){1000}y", "too large"),
        ("regex", "a^b", "no text was found"),
        ("regex", "$.", "no text was found"),
        ("jsonSchema", {"type": "strin"}, "no schema"),
        ("jsonSchema", True, "which is an object"),
        ("jsonSchema", {"minimum": 3, "maximum": 2, "type": "number"}, "no value is valid"),
        ("jsonSchema", {"$ref": "https://example.com/schema.json"}, "no schema"),
        ("jsonSchema", {"$ref": "file:///etc/passwd"}, "no schema"),
        ("jsonSchema", {"pattern": "(?=a)a"}, "no schema"),
        ("number", {"value": 1, "tolerance": float("nan")}, "finite"),
        ("number", {"value": 1, "tolerance": -1}, "below 0"),
        ("number", True, "finite"),
        ("number", 10**400, "finite"),
        ("choice", {"choices": [], "answer": "A"}, "2 to 20"),
        ("choice", {"choices": ["A", "B"], "answer": "C"}, "one of choices"),
        ("choice", {"choices": ["A", "A"], "answer": "A"}, "one of choices"),
        ("toolCall", {"arguments": {}}, "write name"),
        ("toolCall", {"name": "f", "schema": {"not": {}}}, "no value is valid"),
        ("ranking", [0, 1, 2, 3], "not all"),
        ("ranking", [7], "not all"),
        ("ranking", [], "not all"),
        ("judge", "", "what makes an answer good"),
    ],
)
def test_what_no_answer_can_have_is_refused(name: str, expected: Any, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        compile_scorer(name, expected, None, DOCUMENTS)


def test_an_expression_that_no_text_is_found_for_needs_an_example_that_it_matches() -> None:
    expression = r"^(?:[a-z]+ ){40}end$"
    with pytest.raises(ValueError, match="example"):
        compile_scorer("regex", expression, None, ())
    assert score("regex", expression, "a " * 40 + "end", example="b " * 40 + "end") == 1
    with pytest.raises(ValueError, match="wrong by expected"):
        compile_scorer("exact", "a", "b", ())


@pytest.mark.parametrize(
    ("name", "expected", "text"),
    [
        ("regex", r"^(a|a)+$", "a" * 1_000_000 + "b"),
        ("regex", r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 1_000_000),
        ("jsonSchema", {"pattern": "^(a+)+$", "type": "string"}, json.dumps("a" * 900_000 + "b")),
        ("jsonSchema", {"type": "array", "maxItems": 2}, "[" * 500_000),
        ("jsonSchema", {"uniqueItems": True, "maxItems": 9}, json.dumps([*range(100_000)])),
        ("jsonSchema", {"type": "string", "maxLength": 0}, '"\\ud800"'),
        ("jsonSchema", {"type": "number", "maximum": 2}, "9" * 100_000),
        ("jsonSchema", {"type": "number"}, "NaN"),
        ("number", 1, "1" * 1_000_000),
        ("number", 1, "1e999"),
        ("number", 1, "1," * 500_000),
        ("exact", "a", "\ud800"),
        ("contains", "a\nb", "\x00" * 1_000_000),
    ],
)
def test_a_hostile_answer_is_wrong_and_takes_little_time(
    name: str, expected: Any, text: str
) -> None:
    begin = time.process_time()
    assert score(name, expected, text) == 0
    assert time.process_time() - begin < 0.5
