"""One world for most tests of the world, a namespace for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import world as worlds
from world.api import Api, connect
from world.testing import WorldNamespace, fresh_namespace

FLEET = Path(__file__).parent / "fleet.yaml"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package")
def world() -> Iterator[worlds.World]:
    """A world; at its end its log must have no error."""
    with worlds.start(fleet=FLEET) as world:
        yield world
        log = (world.folder / "logs" / "world.log").read_text()
    assert "ERROR" not in log, log


@pytest.fixture
async def api(world: worlds.World) -> AsyncIterator[Api]:
    async with connect(world.kubeconfig) as api:
        yield api


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[WorldNamespace]:
    """A namespace for one test."""
    async with fresh_namespace(api) as namespace:
        yield namespace
