"""One world with Tessera, on which the scenes play at the same time."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from demo.cluster import InstalledCluster
from promises.installation import create_pools, install_release
from promises.scenes import SCENES, Stage
from world import World, start
from world.api import Api, connect

FLEET = Path(__file__).parent / "fleet.yaml"


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    with start(fleet=FLEET) as world:
        yield world


@pytest.fixture(scope="package")
def stage(world: World, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Play those scenes that are tested, from now on."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = [name for name in SCENES if any(param.get("scene") == name for param in params)]
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_installed(world)) as api,
    ):
        stage = Stage(portal, world, api)
        for name in names:
            stage.play(name, SCENES[name])
        try:
            yield stage
        finally:
            for result in stage.results.values():
                result.cancel()


@asynccontextmanager
async def _installed(world: World) -> AsyncIterator[Api]:
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, print)
        await install_release(cluster)
        await create_pools(cluster)
        yield api
