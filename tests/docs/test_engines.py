"""The page about engines names every module that knows a word of vLLM."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "operator" / "tessera"
PAGE = (ROOT / "docs" / "decisions" / "engines.md").read_text(encoding="utf-8")
NAMED = {PRODUCT / path for path in re.findall(r"`((?:[\w]+/)+[\w]+(?:\.py)?)`", PAGE)}
# Names of its metrics and of its variables.
WORDS = re.compile(r"\bvllm:|\bVLLM_")


def test_every_module_on_the_page_exists() -> None:
    assert len(NAMED) > 20
    assert sorted(path for path in NAMED if not path.exists()) == []


def test_the_words_of_vllm_stand_in_modules_of_the_page_alone() -> None:
    speaking = {
        path for path in PRODUCT.rglob("*.py") if WORDS.search(path.read_text(encoding="utf-8"))
    }
    assert sorted(speaking - NAMED) == []


def test_every_module_that_may_ask_the_tables_is_on_the_page() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (importers,) = (
        contract["allowed_importers"]
        for contract in config["tool"]["importlinter"]["contracts"]
        if contract["name"] == "Few modules know vLLM"
    )
    paths = {
        PRODUCT.parent / f"{importer.replace('.', '/')}.py"
        for importer in importers
        if not importer.startswith("tessera_lab")
    }
    assert sorted(paths - NAMED) == []
