"""A control plane with the CRDs and one pool, on which each test starts its own operators."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import world as worlds
from tessera.api.schema import crd
from tessera.domain.kinds.kinds import KINDS
from tests.faults.namespaces import API_VERSION, POOL, wait_until_served
from world.api import Api, connect

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
            await wait_until_served(client, f"/apis/{API_VERSION}/{kind.plural}")
        await client.apply_manifest(POOL, "kubectl")
        yield client
