"""Jobs and the claim of models as reviewed, and what must hold in each of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.recipe import Platform, PodTemplateVersion
from tessera.domain.config import Config
from tessera.domain.model.names import claim_name
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.service_plan import ServicePlan
from tessera.domain.status.service import service_status
from tessera.resources import children
from tessera.resources.arguments import MODELS
from tessera.resources.batch_job import RunnerImage
from tessera.resources.model_job import model_job_manifest
from tests.builders import SMALL, a_model_job, a_service, a_snapshot, a_spec, allotted

Golden = Callable[[str, list[Any]], None]
IMAGE = RunnerImage("tessera/batch:0.1.0", pull_secrets=("registry",))
PLATFORM = Platform(hub_endpoint="https://hub.acme", ca_config_map="trusted")
SHAPE = {
    "parameters": 8_000_000,
    "layers": 2,
    "attentionHeads": 4,
    "kvHeads": 2,
    "headDim": 32,
    "maxPositionEmbeddings": 2048,
}
BOUND = {Ref("team-a", claim_name("chat")): VolumeClaim(access_modes=("ReadWriteMany",), uid="uid")}


def read(uri: str) -> Snapshot:
    model = {"tokenSecretRef": {"name": "hub"}}
    return a_snapshot(a_service(spec=a_spec(uri, model=model)))


def cached(**fields: Any) -> ObservedService:
    cache = {"type": "PersistentVolumeClaim", "storageClassName": "nfs"}
    model = {"revision": "v1", "tokenSecretRef": {"name": "hub"}, "cache": cache}
    return a_service(spec=a_spec(SMALL, replicas=1, model=model), **fields)


def fetched() -> ServicePlan:
    """All files are there."""
    parts = a_model_job("fetch", cached(), report={"ok": True, "bytes": 5}, exit_code=0)
    snapshot = a_snapshot(cached(), claims=BOUND, **parts)
    told = service_status(snapshot, allotted(snapshot), None, None)
    return allotted(a_snapshot(cached(status=told), claims=BOUND))


JOBS = {
    "shape-hub": read("hf://acme/own"),
    "shape-claim": read("pvc://weights/own"),
    "shape-image": read("oci://registry.acme/models/own:1"),
    "fetch": a_snapshot(cached(), claims=BOUND),
}


def job(name: str) -> dict[str, Any]:
    config = Config(platform=PLATFORM)
    got = allotted(JOBS[name], config=config)
    assert got.preparation is not None
    assert got.preparation.job_to_create is not None
    wanted = got.preparation.job_to_create
    made = model_job_manifest(got.service, wanted, got.choice, IMAGE, config.newest_template)
    return dict(made.body)


@pytest.mark.parametrize("name", JOBS)
def test_the_jobs_of_models_are_as_reviewed(name: str, golden: Golden) -> None:
    golden(f"model-job-{name}", [job(name)])


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_restricted_and_has_no_token_of_the_cluster(name: str) -> None:
    pod = job(name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "tessera-engine"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "nvidia.com/gpu" not in str(container["resources"])


@pytest.mark.parametrize("name", JOBS)
def test_no_service_counts_the_pod_of_a_job_as_a_replica(name: str) -> None:
    labels = job(name)["spec"]["template"]["metadata"]["labels"]
    assert "tessera.dev/service" not in labels
    assert labels["tessera.dev/model-job-for"] == "chat"
    # The NetworkPolicy of engines lets the operator ask how far it is.
    assert labels["app.kubernetes.io/component"] == "engine"


def test_a_cached_model_is_served_from_the_claim_once_it_is_there(golden: Golden) -> None:
    golden("service-cached", [dict(one.body) for one in children.service_manifests(fetched())])


def test_a_model_is_read_at_the_hub_before_there_is_a_claim_for_it() -> None:
    spec = a_spec("hf://acme/own", model={"cache": {"type": "PersistentVolumeClaim"}})
    got = allotted(a_snapshot(a_service(spec=spec)))
    assert got.preparation is not None
    assert got.preparation.job_to_create is not None
    made = model_job_manifest(
        got.service, got.preparation.job_to_create, None, IMAGE, PodTemplateVersion()
    ).body
    pod = made["spec"]["template"]["spec"]
    assert [one["name"] for one in pod["volumes"]] == ["home"]
    assert not any(one.startswith("--path") for one in pod["containers"][0]["args"])


def test_before_that_there_is_the_claim_and_no_deployment() -> None:
    found = children.service_manifests(allotted(JOBS["fetch"]))
    assert [one.kind.kind for one in found] == ["Service", "PersistentVolumeClaim"]


def test_the_engine_reads_where_the_job_writes() -> None:
    (deployment,) = [
        dict(one.body)
        for one in children.service_manifests(fetched())
        if one.kind.kind == "Deployment"
    ]
    (engine,) = deployment["spec"]["template"]["spec"]["containers"]
    (into,) = [
        one
        for one in job("fetch")["spec"]["template"]["spec"]["containers"][0]["args"]
        if one.startswith("--into=")
    ]
    assert into == f"--into={engine['args'][0]}"
    assert engine["args"][0].startswith(MODELS)
    assert not any(one.startswith("--revision") for one in engine["args"])


def test_a_claim_without_a_size_holds_the_weights_and_a_fifth_more() -> None:
    """2.3 GiB of weights."""
    claims = [
        one
        for one in children.service_manifests(allotted(JOBS["fetch"]))
        if one.kind.kind == "PersistentVolumeClaim"
    ]
    assert claims[0].body["spec"]["resources"] == {"requests": {"storage": "3Gi"}}


def test_a_model_in_an_image_is_mounted_from_it(golden: Golden) -> None:
    spec = a_spec("oci://registry.acme/models/own:1", replicas=1, model={"shape": SHAPE})
    got = allotted(a_snapshot(a_service(spec=spec)))
    golden("service-image", [dict(one.body) for one in children.service_manifests(got)])


def test_whatever_else_changes_the_objects_follow_the_fetch() -> None:
    waiting = allotted(JOBS["fetch"])
    there = replace(fetched(), pinned_revision=waiting.pinned_revision, template=waiting.template)
    assert children.service_inputs(waiting) != children.service_inputs(there)
