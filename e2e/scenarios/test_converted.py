"""The converted manifests of other platforms, all on one cluster."""

import json
from collections.abc import Iterator

import pytest
import yaml

from converted_page import FOLDER, read_sources
from demo.cluster import ROOT, InstalledCluster, Json, Ref, StepError, condition
from tessera.resources.api_resources import CLAIMS, INFERENCE_SERVICES
from world import World, start
from world.api import SECRETS
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


def manifest_of(name: str) -> Json:
    """Return a converted manifest, which also tells the simulator what it would read in files."""
    manifest: Json = yaml.safe_load((CONVERTED / f"{name}.yaml").read_text(encoding="utf-8"))
    if (shape := manifest["spec"]["model"].get("shape")) is not None:
        environment = manifest["spec"].setdefault("podTemplate", {}).setdefault("env", [])
        environment.append({"name": "TESSERA_SIM_SHAPE", "value": json.dumps(shape)})
    return manifest


async def create_what_they_name(cluster: InstalledCluster) -> None:
    """Create the Secrets and claims that the manifests expect in their namespace."""
    models = [manifest_of(name)["spec"]["model"] for name in ACCEPTED]
    tokens = {(ref["name"], ref["key"]) for m in models if (ref := m.get("tokenSecretRef"))}
    for name, key in sorted(tokens):
        body = {"metadata": {"name": name, "namespace": NAMESPACE}, "stringData": {key: "hf_token"}}
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
    cluster: InstalledCluster,
) -> None:
    await cluster.run("kubectl", "apply", "-f", str(CONVERTED / "00-pools.yaml"))
    await create_what_they_name(cluster)
    for name in ACCEPTED:
        path = INFERENCE_SERVICES.path(NAMESPACE, name)
        await cluster.api.apply(path, manifest_of(name), "kubectl")

    async def waiting() -> dict[str, Json]:
        conditions = {
            name: condition(await cluster.service(Ref(NAMESPACE, name)), "Ready")
            for name in ACCEPTED
        }
        return {name: ready for name, ready in conditions.items() if ready.get("status") != "True"}

    await eventually(waiting, lambda services: not services, within=240)
    for name in REFUSED:
        file = str(CONVERTED / "refused" / f"{name}.yaml")
        with pytest.raises(StepError) as refusal:
            await cluster.run("kubectl", "apply", "-f", file)
        assert SOURCES[name]["refused"]["field"] in str(refusal.value)
