"""Jobs and the claim of models as reviewed, and what is true of each of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import CacheStatus, ModelStore
from tessera.api.service_status import InferenceServiceStatus, ModelStatus
from tessera.api.template_version import Platform
from tessera.domain.config import Config
from tessera.domain.model.fetched import fetched_files, located
from tessera.domain.model.names import own_claim_name
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.service.preparation.claims import ClaimUsers, claim_users, model_claims
from tessera.domain.service.preparation.jobs import ModelJob
from tessera.domain.status.service import service_status
from tessera.resources import children
from tessera.resources.arguments import MODELS
from tessera.resources.model_job import model_job_manifest
from tessera.resources.runner import RunnerImage, store_credentials
from tests.builders import SMALL, a_model_job, a_service, a_snapshot, a_spec, compute_service_plan

Golden = Callable[[str, list[Any]], None]
IMAGE = RunnerImage("tessera/batch:0.1.0", pull_secrets=("registry",))
PLATFORM = Platform(hub_endpoint="https://hub.acme", ca_config_map="trusted")
DONE = {"ok": True, "bytes": 5}
STORED = "s3://models/llama"
STORE = {"secretName": "bucket", "endpoint": "https://minio.acme:9000", "region": "eu-west-1"}
SHAPE = {
    "parameters": 8_000_000,
    "layers": 2,
    "attentionHeads": 4,
    "kvHeads": 2,
    "headDim": 32,
    "maxPositionEmbeddings": 2048,
}


def snapshot_of_unread_model(uri: str) -> Snapshot:
    model = {"tokenSecretRef": {"name": "hub"}}
    return a_snapshot(a_service(spec=a_spec(uri, model=model)))


def cached_service(**fields: Any) -> ObservedService:
    cache = {"type": "PersistentVolumeClaim", "storageClassName": "nfs"}
    model = {"revision": "v1", "tokenSecretRef": {"name": "hub"}, "cache": cache}
    return a_service(spec=a_spec(SMALL, replicas=1, model=model), **fields)


def spec_of(service: ObservedService) -> InferenceServiceSpec:
    assert service.spec is not None
    return service.spec


def bound_claims(service: ObservedService, gib: int = 3) -> dict[Ref, VolumeClaim]:
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid="uid", gib=gib)
    return {Ref("team-a", files.claim_name): volume for files in fetched_files(spec_of(service))}


def plan_after_fetch(gib: int = 3) -> ServicePlan:
    """Plan the service after its Job has fetched all files to a claim of so many GiB."""
    claims = bound_claims(cached_service(), gib)
    parts = a_model_job("fetch", cached_service(), report=DONE, exit_code=0)
    snapshot = a_snapshot(cached_service(), claims=claims, **parts)
    status = service_status(snapshot, compute_service_plan(snapshot), None, None)
    return compute_service_plan(a_snapshot(cached_service(status=status), claims=claims))


def stored_service() -> ObservedService:
    """A service whose model and adapter lie in a bucket."""
    adapters = [{"name": "sql", "uri": "s3://models/sql"}]
    model = {"shape": SHAPE, "store": STORE, "adapters": adapters}
    return a_service(spec=a_spec(STORED, replicas=1, model=model))


JOBS = {
    "shape-hub": snapshot_of_unread_model("hf://acme/own"),
    "shape-claim": snapshot_of_unread_model("pvc://weights/own"),
    "shape-image": snapshot_of_unread_model("oci://registry.acme/models/own:1"),
    "fetch": a_snapshot(cached_service(), claims=bound_claims(cached_service())),
    "fetch-store": a_snapshot(stored_service(), claims=bound_claims(stored_service())),
}


def job_to_create(service_plan: ServicePlan) -> ModelJob | None:
    assert service_plan.preparation is not None
    return service_plan.preparation.job_to_create


def planned_job(
    snapshot: Snapshot, platform: Platform | None = None, image: RunnerImage = IMAGE
) -> dict[str, Any]:
    """Return the Job that the service needs next."""
    config = Config() if platform is None else Config(platform=platform)
    service_plan = compute_service_plan(snapshot, config=config)
    model_job = job_to_create(service_plan)
    assert model_job is not None
    manifest = model_job_manifest(
        service_plan.service, model_job, service_plan.choice, image, config.newest_template
    )
    return dict(manifest.body)


def job(name: str) -> dict[str, Any]:
    return planned_job(JOBS[name], PLATFORM)


def bodies(service_plan: ServicePlan, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the objects of a service, all or those of one kind."""
    manifests = children.service_manifests(service_plan)
    return [dict(each.body) for each in manifests if kind in (None, each.kind.kind)]


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
    golden("service-cached", bodies(plan_after_fetch()))


def test_a_model_is_read_at_the_hub_before_there_is_a_claim_for_it() -> None:
    spec = a_spec("hf://acme/own", model={"cache": {"type": "PersistentVolumeClaim"}})
    pod = planned_job(a_snapshot(a_service(spec=spec)))["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["home"]
    assert not any(argument.startswith("--path") for argument in pod["containers"][0]["args"])


def test_before_that_there_is_the_claim_and_no_deployment() -> None:
    kinds = [body["kind"] for body in bodies(compute_service_plan(JOBS["fetch"]))]
    assert kinds == ["Service", "PersistentVolumeClaim"]


def test_the_engine_reads_where_the_job_writes() -> None:
    (deployment,) = bodies(plan_after_fetch(), "Deployment")
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
    (claim,) = bodies(compute_service_plan(JOBS["fetch"]), "PersistentVolumeClaim")
    assert claim["spec"]["resources"] == {"requests": {"storage": "3Gi"}}


def test_a_model_in_an_image_is_mounted_from_it(golden: Golden) -> None:
    spec = a_spec("oci://registry.acme/models/own:1", replicas=1, model={"shape": SHAPE})
    service_plan = compute_service_plan(a_snapshot(a_service(spec=spec)))
    golden("service-image", bodies(service_plan))


def test_whatever_else_changes_the_objects_follow_the_fetch() -> None:
    before_fetch = compute_service_plan(JOBS["fetch"])
    after_fetch = replace(
        plan_after_fetch(),
        pinned_revision=before_fetch.pinned_revision,
        variants=before_fetch.variants,
    )
    assert children.service_inputs(before_fetch) != children.service_inputs(after_fetch)


def test_a_service_keeps_the_claim_and_the_pods_that_it_had_before_claims_were_shared(
    golden: Golden,
) -> None:
    (files,) = fetched_files(spec_of(cached_service()))
    name = own_claim_name("chat")
    cache = CacheStatus(claim_name=name, claim_uid="uid", path=files.folder, fetched=True)
    model = ModelStatus(uri=SMALL, requested_revision="v1", cache=cache)
    service = cached_service(status=InferenceServiceStatus(model=model))
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid="uid", gib=3)
    snapshot = a_snapshot(service, claims={Ref("team-a", name): volume})
    service_plan = compute_service_plan(snapshot)
    assert job_to_create(service_plan) is None
    golden("service-own-claim", bodies(service_plan))


@pytest.mark.parametrize(("asked", "gib"), [(None, 2), ("9Gi", 9)])
def test_a_claim_from_before_grows_only_when_its_service_asks(asked: str | None, gib: int) -> None:
    spec = spec_of(cached_service())
    cache = spec.model.cache.model_copy(update={"size": asked})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"cache": cache})})
    (files,) = fetched_files(spec)
    name = own_claim_name("chat")
    recorded = CacheStatus(claim_name=name, claim_uid="uid", path=files.folder, fetched=True)
    model = ModelStatus(uri=SMALL, requested_revision="v1", cache=recorded)
    service = a_service(spec=spec, status=InferenceServiceStatus(model=model))
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid="uid", gib=2)
    snapshot = a_snapshot(service, claims={Ref("team-a", name): volume})
    (claim,) = model_claims(snapshot, service, spec, ClaimUsers())
    assert (claim.ref.name, claim.gib) == (name, gib)


def test_engines_read_models_and_adapters_of_a_store_from_claims() -> None:
    snapshot = a_snapshot(stored_service(), claims=bound_claims(stored_service()))
    model_files, adapter_files = fetched_files(spec_of(stored_service()))
    for files in (model_files, adapter_files):
        service_plan = compute_service_plan(snapshot)
        model_job = job_to_create(service_plan)
        assert model_job is not None
        assert (model_job.name, model_job.files) == (files.job_name, files)
        parts = a_model_job("fetch", stored_service(), files=(files,), report=DONE, exit_code=0)
        status = service_status(
            replace(snapshot, **parts), compute_service_plan(replace(snapshot, **parts)), None, None
        )
        snapshot = a_snapshot(
            replace(stored_service(), status=status), claims=bound_claims(stored_service())
        )
    service_plan = compute_service_plan(snapshot)
    claims = [body["metadata"]["name"] for body in bodies(service_plan, "PersistentVolumeClaim")]
    assert claims == [model_files.claim_name, adapter_files.claim_name]
    (deployment,) = bodies(service_plan, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (engine,) = pod["containers"]
    assert engine["args"][0] == f"/models/{model_files.folder}"
    assert f"sql=/adapters/sql/{adapter_files.folder}" in engine["args"]
    mounted = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert mounted == {"models": claims[0], "adapter-sql": claims[1]}
    assert "bucket" not in str(pod), "engines need no credentials of the store"


@pytest.mark.parametrize(
    ("uri", "keys"),
    [
        ("s3://models/llama", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]),
        ("gs://models/llama", ["GOOGLE_SERVICE_ACCOUNT_KEY"]),
        (
            "az://models/llama",
            [
                "AZURE_STORAGE_ACCOUNT_NAME",
                "AZURE_STORAGE_ACCOUNT_KEY",
                "AZURE_STORAGE_SAS_TOKEN",
            ],
        ),
        (f"https://models.acme/llama#sha256={'0' * 64}", ["BEARER_TOKEN"]),
    ],
)
def test_only_the_jobs_get_the_credentials_of_a_store_and_only_from_its_secret(
    uri: str, keys: list[str]
) -> None:
    snapshot = a_snapshot(a_service(spec=a_spec(uri, model={"store": STORE})))
    (container,) = planned_job(snapshot)["spec"]["template"]["spec"]["containers"]
    secrets = [
        variable["valueFrom"]["secretKeyRef"]
        for variable in container["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    ]
    assert [(secret["name"], secret["key"]) for secret in secrets] == [
        ("bucket", key) for key in keys
    ]
    assert "--endpoint=https://minio.acme:9000" in container["args"]


def test_an_adapter_of_a_public_web_server_needs_no_token_in_the_secret_of_the_bucket() -> None:
    store = ModelStore.model_validate(STORE)
    uris = (f"https://models.acme/llama#sha256={'0' * 64}", STORED)
    optional = [
        variable.name
        for uri in uris
        for variable in store_credentials(uri, store)
        if variable.model_dump()["value_from"]["secret_key_ref"]["optional"]
    ]
    assert optional == ["BEARER_TOKEN", "AWS_SESSION_TOKEN"]


def test_pickles_are_allowed_by_the_platform_alone() -> None:
    body = planned_job(JOBS["fetch-store"], image=replace(IMAGE, allow_pickles=True))
    assert "--allow-pickles" in body["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--allow-pickles" not in str(job("fetch-store"))


def test_a_draft_model_of_a_store_is_read_from_a_claim_of_its_own() -> None:
    draft = {"uri": "s3://models/draft", "shape": {**SHAPE, "parameters": 1_000_000}}
    engine = {"speculation": {"method": "DraftModel", "model": draft}}
    spec = a_spec(STORED, replicas=1, model={"shape": SHAPE, "store": STORE}, engine=engine)
    _, draft_files = fetched_files(spec)
    speculation = located(spec).engine.speculation
    assert speculation is not None
    assert speculation.model is not None
    assert speculation.model.uri == draft_files.location
    assert draft_files.store == spec.model.store


LLAMA_8B = {
    "parameters": 8_030_261_248,
    "layers": 32,
    "attentionHeads": 32,
    "kvHeads": 8,
    "headDim": 128,
    "maxPositionEmbeddings": 131_072,
}
LLAMA_70B = {
    "parameters": 70_553_706_496,
    "layers": 80,
    "attentionHeads": 64,
    "kvHeads": 8,
    "headDim": 128,
    "maxPositionEmbeddings": 131_072,
}


def test_claims_hold_what_is_downloaded_to_them() -> None:
    """An adapter of rank 512 has 6.6 billion weights, which may have 32 bits."""
    adapters = [
        {"name": "small", "uri": "s3://models/small"},
        {"name": "large", "uri": "s3://models/large", "rank": 512},
    ]
    draft = {"uri": "s3://models/draft", "shape": {**LLAMA_8B, "vocabSize": 128_256}}
    engine = {"speculation": {"method": "DraftModel", "model": draft}}
    model = {"shape": {**LLAMA_70B, "vocabSize": 128_256}, "store": STORE, "adapters": adapters}
    spec = a_spec(STORED, replicas=1, model=model, engine=engine)
    snapshot = a_snapshot(a_service(spec=spec))
    users = claim_users(snapshot.services, (), {})
    claims = model_claims(snapshot, snapshot.services[0], spec, users)
    sizes = {claim.files.uri: claim.gib for claim in claims}
    assert sizes[STORED] == 158
    assert sizes["s3://models/draft"] == 18
    assert sizes["s3://models/small"] == 5
    assert 25 <= sizes["s3://models/large"] <= 28


def test_the_claim_of_quantized_files_holds_their_embeddings_as_well() -> None:
    """The files of Llama 3.1 8B in AWQ have 5.7 GB, of which 2.1 GB have 16 bits per weight."""
    shape = {
        **LLAMA_8B,
        "bitsPerWeight": 4,
        "quantization": "awq",
        "groupSize": 128,
        "unquantizedParameters": 1_050_673_152,
    }
    spec = a_spec(STORED, replicas=1, model={"shape": shape, "store": STORE})
    snapshot = a_snapshot(a_service(spec=spec))
    (claim,) = model_claims(snapshot, snapshot.services[0], spec, ClaimUsers())
    assert claim.gib * 2**30 > 1.1 * 5.7e9


def test_the_claim_has_room_for_the_files_that_the_place_lists() -> None:
    shape = {**LLAMA_8B, "fileBytes": 32_121_000_000}  # in 32 bits
    spec = a_spec(STORED, replicas=1, model={"shape": shape, "store": STORE})
    snapshot = a_snapshot(a_service(spec=spec))
    (claim,) = model_claims(snapshot, snapshot.services[0], spec, ClaimUsers())
    assert claim.gib == 36


def test_an_upgrade_grows_no_claim_that_has_all_its_files() -> None:
    """Not every storage class can grow a claim, and complete files need no more room."""
    empty = a_snapshot(cached_service(), claims=bound_claims(cached_service(), 1))
    plans = (compute_service_plan(empty), plan_after_fetch(1))
    assert [[claim.gib for claim in each.claims] for each in plans] == [[3], [1]]
