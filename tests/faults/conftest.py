"""A control plane with the CRDs and one pool, on which each test starts its own operators."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import world as worlds
from tessera.api.schema import KINDS, crd
from tests.faults.places import POOL
from world.api import Api, connect
from world.testing import eventually

FLEET = Path(__file__).parent / "fleet.yaml"


@pytest.fixture(scope="package")
def world() -> Iterator[worlds.World]:
    with worlds.start(fleet=FLEET) as found:
        yield found


@pytest.fixture
async def api(world: worlds.World) -> AsyncIterator[Api]:
    async with connect(world.kubeconfig) as found:
        for kind in KINDS:
            await found.apply_manifest(crd(kind), "helm")
        for kind in KINDS:
            path = f"/apis/tessera.dev/v1alpha1/{crd(kind)['spec']['names']['plural']}"

            async def served(path: str = path) -> bool:
                return await found.answers(path)

            await eventually(served, bool)
        await found.apply_manifest(POOL, "kubectl")
        yield found
