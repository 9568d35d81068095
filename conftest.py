"""Fixtures and options for all tests: one world for everything that needs a real API server."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import world as worlds
from tessera.adapters.kube import KubeCluster, connect
from tessera.api.schema import KINDS, crd
from tessera.resources.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, Kind
from world.testing import eventually

ROOT = Path(__file__).parent
GOLDEN = ROOT / "tests" / "golden"
FLEET = ROOT / "e2e" / "demo" / "fleet.yaml"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the world, however indirectly, is marked by it."""
    for item in items:
        if "world" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.world)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, list[Any]], None]:
    """Compare objects with `tests/golden/<name>.yaml`; `--update-golden` writes it."""

    def compare(name: str, objects: list[Any]) -> None:
        path = GOLDEN / f"{name}.yaml"
        text = yaml.safe_dump_all(objects, sort_keys=False, width=100)
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: --update-golden"

    return compare


@pytest.fixture(scope="session")
def world() -> Iterator[worlds.World]:
    """A control plane with the demo's fleet."""
    with worlds.start(fleet=FLEET) as found:
        yield found


@pytest.fixture
async def cluster(world: worlds.World) -> AsyncIterator[KubeCluster]:
    """The real API server with the CRDs, as its administrator."""
    made = KubeCluster(await connect(str(world.kubeconfig)))
    for kind in KINDS:
        body = crd(kind)
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
        query = {"fieldManager": "helm", "force": "true"}
        status, answer = await made.request(
            "PATCH", path, query, body, "application/apply-patch+yaml"
        )
        assert status < 300, answer
    for known in (INFERENCE_SERVICES, ACCELERATOR_POOLS):

        async def listed(known: Kind = known) -> object:
            return await made.list(known)

        await eventually(listed, lambda found: found is not None)
    try:
        yield made
    finally:
        await made.close()
