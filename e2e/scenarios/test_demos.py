"""The demos run as tests, so that `make demo` keeps working."""

import pytest

from demo.__main__ import DEMOS
from demo.cluster import InstalledCluster, all_ready, apply_examples, clear, install


@pytest.fixture
async def examples(cluster: InstalledCluster) -> InstalledCluster:
    """The examples, applied as a new user would."""
    await apply_examples(cluster)
    await all_ready(cluster)
    return cluster


async def test_all_steps_of_the_main_demo_succeed(examples: InstalledCluster) -> None:
    for _, step in DEMOS["main"]:
        await step(examples)
    await clear(examples)


@pytest.mark.full
@pytest.mark.parametrize("demo", ["budget", "batch"])
async def test_the_other_demos_succeed(cluster: InstalledCluster, demo: str) -> None:
    for _, step in DEMOS[demo]:
        await step(cluster)
    await clear(cluster)


@pytest.mark.full
async def test_the_demo_of_the_gateway_succeeds(cluster: InstalledCluster) -> None:
    for _, step in DEMOS["gateway"]:
        await step(cluster)
    await clear(cluster)
    await cluster.run("kubectl", "delete", "tenantbudgets", "--all")
    # The tests after it share the world.
    await install(cluster)
