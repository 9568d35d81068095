"""The architecture page names every package, and its walks follow the imports."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "operator" / "tessera"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^## (Walk \d): [^\n]*\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))

# A step that starts so is reached through the cluster or a Protocol, which no import shows.
HOP = re.compile(r"through the (API server|port): ")


def steps(walk: str) -> list[tuple[str, bool]]:
    """The modules of a walk in order, each with whether a hop leads to it."""
    items = re.findall(r"^\d+\. (.*?)(?=^\d+\. |\n\n|\Z)", walk, re.MULTILINE | re.DOTALL)
    return [
        (match[1], bool(HOP.match(item)))
        for item in items
        if (match := re.search(r"`([\w/]+\.py)`", item))
    ]


def imports(module: str) -> set[str]:
    """Modules of the product that a module imports, as paths."""
    tree = ast.parse((PRODUCT / module).read_text(encoding="utf-8"))
    return {
        path
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tessera.")
        for path in _paths(node)
    }


def _paths(node: ast.ImportFrom) -> Iterator[str]:
    base = (node.module or "").removeprefix("tessera.").replace(".", "/")
    yield f"{base}.py"
    yield from (f"{base}/{alias.name}.py" for alias in node.names)


def jumps(walk: list[tuple[str, bool]]) -> list[str]:
    """Steps that neither import an earlier step nor are imported by one, and are no hop."""
    modules = [module for module, _ in walk]
    return [
        module
        for index, (module, hop) in enumerate(walk)
        if index
        and not hop
        and not any(
            module in imports(earlier) or earlier in imports(module) for earlier in modules[:index]
        )
    ]


def test_there_are_three_walks_of_more_than_ten_steps() -> None:
    assert [len(steps(walk)) > 10 for walk in WALKS.values()] == [True] * 3


@pytest.mark.parametrize("name", WALKS)
def test_each_step_of_a_walk_follows_an_import(name: str) -> None:
    assert jumps(steps(WALKS[name])) == []


def test_a_step_that_no_import_leads_to_is_caught() -> None:
    strayed = [("reconcile/loop.py", False), ("domain/money.py", False)]
    assert jumps(strayed) == ["domain/money.py"]


@pytest.mark.parametrize("layer", ["domain", "gateway"])
def test_every_package_of_a_large_layer_is_named_once(layer: str) -> None:
    packages = {path.parent.name for path in (PRODUCT / layer).glob("*/__init__.py")}
    table = PAGE.partition(f"## The packages of `{layer}`")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(packages - {"data"})


def test_every_command_is_named() -> None:
    packages = {path.parent.name for path in (PRODUCT / "cli").glob("*/__init__.py")}
    [row] = re.findall(r"^\| `cli` \| `tessera (.*?):", PAGE, re.MULTILINE)
    assert set(re.findall(r"\w+", row)) == packages
