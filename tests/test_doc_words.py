"""Pages that grow beyond what one reads are named, with their words and the bound."""

from pathlib import Path

import pytest

from doc_words import BOUNDS, count, violations

PAGES = {
    "README": "README.md",
    "docs without the reference": "docs/faq.md",
    "claims": "docs/claims/mig.md",
    "tasks": "docs/tasks/scale.md",
    "benchmarks and ladders": "docs/ladders.md",
}


def write(root: Path, page: str, words: int) -> None:
    path = root / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# A\n\n" + "word " * (words - 2), encoding="utf-8")


@pytest.mark.parametrize(("group", "page"), PAGES.items())
def test_a_group_may_have_as_many_words_as_its_bound_and_no_more(
    tmp_path: Path, group: str, page: str
) -> None:
    bound = BOUNDS[group]
    write(tmp_path, page, bound)
    assert count(tmp_path)[group] == bound
    assert violations(tmp_path) == []

    write(tmp_path, page, bound + 1)
    assert [words for words in violations(tmp_path) if words.startswith(f"{group}: ")] == [
        f"{group}: {bound + 1:,} words, at most {bound:,}"
    ]


def test_the_words_of_a_group_are_those_of_all_its_pages(tmp_path: Path) -> None:
    for page in ("benchmarks.md", "ladders.md", "ladders-history.md", "tasks/keys.md", "faq.md"):
        write(tmp_path, f"docs/{page}", 100)
    words = count(tmp_path)
    assert words["benchmarks and ladders"] == 300
    assert words["tasks"] == 100
    assert words["docs without the reference"] == 500


def test_generated_reference_pages_may_grow(tmp_path: Path) -> None:
    write(tmp_path, "docs/reference/cli.md", BOUNDS["docs without the reference"] + 1)
    assert violations(tmp_path) == []
