"""What Tessera uses of an engine exists in every version with a table."""

import itertools
import re
from pathlib import Path

import pytest

from tessera.domain.vllm.facts import EngineFacts, is_older, known_versions, version_facts

ROOT = Path(__file__).parents[3]


def facts_of(version: str) -> EngineFacts:
    facts = version_facts(version)
    assert facts is not None
    return facts


def metrics_in_use() -> set[str]:
    """Return the names of vLLM's metrics in the code of the product and the rules of its chart."""
    files = [*ROOT.glob("operator/tessera/**/*.py"), *ROOT.glob("charts/tessera/rules/*.yaml")]
    texts = (file.read_text(encoding="utf-8") for file in files)
    return {name for text in texts for name in re.findall(r"vllm:[a-z_]*[a-z]", text)}


def test_the_versions_are_in_order_and_the_default_has_two_before_it() -> None:
    versions = known_versions()
    assert versions == ("0.30.0", "0.31.0", "0.32.0", "0.33.0")
    assert all(is_older(*pair) for pair in itertools.pairwise(versions))


@pytest.mark.parametrize("version", known_versions())
def test_every_metric_in_use_is_one_of_the_version(version: str) -> None:
    metrics = facts_of(version).metrics
    exposed = {
        metric.name + ending
        for metric in metrics.values()
        for ending in (("_bucket", "_sum", "_count", "") if metric.type == "histogram" else ("",))
    }
    assert metrics_in_use() - exposed == set()


@pytest.mark.parametrize("version", known_versions())
def test_a_table_has_facts_and_no_texts(version: str) -> None:
    for flag in facts_of(version).flags:
        words = [*flag.options, flag.dest, *map(str, flag.choices or ())]
        assert not [word for word in words if " " in word], flag.name
