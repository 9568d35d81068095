"""Jobs and the claim of models as reviewed, and what is true of each of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.config import Config
from tessera.domain.model.names import claim_name
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.status.service import service_status
from tessera.resources import children
from tessera.resources.arguments import MODELS
from tessera.resources.batch_job import RunnerImage
from tessera.resources.model_job import model_job_manifest
from tests.builders import SMALL, a_model_job, a_service, a_snapshot, a_spec, compute_service_plan

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


def snapshot_of_unread_model(uri: str) -> Snapshot:
    model = {"tokenSecretRef": {"name": "hub"}}
    return a_snapshot(a_service(spec=a_spec(uri, model=model)))


def cached_service(**fields: Any) -> ObservedService:
    cache = {"type": "PersistentVolumeClaim", "storageClassName": "nfs"}
    model = {"revision": "v1", "tokenSecretRef": {"name": "hub"}, "cache": cache}
    return a_service(spec=a_spec(SMALL, replicas=1, model=model), **fields)


def plan_after_fetch() -> ServicePlan:
    """Plan the service after its Job has fetched all files."""
    parts = a_model_job("fetch", cached_service(), report={"ok": True, "bytes": 5}, exit_code=0)
    snapshot = a_snapshot(cached_service(), claims=BOUND, **parts)
    status = service_status(snapshot, compute_service_plan(snapshot), None, None)
    return compute_service_plan(a_snapshot(cached_service(status=status), claims=BOUND))


JOBS = {
    "shape-hub": snapshot_of_unread_model("hf://acme/own"),
    "shape-claim": snapshot_of_unread_model("pvc://weights/own"),
    "shape-image": snapshot_of_unread_model("oci://registry.acme/models/own:1"),
    "fetch": a_snapshot(cached_service(), claims=BOUND),
}


def job(name: str) -> dict[str, Any]:
    config = Config(platform=PLATFORM)
    service_plan = compute_service_plan(JOBS[name], config=config)
    assert service_plan.preparation is not None
    assert service_plan.preparation.job_to_create is not None
    model_job = service_plan.preparation.job_to_create
    manifest = model_job_manifest(
        service_plan.service, model_job, service_plan.choice, IMAGE, config.newest_template
    )
    return dict(manifest.body)


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
    golden(
        "service-cached",
        [dict(manifest.body) for manifest in children.service_manifests(plan_after_fetch())],
    )


def test_a_model_is_read_at_the_hub_before_there_is_a_claim_for_it() -> None:
    spec = a_spec("hf://acme/own", model={"cache": {"type": "PersistentVolumeClaim"}})
    service_plan = compute_service_plan(a_snapshot(a_service(spec=spec)))
    assert service_plan.preparation is not None
    assert service_plan.preparation.job_to_create is not None
    body = model_job_manifest(
        service_plan.service,
        service_plan.preparation.job_to_create,
        None,
        IMAGE,
        PodTemplateVersion(),
    ).body
    pod = body["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["home"]
    assert not any(argument.startswith("--path") for argument in pod["containers"][0]["args"])


def test_before_that_there_is_the_claim_and_no_deployment() -> None:
    manifests = children.service_manifests(compute_service_plan(JOBS["fetch"]))
    assert [manifest.kind.kind for manifest in manifests] == ["Service", "PersistentVolumeClaim"]


def test_the_engine_reads_where_the_job_writes() -> None:
    (deployment,) = [
        dict(manifest.body)
        for manifest in children.service_manifests(plan_after_fetch())
        if manifest.kind.kind == "Deployment"
    ]
    (engine,) = deployment["spec"]["template"]["spec"]["containers"]
    (target,) = [
        argument
        for argument in job("fetch")["spec"]["template"]["spec"]["containers"][0]["args"]
        if argument.startswith("--into=")
    ]
    assert target == f"--into={engine['args'][0]}"
    assert engine["args"][0].startswith(MODELS)
    assert not any(argument.startswith("--revision") for argument in engine["args"])


def test_a_claim_without_a_size_holds_the_weights_and_a_fifth_more() -> None:
    """The model has 2.3 GiB of weights."""
    claims = [
        manifest
        for manifest in children.service_manifests(compute_service_plan(JOBS["fetch"]))
        if manifest.kind.kind == "PersistentVolumeClaim"
    ]
    assert claims[0].body["spec"]["resources"] == {"requests": {"storage": "3Gi"}}


def test_a_model_in_an_image_is_mounted_from_it(golden: Golden) -> None:
    spec = a_spec("oci://registry.acme/models/own:1", replicas=1, model={"shape": SHAPE})
    service_plan = compute_service_plan(a_snapshot(a_service(spec=spec)))
    golden(
        "service-image",
        [dict(manifest.body) for manifest in children.service_manifests(service_plan)],
    )


def test_whatever_else_changes_the_objects_follow_the_fetch() -> None:
    before_fetch = compute_service_plan(JOBS["fetch"])
    after_fetch = replace(
        plan_after_fetch(),
        pinned_revision=before_fetch.pinned_revision,
        template=before_fetch.template,
    )
    assert children.service_inputs(before_fetch) != children.service_inputs(after_fetch)
