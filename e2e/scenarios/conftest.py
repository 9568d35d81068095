"""The installed chart on one world, for all scenarios."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from demo.stage import EXAMPLES, ROOT, Stage, install
from scenarios.actions import Place
from world import World, start
from world.api import connect

FLEET = ROOT / "e2e" / "demo" / "fleet.yaml"
_numbers = itertools.count(1)
_installed: set[int] = set()


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    with start(fleet=FLEET) as found:
        yield found


@pytest.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    """Tessera as Helm installed it, and the pools of the examples."""
    async with connect(world.kubeconfig) as api:
        made = Stage(world, api, print)
        if world.pid not in _installed:
            await install(made)
            await made.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
            _installed.add(world.pid)
        yield made


@pytest.fixture
async def place(stage: Stage) -> AsyncIterator[Place]:
    """A namespace of its own, gone afterwards with everything in it."""
    name = f"scenario-{next(_numbers)}"
    made = Place(stage, name)
    await stage.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield made
    finally:
        await made.clear()
