"""Which requests are as a condition of a target says, and how demanding their text is."""

import pytest

from tessera.api.model_route import MAX_RULE_NUMBER, RouteCondition, RouteScore
from tessera.domain.routes.opening import RequestOpening
from tessera.domain.routes.rules import holds, score

TERMS = RouteScore()


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("", 1),
        ("analyze X", 2),
        ("analyze and compare X", 3),
        ("ANALYZE and Compare X", 3),
        ("x" * 300, 1),
        ("x" * 301, 2),
        ("Who? When?", 1),
        ("Who? When? Why?", 2),
        ("x" * 298 + "???", 3),
        ("Explain why, step by step, and write code to analyze and compare it." + "?" * 300, 5),
    ],
)
def test_a_score_is_one_and_a_point_for_each_signal(text: str, points: int) -> None:
    assert score(text, TERMS) == points


def test_words_are_signals_as_they_are_written() -> None:
    terms = RouteScore(words=("Prove",), long_from=5, questions_from=1)
    assert score("I prove", terms) == 3
    assert score("prov?", terms) == 3
    assert score("prov", terms) == 1


@pytest.mark.parametrize(
    ("condition", "taken", "refused"),
    [
        ({"maxCharacters": 3}, {"text": "abc"}, {"text": "abcd"}),
        ({"maxCharacters": 0}, {"text": ""}, {"text": " "}),
        ({"maxWords": 2}, {"text": " a\tb\n"}, {"text": "a b c"}),
        ({"maxWords": 1}, {"text": " a "}, {"text": "a b"}),
        ({"maxWords": 0}, {"text": "  "}, {"text": "a"}),
        ({"maxQuestionMarks": 1}, {"text": "a?"}, {"text": "a? b?"}),
        ({"tools": False}, {}, {"tools": True}),
        ({"tools": True}, {"tools": True}, {}),
        ({"media": False}, {}, {"media": True}),
        ({"tags": {"app": "faq"}}, {"tags": {"app": "faq", "a": "b"}}, {"tags": {"app": "x"}}),
        ({"tags": {"app": "faq"}}, {"tags": {"app": "faq"}}, {}),
        ({"maxCharacters": MAX_RULE_NUMBER}, {}, {"text": "x" * (MAX_RULE_NUMBER + 1)}),
        ({"maxWords": 1, "tools": False}, {"text": "a"}, {"text": "a", "tools": True}),
        ({}, {"text": "any"}, None),
    ],
)
def test_all_that_a_condition_gives_has_to_hold(
    condition: dict[str, object], taken: dict[str, object], refused: dict[str, object] | None
) -> None:
    when = RouteCondition.model_validate(condition)
    assert holds(when, RequestOpening(**taken), 1)  # type: ignore[arg-type]
    if refused is not None:
        assert not holds(when, RequestOpening(**refused), 1)  # type: ignore[arg-type]


def test_a_score_at_the_limit_still_holds() -> None:
    when = RouteCondition(max_score=2)
    assert [holds(when, RequestOpening(), points) for points in range(1, 6)] == [
        *(True, True),
        *(False, False, False),
    ]
