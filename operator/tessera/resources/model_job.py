"""Model jobs, which read and fetch models without a GPU, and the claims of their files."""

from kubernetes import client

from tessera.api.model_files import ModelStore, is_stored
from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.domain.batch.spec import SHARED_ACCESS_MODE
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.domain.model import names
from tessera.domain.names import ENGINE_ACCOUNT, PORT, RUNNER_APP, VLLM
from tessera.domain.observed.batches import Batch
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.service.preparation.claims import ModelClaim
from tessera.domain.service.preparation.jobs import ModelJob
from tessera.resources import engine
from tessera.resources import platform as surroundings
from tessera.resources.api_resources import CLAIMS, JOBS
from tessera.resources.arguments import MODELS, model_path
from tessera.resources.manifest import (
    ObjectManifest,
    Owner,
    labels,
    manifest,
    owned_manifest,
    owner_of,
    owner_reference,
)
from tessera.resources.runner import (
    RunnerImage,
    fetch_arguments,
    location_arguments,
    runner_container,
    runner_job,
    runner_pod,
    store_credentials,
)
from tessera.resources.scheduling import bind_to_pool

# Seconds after which a Job fails; the next one then replaces it.
_ACTIVE_DEADLINE_SECONDS = {"shape": 600, "draft": 600, "fetch": 12 * 3600}


def model_job_manifest(
    owner: ObservedService | Batch,
    model_job: ModelJob,
    choice: HardwareChoice | None,
    image: RunnerImage,
    template_version: PodTemplateVersion,
) -> ObjectManifest:
    """Return the manifest of the Job to create."""
    job_labels = labels(RUNNER_APP, owner.ref.name) | {names.MODEL_JOB_LABEL: model_job.task}
    account = BATCH_ACCOUNT
    if isinstance(owner, ObservedService):
        job_labels |= {names.MODEL_JOB_SERVICE_LABEL: owner.ref.name}
        account = ENGINE_ACCOUNT
    pod = _pod(model_job, account, image, template_version.platform)
    # A fetch runs on nodes of the chosen pool, where its volume is read later; a read of the config
    # runs anywhere.
    if model_job.task == "fetch" and choice is not None:
        name, spec = owner.ref.name, model_job.spec
        pod = bind_to_pool(pod, engine.EngineTemplate(name, spec, choice, template_version))
    job = runner_job(pod, job_labels, _ACTIVE_DEADLINE_SECONDS[model_job.task])
    return owned_manifest(JOBS, owner, model_job.name, job_labels, job)


def model_claim_manifest(claim: ModelClaim) -> ObjectManifest:
    """Return the claim for downloaded files, which is deleted with the last of its users."""
    spec = client.V1PersistentVolumeClaimSpec(
        access_modes=[SHARED_ACCESS_MODE],
        storage_class_name=claim.files.cache.storage_class_name,
        resources=client.V1VolumeResourceRequirements(requests={"storage": f"{claim.gib}Gi"}),
    )
    is_own = claim.files.own_claim is not None
    batches = [Owner(BATCH_INFERENCES, user.ref, user.uid) for user in claim.batches]
    owners = [*map(owner_of, claim.users), *batches]
    metadata = client.V1ObjectMeta(
        name=claim.ref.name,
        namespace=claim.ref.namespace,
        labels=labels(VLLM, claim.users[0].ref.name if is_own else claim.ref.name),
        owner_references=[owner_reference(owner, controller=is_own) for owner in owners],
    )
    return manifest(CLAIMS, metadata, spec=spec)


def _pod(job: ModelJob, account: str, image: RunnerImage, platform: Platform) -> client.V1PodSpec:
    files = (
        engine.claim_volume("models", job.files.claim_name)
        if job.files is not None
        else engine.uri_volume(job.spec)
    )
    volumes = [engine.empty_volume("home"), *([files] if files else ())]
    container = _container(job, image, platform, mounted=files is not None)
    volumes += surroundings.volumes(platform)
    return runner_pod(account, image, platform, container, volumes)


def _container(
    model_job: ModelJob, image: RunnerImage, platform: Platform, *, mounted: bool
) -> client.V1Container:
    fetches = model_job.files is not None
    requests = {"cpu": "500m" if fetches else "100m", "memory": "256Mi"}
    arguments = _arguments(model_job, image, mounted=mounted)
    container = runner_container(names.MODEL_JOB_CONTAINER, image, arguments, requests, "1Gi")
    container.env = [
        client.V1EnvVar(name="HOME", value="/tmp"),  # noqa: S108 - a mount
        *(container.env or ()),
        *_credentials(model_job),
        *surroundings.environment(platform),
    ]
    files = client.V1VolumeMount(name="models", mount_path=MODELS, read_only=not fetches)
    container.volume_mounts = [
        client.V1VolumeMount(name="home", mount_path="/tmp"),  # noqa: S108 - a mount
        *([files] if mounted else ()),
        *surroundings.mounts(platform),
    ]
    if fetches:
        container.ports = [client.V1ContainerPort(name="progress", container_port=PORT)]
    return container


def _credentials(model_job: ModelJob) -> list[client.V1EnvVar]:
    uri, store = _location(model_job)
    return store_credentials(uri, store) if is_stored(uri) else engine.token(model_job.spec)


def _location(model_job: ModelJob) -> tuple[str, ModelStore | None]:
    if model_job.files is not None:
        return model_job.files.uri, model_job.files.store
    return model_job.spec.model.uri, model_job.spec.model.store


def _arguments(model_job: ModelJob, image: RunnerImage, *, mounted: bool) -> list[str]:
    model, files = model_job.spec.model, model_job.files
    if files is not None:
        return [*fetch_arguments(files, image, MODELS), "--host=$(POD_IP)", f"--port={PORT}"]
    arguments = ["shape", *location_arguments(model.uri, model.revision, model.store)]
    return [*arguments, f"--path={model_path(model.uri)}"] if mounted else arguments
