"""The build of the site refuses planted faults."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import PHONE, WIDE, Browser, Screen, browser, program
from docs import build
from environments import ROOT

PLANTED = {
    "[x](nowhere.md)": "nowhere.md",
    "[x](faq.md#nowhere)": "#nowhere",
    "[x](../nowhere.py)": "no file ../nowhere.py",
}
FOREIGN = '<img src="https://example.com/x.png'


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the sources of the site."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "tools").mkdir()
    for name in ("mkdocs.yml", "tools/docs_hooks.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("e2e", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.long
def test_the_site_builds_and_what_it_would_fetch_from_others_is_named(copy: Path) -> None:
    with (copy / "docs" / "glossary.md").open("a", encoding="utf-8") as page:
        page.write(f'\n{FOREIGN}">\n')
    assert build(copy) == f"fetched from other hosts:\nglossary.html: {FOREIGN}"
    assert "a real API server" in (copy / "site" / "verified.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_planted_faults_and_a_page_outside_the_menu_are_refused_and_named(copy: Path) -> None:
    (copy / "docs" / "tasks" / "new.md").write_text("# New\n", encoding="utf-8")
    with (copy / "docs" / "glossary.md").open("a", encoding="utf-8") as page:
        page.writelines(f"\n{planted}\n" for planted in PLANTED)
    faults = build(copy)
    assert [words for words in (*PLANTED.values(), "tasks/new.md") if words not in faults] == []


PICTURES = sorted((ROOT / "docs" / "figures").glob("*.svg"))
FRAME = '<!doctype html><meta name="viewport" content="width=device-width"><figure>'
needs_browser = pytest.mark.skipif(program() is None, reason="Chromium is not installed")


@pytest.fixture
def opened() -> Iterator[Browser]:
    with browser() as started:
        yield started


def faults(opened: Browser, page: Path) -> Iterator[str]:
    """Yield what does not fit on a page, wide and on a phone, without scripts."""
    for width in (WIDE, PHONE):
        opened.open(page.as_uri(), Screen(width=width))
        yield from (f"{page.name} {width}: {fault}" for fault in opened.faults())


@pytest.mark.full
@needs_browser
def test_every_page_fits_its_screen_and_no_command_is_cut(copy: Path, opened: Browser) -> None:
    assert build(copy) == ""
    pages = sorted((copy / "site").rglob("*.html"))
    assert len(pages) > 50
    assert [fault for page in pages for fault in faults(opened, page)] == []


@pytest.mark.full
@needs_browser
@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_no_text_of_a_picture_is_cut(picture: Path, opened: Browser, tmp_path: Path) -> None:
    page = tmp_path / picture.with_suffix(".html").name
    page.write_text(FRAME + picture.read_text(encoding="utf-8"), encoding="utf-8")
    opened.open(page.as_uri(), Screen())
    assert opened.faults() == []
