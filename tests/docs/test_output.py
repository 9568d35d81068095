"""The comparison of printed output with the output on a page."""

import pytest

from docs_tests.output import matches


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("chat   True   2\n", "chat True      2   \n\n"),
        ("AGE\n9s\n", "AGE\n2m14s\n"),
        ("at 2026-11-20T16:13:07Z\n", "at 2027-01-02T03:04:05Z\n"),
        ("from 2026-11-20 15:12:11 on\n", "from 2027-01-02 03:04:05 on\n"),
        ("http://127.96.0.1:8000\n", "http://10.0.0.7:8000\n"),
        ("spent … of 25 USD\n", "spent 0.0031 of 25 USD\n"),
        ("first\n…\nlast\n", "first\n1\n2\nlast\n"),
        ("…\nlast\n", "last\n"),
    ],
)
def test_what_differs_each_time_is_ignored(shown: str, printed: str) -> None:
    assert matches(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("replicas 2\n", "replicas 3\n"),
        ("$/H 0.4795\n", "$/H 0.7192\n"),
        ("Answered\n", "NotAnswered\n"),
        ("first\n", "first\nsecond\n"),
        ("first\nsecond\n", "first\n"),
        ("9s\n", "soon\n"),
        ("a.b\n", "aXb\n"),
        ("spent … of 25 USD\n", "spent 1 of 30 USD\n"),
        ("first\n…\nlast\n", "first\n1\n2\n"),
        ("one …\n", "one\ntwo\n"),
    ],
)
def test_another_word_number_or_line_does_not_match(shown: str, printed: str) -> None:
    assert not matches(shown, printed)
