"""Each line of the page on security names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SECTIONS = {"## A hostile tenant, editor, or node": 30, "## A hostile client of the gateway": 10}
NAMED_TESTS = sorted(set(re.findall(r"`((?:tests|e2e)/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("path", "name"), NAMED_TESTS)
def test_a_named_test_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in tree.body if isinstance(node, functions)}


@pytest.mark.parametrize(("title", "count"), SECTIONS.items())
def test_every_claim_names_its_test(title: str, count: int) -> None:
    section = PAGE.partition(title)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not re.match(r"\| (\w cannot|---)", row)]
    assert len(claims) > count
    assert not [claim for claim in claims if "::test_" not in claim]
