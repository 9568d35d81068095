"""Counts agree with their nouns, and labels hold numbers or none."""

import pytest

from tessera.api.text import counted, one_line, parse_decimal, plain_text


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(number, "replica") for number in (0, 1, 2)] == [
        "0 replicas",
        "1 replica",
        "2 replicas",
    ]
    assert counted(2, "policy", "policies") == "2 policies"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("exceeded quota:  small", "exceeded quota:  small"),
        ("a\x1b[31mred\r\nb\x00c\u202ed\ud800", "a [31mred b c d"),
        ("x" * 41, "x" * 39 + "…"),
    ],
)
def test_words_of_others_are_one_line_that_no_terminal_executes(text: str, line: str) -> None:
    assert one_line(text, 40) == line


def test_words_of_others_keep_their_lines_where_several_may_stand() -> None:
    assert plain_text("a\r\n  b\x1b[0m\tc", 40) == "a \n  b [0m c"
    assert plain_text("a\nb" * 30, 9) == "a\nba\nba\n…"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0", 0), ("16", 16), ("17", None), ("", None), ("-1", None)),
        *(("²", None), ("٣", None), ("9" * 5000, None)),
    ],
)
def test_a_label_holds_a_number_up_to_a_bound_or_none(text: str, number: int | None) -> None:
    assert parse_decimal(text, 16) == number
