"""The installed chart on one world, for all scenarios."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from demo.stage import EXAMPLES, ROOT, Stage, install
from scenarios.actions import ScenarioNamespace
from world import World, start
from world.api import connect

FLEET = ROOT / "e2e" / "demo" / "fleet.yaml"
_numbers = itertools.count(1)
_prepared_pids: set[int] = set()


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    with start(fleet=FLEET) as world:
        yield world


@pytest.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    """Tessera as Helm installed it, and the pools of the examples."""
    async with connect(world.kubeconfig) as api:
        stage = Stage(world, api, print)
        if world.pid not in _prepared_pids:
            await install(stage)
            await stage.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
            _prepared_pids.add(world.pid)
        yield stage


@pytest.fixture
async def namespace(stage: Stage) -> AsyncIterator[ScenarioNamespace]:
    """A namespace for one test, deleted afterwards with everything in it."""
    name = f"scenario-{next(_numbers)}"
    namespace = ScenarioNamespace(stage, name)
    await stage.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield namespace
    finally:
        await namespace.delete()
