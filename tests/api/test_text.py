"""Counts agree with their nouns, and labels hold numbers or none."""

import pytest

from tessera.api.text import counted, parse_decimal


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(number, "replica") for number in (0, 1, 2)] == [
        "0 replicas",
        "1 replica",
        "2 replicas",
    ]
    assert counted(2, "policy", "policies") == "2 policies"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0", 0), ("16", 16), ("17", None), ("", None), ("-1", None)),
        *(("²", None), ("٣", None), ("9" * 5000, None)),
    ],
)
def test_a_label_holds_a_number_up_to_a_bound_or_none(text: str, number: int | None) -> None:
    assert parse_decimal(text, 16) == number
