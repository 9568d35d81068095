"""Slices that a service stands on, while their node is partitioned."""

from dataclasses import replace

import pytest

from tessera.domain.hardware.pools import discover
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.placement.placement import place
from tests.builders import NOW, a_node, a_pool, a_spec
from tests.layout_builders import a_planned_pool


def variant_while(current: str | None, taints: frozenset[str]) -> str:
    """Return where a service goes as its node has no `1g.10gb`, beside a dearer whole GPU."""
    pools = [a_planned_pool(), a_pool("spare", "9.00")]
    node = replace(a_node("a100", {"3g.40gb": 1}), taints=taints)
    decision = place(
        a_spec("hf://meta-llama/Llama-3.2-1B-Instruct"),
        discover(pools, [node, a_node("spare", whole=1)], NOW.date()),
        namespace="team-a",
        current=current,
        min_replicas=0,
        used_devices={("a100", "nvidia.com/mig-3g.40gb"): 1},
    )
    assert decision.choice is not None
    return decision.choice.variant


@pytest.mark.parametrize(
    ("current", "taints", "variant"),
    [
        ("a100-1g-10gb", {TAINT}, "a100-1g-10gb"),
        # Nothing brings them back.
        ("a100-1g-10gb", set(), "a100-3g-40gb"),
        # One that stands elsewhere waits for no layout.
        ("a100-2g-20gb", set(), "a100-3g-40gb"),
        (None, {TAINT}, "a100-3g-40gb"),
    ],
)
def test_slices_that_are_away_for_minutes_keep_who_stands_there(
    current: str | None, taints: set[str], variant: str
) -> None:
    assert variant_while(current, frozenset(taints)) == variant
