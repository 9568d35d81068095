"""The API server accepts every field of the manifests under strict validation."""

import pytest

from tessera.adapters.kube.client import KubeCluster
from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.config import Config
from tessera.domain.model.fetched import fetched_files
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.resources import children
from tessera.resources.manifest import ObjectManifest
from tessera.resources.model_job import model_job_manifest
from tessera.resources.prepull import prepull_daemon_sets
from tessera.resources.runner import RunnerImage
from tests.builders import (
    SMALL,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    compute_service_plan,
    plan_of,
)

PLATFORM = Platform(
    image_registry="registry.acme:5000/mirror",
    image_pull_secrets=("mirror",),
    hub_endpoint="https://hub.acme",
    https_proxy="http://proxy.acme:3128",
    no_proxy=".acme",
    ca_config_map="trusted",
    priority_classes=True,
)
POOL = a_pool(
    prePull=True,
    runtimeClassName="nvidia",
    schedulerName="volcano",
    tolerations=[
        {"key": "team", "value": "llm", "effect": "NoSchedule"},
        {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
    ],
)
SHAPE = {
    "parameters": 8_000_000,
    "layers": 2,
    "attentionHeads": 4,
    "kvHeads": 2,
    "headDim": 32,
    "maxPositionEmbeddings": 2048,
}
ADAPTERS = [{"name": "sql", "uri": "hf://a/b"}, {"name": "tone", "uri": "pvc://adapters/tone"}]


def fleet(uri: str, **model: object) -> Snapshot:
    service = a_service(spec=a_spec(uri, replicas=2, model=model))
    assert service.spec is not None
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid="uid")
    claims = {Ref("team-a", each.claim_name): volume for each in fetched_files(service.spec)}
    return a_snapshot(service, pools=(POOL,), claims=claims)


def service_plan_of(uri: str, **model: object) -> ServicePlan:
    return compute_service_plan(fleet(uri, **model), config=Config(platform=PLATFORM))


def job(service_plan: ServicePlan) -> ObjectManifest:
    preparation = service_plan.preparation
    assert preparation is not None
    assert preparation.job_to_create is not None
    return model_job_manifest(
        service_plan.service,
        preparation.job_to_create,
        service_plan.choice,
        RunnerImage("tessera/batch:1"),
        PodTemplateVersion(platform=PLATFORM),
    )


CACHED = service_plan_of(SMALL, cache={"type": "PersistentVolumeClaim"})
MANIFESTS = {
    "adapters": children.service_manifests(service_plan_of(SMALL, adapters=ADAPTERS)),
    "image": children.service_manifests(service_plan_of("oci://registry.acme/own:1", shape=SHAPE)),
    "claim": (*children.service_manifests(CACHED), job(CACHED)),
    "read": (job(service_plan_of("hf://acme/own", tokenSecretRef={"name": "hub"})),),
    "read-image": (job(service_plan_of("oci://registry.acme/own:1")),),
    "prepull": prepull_daemon_sets(
        plan_of(fleet(SMALL)).pools, {}, PLATFORM, 1, RunnerImage("tessera/batch:1"), "team-a"
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
async def test_the_api_server_knows_every_field(cluster: KubeCluster, name: str) -> None:
    await cluster.request("POST", "/api/v1/namespaces", {}, {"metadata": {"name": "team-a"}})
    assert MANIFESTS[name]
    for manifest in MANIFESTS[name]:
        path = manifest.kind.path(manifest.namespace, manifest.name)
        query = {"fieldManager": "a", "dryRun": "All", "fieldValidation": "Strict"}
        status, answer = await cluster.request(
            "PATCH", path, query, manifest.body, "application/apply-patch+yaml"
        )
        assert status < 300, answer
