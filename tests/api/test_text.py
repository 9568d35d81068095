"""Counts agree with their nouns."""

from tessera.api.text import counted


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(number, "replica") for number in (0, 1, 2)] == [
        "0 replicas",
        "1 replica",
        "2 replicas",
    ]
    assert counted(2, "policy", "policies") == "2 policies"
