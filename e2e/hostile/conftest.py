"""One world with the installed chart, a tenant at rest, and a hostile one beside him."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from demo.cluster import EXAMPLES, ROOT, InstalledCluster, install
from hostile.bystander import NAME, Bystander
from hostile.identities import HOSTILE, E, Identity, T, rights
from scenarios.actions import ScenarioNamespace
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import PODS
from world import World, start
from world.api import ApiError, connect
from world.testing import eventually

FLEET = ROOT / "e2e" / "demo" / "fleet.yaml"
_bystanders: dict[int, Bystander] = {}


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    with start(fleet=FLEET) as world:
        yield world


@pytest.fixture
async def cluster(world: World) -> AsyncIterator[InstalledCluster]:
    async with connect(world.kubeconfig) as api:
        yield InstalledCluster(world, api, print)


@pytest.fixture
async def bystander(cluster: InstalledCluster) -> AsyncIterator[Bystander]:
    """The tenant at rest; what the hostile one did is cleared away after each test."""
    namespace = ScenarioNamespace(cluster, NAME)
    known = _bystanders.get(cluster.world.pid)
    bystander = Bystander(cluster, namespace)
    if known is None:
        await install(cluster)
        await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
        await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": NAME}})
        for body in rights():
            await cluster.api.apply_manifest(body)
        await bystander.settle()
    else:
        bystander.before = known.before
        bystander.restarts = await bystander.operator_restarts()
    _bystanders[cluster.world.pid] = bystander
    yield bystander
    await clear(cluster)


async def clear(cluster: InstalledCluster) -> None:
    """Delete what the hostile tenant left, also what a finalizer of his holds."""
    await cluster.run("kubectl", "-n", HOSTILE, "delete", "tsvc", "--all", "--wait=false")
    for body in (await cluster.api.get(INFERENCE_SERVICES.path(HOSTILE)))["items"]:
        path = INFERENCE_SERVICES.path(HOSTILE, body["metadata"]["name"])
        with contextlib.suppress(ApiError):
            await cluster.api.patch(path, {"metadata": {"finalizers": None}})
    await cluster.run("kubectl", "-n", HOSTILE, "delete", "deployments,pods", "--all", "--now")
    await cluster.run("kubectl", "delete", "tenantbudget", HOSTILE, "--ignore-not-found")

    async def pods_are_gone() -> None:
        listed = await cluster.api.get(PODS.path(HOSTILE))
        assert [pod["metadata"]["name"] for pod in listed["items"]] == []

    await eventually(pods_are_gone)


@pytest.fixture
def tenant(cluster: InstalledCluster) -> Identity:
    """T: may write our kinds in his namespace."""
    return Identity(cluster, T)


@pytest.fixture
def editor(cluster: InstalledCluster) -> Identity:
    """E: T with the usual ClusterRole `edit` there."""
    return Identity(cluster, E)
