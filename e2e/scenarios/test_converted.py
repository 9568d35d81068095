"""The converted manifests of other platforms, all on one cluster."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from converted_page import FOLDER, read_sources
from demo.cluster import ROOT, InstalledCluster, Json, Ref, StepError, condition
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import CLAIMS
from world import World, start
from world.api import SECRETS
from world.object_store import ObjectStore, serve_object_store
from world.testing import eventually

CONVERTED = ROOT / FOLDER
NAMESPACE = "converted"
# Product, nodes, and the GPUs of each. They suffice however the scheduler spreads small replicas.
GPU_NODES = {
    "l4": ("NVIDIA-L4", 7, ["whole"] * 8),
    "a100": ("NVIDIA-A100-80GB-PCIe", 2, ["whole"] * 8),
    "slices": ("NVIDIA-A100-SXM4-80GB", 1, [["1g.10gb"] * 7] * 3 + [["3g.40gb"] * 2] * 2),
    "h100": ("NVIDIA-H100-80GB-HBM3", 6, ["whole"] * 8),
    "gh200": ("NVIDIA-GH200-480GB", 1, ["whole"]),
    "b200": ("NVIDIA-B200", 1, ["whole"] * 8),
}
SOURCES = {source["name"]: source for source in read_sources(ROOT)}
REFUSED = sorted(name for name, source in SOURCES.items() if "refused" in source)
ACCEPTED = sorted(SOURCES.keys() - set(REFUSED))
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    nodes: list[Json] = [{"name": "control", "kind": "cpu"}]
    for name, (product, count, gpus) in GPU_NODES.items():
        nodes.append({"name": name, "count": count, "product": product, "gpus": gpus})
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    with start(fleet=path) as world:
        yield world


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """The bucket that a manifest names, with its adapter."""
    async with serve_object_store(tmp_path, "my-bucket") as store:
        folder = store.buckets / "my-bucket" / "adapters" / "code-lora"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"r": 64}', encoding="utf-8")
        (folder / "adapter_model.safetensors").write_bytes(bytes(64))
        yield store


def manifest_of(name: str, store: ObjectStore) -> Json:
    """Return a converted manifest for this cluster.

    It names the store and the storage class, and tells the simulator what files would say.
    """
    manifest: Json = yaml.safe_load((CONVERTED / f"{name}.yaml").read_text(encoding="utf-8"))
    model = manifest["spec"]["model"]
    if "store" in model:
        model["store"]["endpoint"] = store.url
        model["cache"] = {"storageClassName": "world"}
    if (shape := model.get("shape")) is not None:
        environment = manifest["spec"].setdefault("podTemplate", {}).setdefault("env", [])
        environment.append({"name": "TESSERA_SIM_SHAPE", "value": json.dumps(shape)})
    return manifest


async def create_what_they_name(
    cluster: InstalledCluster, models: list[Json], store: ObjectStore
) -> None:
    """Create the Secrets and claims that the manifests expect in their namespace."""
    secrets = {
        model["store"]["secretName"]: store.environment() for model in models if "store" in model
    }
    for model in models:
        if (token := model.get("tokenSecretRef")) is not None:
            secrets[token["name"]] = {token["key"]: "hf_token"}
    for name, content in sorted(secrets.items()):
        body = {"metadata": {"name": name, "namespace": NAMESPACE}, "stringData": content}
        await cluster.api.create(SECRETS.path(NAMESPACE), body)
    uris = [adapter["uri"] for model in models for adapter in model.get("adapters", ())]
    claims = {uri.split("/")[2] for uri in uris if uri.startswith("pvc://")}
    for name in sorted(claims):
        body = {
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "world",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        await cluster.api.create(CLAIMS.path(NAMESPACE), body)


async def test_all_converted_manifests_become_ready_and_the_others_are_refused(
    cluster: InstalledCluster, store: ObjectStore
) -> None:
    await cluster.run("kubectl", "apply", "-f", str(CONVERTED / "00-pools.yaml"))
    manifests = {name: manifest_of(name, store) for name in ACCEPTED}
    models = [manifest["spec"]["model"] for manifest in manifests.values()]
    await create_what_they_name(cluster, models, store)
    for name, manifest in manifests.items():
        await cluster.api.apply(INFERENCE_SERVICES.path(NAMESPACE, name), manifest, "kubectl")

    async def all_are_ready() -> None:
        services = dict(await cluster.services())
        conditions = {name: condition(services[Ref(NAMESPACE, name)], "Ready") for name in ACCEPTED}
        assert {
            name: ready for name, ready in conditions.items() if ready.get("status") != "True"
        } == {}

    await eventually(all_are_ready, within=480)
    for name in REFUSED:
        file = str(CONVERTED / "refused" / f"{name}.yaml")
        with pytest.raises(StepError) as refusal:
            await cluster.run("kubectl", "apply", "-f", file)
        assert SOURCES[name]["refused"]["field"] in str(refusal.value)
