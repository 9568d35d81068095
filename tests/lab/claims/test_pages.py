"""The pages of the claims: few, short, and each claim at an anchor of its own."""

import re

from claims_pages import pages
from tessera_lab.claims.claim import read_claims
from tessera_lab.claims.record import INT4_RECORD, read_results
from tessera_lab.claims.text import figure_lines

PAGES = {path.removeprefix("docs/claims/"): text for path, text in pages().items()}
INDEX = PAGES["index.md"]


def test_each_claim_is_on_the_page_and_at_the_anchor_that_the_index_names() -> None:
    links = re.findall(r"^\| \[(H\d{2})\]\(([\w-]+\.md)#(h\d{2})\)", INDEX, re.MULTILINE)
    assert [name for name, _, _ in links] == list(read_claims().by_id)
    for name, page, anchor in links:
        assert anchor == name.lower()
        assert re.findall(rf"^## {name}$", PAGES[page], re.MULTILINE) == [f"## {name}"]
    assert {page for _, page, _ in links} == PAGES.keys() - {"index.md"}


def test_a_claim_says_its_verdict_and_each_figure() -> None:
    results = read_results()
    for claim in read_claims().claims:
        page = next(text for text in PAGES.values() if f"## {claim.id}\n" in text)
        text = page.partition(f"## {claim.id}\n")[2].partition("\n## ")[0]
        assert claim.text in text
        assert f"**{results[claim.id].verdict}**" in text
        assert all(figure in text for figure in figure_lines(claim, results[claim.id])), claim.id
        measured = read_results(INT4_RECORD).get(claim.id)
        assert ("With the [measured kernel]" in text) == (measured is not None)


def test_the_pages_are_few_and_short() -> None:
    assert len(PAGES) <= 12
    assert sum(len(text.split()) for text in PAGES.values()) <= 5_000
