"""The demo's scenes, played as tests: what `make demo` shows cannot rot."""

import pytest

from demo.__main__ import DEMOS
from demo.cluster import InstalledCluster, all_ready, apply_examples, clear


@pytest.fixture
async def examples(cluster: InstalledCluster) -> InstalledCluster:
    """The examples, applied as a newcomer would."""
    await apply_examples(cluster)
    await all_ready(cluster)
    return cluster


async def test_all_scenes_come_out_as_they_must(examples: InstalledCluster) -> None:
    for _, scene in DEMOS["main"]:
        await scene(examples)
    await clear(examples)


@pytest.mark.parametrize("show", ["budget", pytest.param("batch", marks=pytest.mark.full)])
async def test_the_other_shows_come_out_as_they_must(cluster: InstalledCluster, show: str) -> None:
    for _, scene in DEMOS[show]:
        await scene(cluster)
    await clear(cluster)
