"""The demos run as tests, so that `make demo` keeps working."""

from collections.abc import AsyncIterator

import pytest

from demo.cluster import EXAMPLES, InstalledCluster, clear, install
from demo.mission import find_demo
from demo.scene import play

_ON_REQUEST = ("batch", "gateway")


@pytest.fixture
async def stage(cluster: InstalledCluster) -> AsyncIterator[InstalledCluster]:
    """The shared world as that of the demos: with a gateway, without H100.

    It is as before afterwards, without tenants and services.
    """
    await install(cluster, "gateway.enabled=true")
    await cluster.run("kubectl", "delete", "acceleratorpool", "h100-ondemand")
    yield cluster
    await clear(cluster)
    await cluster.run("kubectl", "delete", "tenantbudgets", "--all")
    await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
    await install(cluster)


async def test_a_service_is_placed_and_follows_its_load(stage: InstalledCluster) -> None:
    await play(stage, find_demo("scale").acts)


@pytest.mark.parametrize(
    "demo",
    [
        "quality",
        *(pytest.param(demo, marks=pytest.mark.full) for demo in _ON_REQUEST),
    ],
)
async def test_the_other_demos_succeed(stage: InstalledCluster, demo: str) -> None:
    await play(stage, find_demo(demo).acts)
