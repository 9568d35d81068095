"""A control plane with the CRDs and one pool, on which each test starts its own operators."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import world as worlds
from tessera.api.schema import KINDS, crd
from tests.faults.namespaces import POOL
from world.api import Api, connect
from world.testing import eventually

FLEET = Path(__file__).parent / "fleet.yaml"


@pytest.fixture(scope="package")
def world() -> Iterator[worlds.World]:
    with worlds.start(fleet=FLEET) as running_world:
        yield running_world


@pytest.fixture
async def api(world: worlds.World) -> AsyncIterator[Api]:
    async with connect(world.kubeconfig) as client:
        for kind in KINDS:
            await client.apply_manifest(crd(kind), "helm")
        for kind in KINDS:
            path = f"/apis/tessera.dev/v1alpha1/{crd(kind)['spec']['names']['plural']}"

            async def is_served(path: str = path) -> bool:
                return await client.exists(path)

            await eventually(is_served, bool)
        await client.apply_manifest(POOL, "kubectl")
        yield client
