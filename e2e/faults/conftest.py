"""One world for all scenes: nodes of its own for each repartition, and spot nodes for batches."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from demo.cluster import InstalledCluster, install
from faults import scenes
from faults.layout_fleet import nodes_of
from world import World, start
from world.api import connect

_prepared_pids: set[int] = set()


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[World]:
    layouts = (*scenes.SHORT_LAYOUTS, *_full(pytestconfig))
    nodes = [{"name": "control", "kind": "cpu"}, *map(nodes_of, layouts), scenes.SPOT_NODES]
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    with start(fleet=path) as world:
        yield world


def _full(pytestconfig: pytest.Config) -> tuple[str, ...]:
    return scenes.FULL_LAYOUTS if pytestconfig.getoption("--full") else ()


@pytest.fixture
async def cluster(world: World) -> AsyncIterator[InstalledCluster]:
    """Tessera as Helm installed it, with agents that partition, and a pool for batches."""
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, print)
        if world.pid not in _prepared_pids:
            await install(
                *(cluster, "mig.enabled=true", "mig.managerNamespace=gpu-operator"),
                *("node.enabled=true", "node.partition=true"),
            )
            await api.apply_manifest(scenes.SPOT_POOL, "kubectl")
            _prepared_pids.add(world.pid)
        yield cluster
