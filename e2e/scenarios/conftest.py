"""The installed chart on one world, for all scenarios."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from demo.cluster import EXAMPLES, ROOT, InstalledCluster, install
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import Gateway, create_key, ready_pods
from scenarios.lifecycle import write_fleet
from world import World, start
from world.api import connect

FLEET = ROOT / "e2e" / "demo" / "fleet.yaml"
_numbers = itertools.count(1)
_prepared_pids: set[int] = set()


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    with start(fleet=FLEET) as world:
        yield world


@pytest.fixture(scope="package")
def small_world(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[World]:
    """A world with a spot node for each batch of a test, and for each of their next attempts."""
    folder, floors = tmp_path_factory.mktemp("fleet"), bool(pytestconfig.getoption("--full"))
    with start(fleet=write_fleet(folder, spot=12, floors=floors)) as world:
        yield world


@pytest.fixture
async def cluster(world: World) -> AsyncIterator[InstalledCluster]:
    """Tessera as Helm installed it, and the pools of the examples."""
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, print)
        if world.pid not in _prepared_pids:
            await install(cluster)
            await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
            _prepared_pids.add(world.pid)
        yield cluster


@pytest.fixture
async def namespace(cluster: InstalledCluster) -> AsyncIterator[ScenarioNamespace]:
    """A namespace for one test, deleted afterwards with everything in it."""
    name = f"scenario-{next(_numbers)}"
    namespace = ScenarioNamespace(cluster, name)
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield namespace
    finally:
        await namespace.delete()


@pytest.fixture
async def gateway(
    cluster: InstalledCluster, namespace: ScenarioNamespace
) -> AsyncIterator[Gateway]:
    """The gateway with SQLite, and a tenant that may use it."""
    await install(cluster, "gateway.enabled=true")
    (pod,) = await ready_pods(cluster, 1)
    async with a_budget(namespace, "100000"):
        key = await create_key(namespace, "first")
        address = pod["status"]["podIP"]
        yield Gateway(namespace, f"http://{address}:8443/v1", address, key)
