"""Golden files, and a control plane with the CRDs and without an operator."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import world as worlds
from tessera.adapters.kube import client as kube
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.api.api_resource import ApiResource
from tessera.api.schema import crd
from tessera.domain.hardware.gpu_catalog import catalog, shipped
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, KINDS
from world.testing import eventually

GOLDEN = Path(__file__).parent / "golden"
FLEET = Path(__file__).parent / "fleet.yaml"
_worlds_with_crds = set[int]()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compare objects with `tests/golden/<name>.yaml`; `--update-golden` writes it.

    Where several cases share a file, each gives the text in which it differs as a parameter; the
    parameter's name stands in the file, as `<name>`.
    """

    def compare(name: str, objects: list[Any], **parameters: str) -> None:
        path = GOLDEN / f"{name}.yaml"
        text = yaml.safe_dump_all(objects, sort_keys=False, width=100)
        for parameter, value in parameters.items():
            assert text.count(value) == 1, value
            text = text.replace(value, f"<{parameter}>")
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: --update-golden"

    return compare


@pytest.fixture(scope="package")
def world() -> Iterator[worlds.World]:
    with worlds.start(fleet=FLEET) as running_world:
        yield running_world


@pytest.fixture
async def cluster(
    world: worlds.World, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeCluster]:
    """Connect to the real API server with the CRDs, as its administrator; it may answer slowly."""
    monkeypatch.setattr(kube, "_TIMEOUT_SECONDS", 60)
    kube_cluster = KubeCluster(await connect(str(world.kubeconfig)))
    if world.pid not in _worlds_with_crds:
        await _install_crds(kube_cluster)
        _worlds_with_crds.add(world.pid)
    try:
        yield kube_cluster
    finally:
        await kube_cluster.close()


async def _install_crds(kube_cluster: KubeCluster) -> None:
    for kind in KINDS:
        body = crd(kind)
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
        query = {"fieldManager": "helm", "force": "true"}
        status, answer = await kube_cluster.request(
            "PATCH", path, query, body, "application/apply-patch+yaml"
        )
        assert status < 300, answer
    for known in (INFERENCE_SERVICES, ACCELERATOR_POOLS):

        async def is_served(known: ApiResource = known) -> None:
            assert await kube_cluster.list(known) is not None, known.plural

        await eventually(is_served)


@pytest.fixture
def shipped_catalog() -> Iterator[None]:
    """Let a test install a catalog of its own; then the shipped one is there again."""
    yield
    catalog.set(shipped())
