"""Pages name nothing as lacking that the API has."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tessera.domain.kinds.kinds import KINDS

ROOT = Path(__file__).parents[2]

# How a page would say that users cannot do what a kind is for.
WORDS: Mapping[str, str] = {
    "InferenceService": "model servers?",
    "BatchInference": "batch jobs|spot",
    "AcceleratorPool": "several pools|MIG",
    "TenantBudget": "budgets?|money per key|spending limits?|GPU quota",
    "QualityGate": "gates?|test of a change",
    "ModelRoute": "fallback|routing by rules|weights between models",
    "ModelProvider": "outside providers?|outside models?",
    "PriceList": "prices? per request|prices? of requests|prices per token",
    "NodeLayout": "partitioning",
}


def _passage(page: str, begins: str, ends: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert begins in text, f"{page} has no passage that begins with {begins!r}"
    return text.partition(begins)[2].partition(ends)[0]


def lacking() -> Mapping[str, str]:
    """Return what each page says that Tessera does not have; what it has instead is in brackets."""
    passages = {
        "README.md": _passage("README.md", "Not yet for you if you need", "The API is"),
        "docs/comparison.md": _passage(
            "docs/comparison.md", "## What Tessera does not have", "\n## "
        ),
    }
    faq = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    sentences = re.findall(r"[^.?]*\b(?:has no|does not have|cannot)\b[^.?]*", faq)
    passages["docs/faq.md"] = "\n".join(sentences)
    # A row's second cell names other projects.
    first_cells = re.sub(r"(?m)^\| (.*) \|.*$", r"\1", passages["docs/comparison.md"])
    passages["docs/comparison.md"] = first_cells
    return {page: re.sub(r"\(.*?\)(?=[ ,;.|\n]|$)", "", text) for page, text in passages.items()}


def test_every_kind_has_words_by_which_a_page_would_miss_it() -> None:
    assert sorted(WORDS) == sorted(kind.kind for kind in KINDS)


@pytest.mark.parametrize("kind", sorted(WORDS))
def test_no_page_misses_what_a_kind_is_for(kind: str) -> None:
    pattern = re.compile(rf"\b(?:{WORDS[kind]})\b", re.IGNORECASE)
    matches = {page: pattern.findall(text) for page, text in lacking().items()}
    assert not {page: words for page, words in matches.items() if words}


def test_the_images_that_pages_build_have_the_version_of_the_chart() -> None:
    chart = (ROOT / "charts/tessera/Chart.yaml").read_text(encoding="utf-8")
    version = re.search(r"(?m)^appVersion: \"?(.*?)\"?$", chart)
    assert version is not None
    for page in ("README.md", "docs/tasks/install.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        built = re.findall(r"/tessera/[\w$]+:(\d[\w.]*)", text)
        assert built, page
        assert set(built) == {version[1]}, page
