"""A world of its own, on which each module installs the chart as it needs it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chart_tests.release import Release
from demo.cluster import InstalledCluster
from world import World, start
from world.api import connect

FLEET = Path(__file__).parent / "fleet.yaml"


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    with start(fleet=FLEET) as world:
        yield world


@pytest.fixture
async def release(world: World) -> AsyncIterator[Release]:
    """Helm on this world; installs nothing yet."""
    async with connect(world.kubeconfig) as api:
        yield Release(InstalledCluster(world, api, print))
