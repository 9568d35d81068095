"""Rules for all pages that need no build of the site."""

import json
import re
import textwrap
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs_tests.blocks import Command
from docs_tests.pages import (
    ROUNDS,
    TASKS,
    TUTORIAL,
    WITHOUT_CLUSTER,
    page_of,
    read_page_steps,
    skip_reasons,
)
from environments import ROOT
from tessera.api.meta import GROUP, VERSION
from tessera.domain.kinds.kinds import KINDS

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TYPES = {kind.kind: kind.model for kind in KINDS}
_MANIFEST = re.compile(
    r"^(?P<indent> *)apiVersion: .*\n(?:(?P=indent)(?!```|END$|---$).+\n)*", re.MULTILINE
)


def menu(entry: Any) -> Iterator[str]:
    """Yield the pages of a part of the menu, in order."""
    match entry:
        case str():
            yield entry
        case dict():
            for below in entry.values():
                yield from menu(below)
        case list():
            for below in entry:
                yield from menu(below)
        case _:
            raise AssertionError(entry)


def manifests(text: str) -> Iterator[dict[str, Any]]:
    """Yield every whole manifest of Tessera's kinds on a page: fenced, indented or typed in."""
    for match in _MANIFEST.finditer(text):
        body = yaml.safe_load(textwrap.dedent(match[0]))
        if body["apiVersion"] == f"{GROUP}/{VERSION}":
            yield body


def test_every_page_is_in_the_menu_once() -> None:
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(menu(configuration["nav"])) == PAGES, "add the page to `nav` in mkdocs.yml"


def test_every_task_page_is_tried_or_says_why_not() -> None:
    tasks = {Path(page).stem for page in PAGES if page.startswith("tasks/")}
    assert tasks == {*TASKS, *skip_reasons()}, "see docs/tasks/develop.md, Pages"
    assert not TASKS.keys() & skip_reasons().keys()
    grouped = [*chain(WITHOUT_CLUSTER, *ROUNDS)]
    assert set(grouped) <= TASKS.keys()
    assert len(grouped) == len(set(grouped)), "a page is run once"


@pytest.mark.parametrize("page", [TUTORIAL, *map(page_of, TASKS)])
def test_a_tried_page_can_be_followed_and_what_it_leaves_out_has_a_reason(page: str) -> None:
    assert any(isinstance(step, Command) for step in read_page_steps(page))


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES)])
def test_every_manifest_that_a_page_shows_is_valid(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = list(manifests(text))
    for manifest in shown:
        TYPES[manifest["kind"]].model_validate({"spec": manifest["spec"]})
    assert len(shown) == text.count(f"apiVersion: {GROUP}/{VERSION}"), "none is overlooked"


def test_manifests_are_found() -> None:
    shown = [m for page in PAGES for m in manifests((DOCS / page).read_text(encoding="utf-8"))]
    assert {manifest["kind"] for manifest in shown} == set(TYPES)


def test_the_example_of_layouts_is_the_file_that_its_page_shows() -> None:
    example = (ROOT / "examples" / "mig" / "partition.yaml").read_text(encoding="utf-8")
    page = (ROOT / page_of("repartition")).read_text(encoding="utf-8")
    shown = page.partition('title="partition.yaml"\n')[2].partition("```")[0]
    assert shown
    assert example.endswith(shown)


def test_readme_can_be_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize(
    "page", ["security.md", "benchmarks.md", "tasks/scale.md", "tasks/gateway.md"]
)
def test_a_long_page_begins_with_what_suffices_for_most(page: str) -> None:
    head, *sections = re.split(
        r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert len(head.split()) <= 150
    assert sections


def test_benchmarks_quote_the_figures_that_were_saved_last() -> None:
    page = " ".join((DOCS / "benchmarks.md").read_text(encoding="utf-8").split())
    control, engine = (
        json.loads((DOCS / "figures" / f"{name}.json").read_text(encoding="ascii"))
        for name in ("control", "engine")
    )
    edits = f"an edit takes {control['edit_alone_ms']} ms, but a burst of {control['edits']} up to"
    assert f"{edits} {control['edit_p99_ms'] / 1000:.1f} s" in page
    assert f"| {control['applied_s']:.0f} s; {control['bare_s']:.0f} s |" in page
    assert f"{engine['decode_mape']:.1f} % (goal 5); {engine['prefill_mape']:.1f} %" in page


def test_home_and_readme_show_the_same_first_manifest() -> None:
    home, readme = (
        next(manifests(path.read_text(encoding="utf-8")))
        for path in (DOCS / "index.md", ROOT / "README.md")
    )
    assert home == readme


def test_every_metric_has_a_type_its_labels_and_a_meaning() -> None:
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == page.count("| `tessera_")
    for name, kind, labels, meaning in rows:
        assert kind in ("gauge", "counter", "histogram"), name
        assert re.fullmatch(r"(`\w+`(, `\w+`)*)?", labels), name
        assert meaning.endswith("."), name


@pytest.mark.parametrize(
    "page",
    ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "e2e/world/README.md"],
)
def test_links_of_pages_outside_the_site_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#([^)\s]+))?", text)
    assert links
    for link, anchor in links:
        target = (ROOT / page).parent / link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_file_that_the_architecture_names_exists() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.-]+\.(?:py|md))`", page))
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("[a-z]*/**/*.[pm][yd]")}
    files |= {"README.md"}
    missing = [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)]
    assert len(named) > 30
    assert missing == []


@pytest.mark.parametrize("task", TASKS)
def test_a_task_begins_with_sections_that_the_tutorial_has(task: str) -> None:
    assert {step.section for step in read_page_steps(TUTORIAL, TASKS[task])} == set(TASKS[task])
