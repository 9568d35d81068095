"""The build of the site refuses planted faults."""

import shutil
from pathlib import Path

import pytest

from docs import build
from environments import ROOT

PLANTED = {
    "[x](nowhere.md)": "nowhere.md",
    "[x](faq.md#nowhere)": "#nowhere",
    "[x](../nowhere.py)": "no file ../nowhere.py",
    '<img src="https://example.com/x.png">': "fetched from other hosts",
    "<!-- README: No such part -->\n<!-- end -->": "No such part",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the sources of the site."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "tools").mkdir()
    for name in ("mkdocs.yml", "README.md", "tools/docs_hooks.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("e2e", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.long
def test_the_site_builds(copy: Path) -> None:
    assert build(copy) == ""
    assert "a real API server" in (copy / "site" / "verified.html").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fault_is_refused_and_named(copy: Path, planted: str) -> None:
    with (copy / "docs" / "glossary.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{planted}\n")
    assert PLANTED[planted] in build(copy)


@pytest.mark.long
def test_a_page_outside_the_menu_is_refused_and_named(copy: Path) -> None:
    (copy / "docs" / "tasks" / "new.md").write_text("# New\n", encoding="utf-8")
    assert "tasks/new.md" in build(copy)
