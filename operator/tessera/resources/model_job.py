"""Model jobs, which read and fetch the model of a service without a GPU, and its volume claim."""

from kubernetes import client

from tessera.api.inference_service import InferenceServiceSpec, ModelShape
from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.batch.spec import SHARED_ACCESS_MODE
from tessera.domain.model import names
from tessera.domain.names import ENGINE_ACCOUNT, PORT, RUNNER_APP, VLLM
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.perf.footprint import weight_bytes
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import HardwareChoice
from tessera.domain.service.model_jobs import ModelJob
from tessera.resources import engine
from tessera.resources import platform as surroundings
from tessera.resources.api_resources import CLAIMS, JOBS
from tessera.resources.arguments import MODELS, model_path
from tessera.resources.batch_job import (
    REPORT_PATH,
    RunnerImage,
    runner_container,
    runner_job,
    runner_pod,
)
from tessera.resources.manifest import ObjectManifest, labels, owned_manifest
from tessera.resources.scheduling import bind_to_pool

# Seconds after which a Job fails; the next one then replaces it.
_ACTIVE_DEADLINE_SECONDS = {"shape": 600, "draft": 600, "fetch": 12 * 3600}
_GIB = 2**30
# The default size of the claim, relative to the weights.
_SIZE_MARGIN = 1.2


def model_job_manifest(
    service: ObservedService,
    model_job: ModelJob,
    choice: HardwareChoice | None,
    image: RunnerImage,
    template_version: PodTemplateVersion,
) -> ObjectManifest:
    """Return the manifest of the Job to create."""
    job_labels = labels(RUNNER_APP, service.ref.name) | {
        names.MODEL_JOB_LABEL: model_job.task,
        names.MODEL_JOB_SERVICE_LABEL: service.ref.name,
    }
    pod = _pod(service.ref.name, model_job, image, template_version.platform)
    # A fetch runs on nodes of the chosen pool, where its volume is read later; a read of the config
    # runs anywhere.
    if model_job.task == "fetch" and choice is not None:
        name, spec = service.ref.name, model_job.spec
        pod = bind_to_pool(pod, engine.EngineTemplate(name, spec, choice, template_version))
    job = runner_job(pod, job_labels, _ACTIVE_DEADLINE_SECONDS[model_job.task])
    return owned_manifest(JOBS, service, model_job.name, job_labels, job)


def model_claim_manifest(service: ObservedService, spec: InferenceServiceSpec) -> ObjectManifest:
    """Return the claim for the models of a service, which is deleted with the service."""
    name, cache = names.claim_name(service.ref.name), spec.model.cache
    claim = client.V1PersistentVolumeClaimSpec(
        access_modes=[SHARED_ACCESS_MODE],
        storage_class_name=cache.storage_class_name,
        resources=client.V1VolumeResourceRequirements(
            requests={"storage": cache.size or _claim_size(shape_of(spec))}
        ),
    )
    return owned_manifest(CLAIMS, service, name, labels(VLLM, service.ref.name), claim)


def _claim_size(shape: ModelShape | None) -> str:
    weights = weight_bytes(shape.parameters, shape.bits_per_weight) if shape else 0
    return f"{int(weights * _SIZE_MARGIN / _GIB) + 1}Gi"


def _pod(name: str, job: ModelJob, image: RunnerImage, platform: Platform) -> client.V1PodSpec:
    fetches = job.task == "fetch"
    claim = engine.claim_volume("models", names.claim_name(name))
    files = claim if fetches else engine.uri_volume(job.spec)
    volumes = [engine.empty_volume("home"), *([files] if files else ())]
    container = _container(job, image, platform, mounted=files is not None)
    volumes += surroundings.volumes(platform)
    return runner_pod(ENGINE_ACCOUNT, image, platform, container, volumes)


def _container(
    model_job: ModelJob, image: RunnerImage, platform: Platform, *, mounted: bool
) -> client.V1Container:
    fetches = model_job.task == "fetch"
    requests = {"cpu": "500m" if fetches else "100m", "memory": "256Mi"}
    arguments = _arguments(model_job, mounted=mounted)
    container = runner_container(names.MODEL_JOB_CONTAINER, image, arguments, requests, "1Gi")
    container.env = [
        client.V1EnvVar(name="HOME", value="/tmp"),  # noqa: S108 - a mount
        *(container.env or ()),
        *engine.token(model_job.spec),
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


def _arguments(model_job: ModelJob, *, mounted: bool) -> list[str]:
    model = model_job.spec.model
    fetches = model_job.task == "fetch"
    command = "fetch" if fetches else "shape"
    arguments = [command, f"--uri={model.uri}", f"--report={REPORT_PATH}"]
    if model.revision:
        arguments.append(f"--revision={model.revision}")
    if fetches:
        folder = f"{MODELS}/{names.folder_of(model)}"
        return [*arguments, f"--into={folder}", "--host=$(POD_IP)", f"--port={PORT}"]
    return [*arguments, f"--path={model_path(model.uri)}"] if mounted else arguments
