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
from tessera.resources.batch_job import RunnerImage
from tessera.resources.manifest import ObjectManifest, labels, manifest, owned_metadata
from tessera.resources.scheduling import bind_to_pool

_REPORT_PATH = "/dev/termination-log"
# Seconds after which a Job fails; the next one then replaces it.
_ACTIVE_DEADLINE_SECONDS = {"shape": 600, "fetch": 12 * 3600}
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
        pod = bind_to_pool(pod, model_job.spec, choice, template_version)
    job = client.V1Job(
        metadata=owned_metadata(service, model_job.name, job_labels),
        spec=client.V1JobSpec(
            active_deadline_seconds=_ACTIVE_DEADLINE_SECONDS[model_job.task],
            backoff_limit=0,
            completions=1,
            parallelism=1,
            template=client.V1PodTemplateSpec(
                metadata=client.V1ObjectMeta(labels=job_labels), spec=pod
            ),
        ),
    )
    return manifest(JOBS, service.ref.namespace, model_job.name, job)


def model_claim_manifest(service: ObservedService, spec: InferenceServiceSpec) -> ObjectManifest:
    """Return the claim for the models of a service, which is deleted with the service."""
    name, cache = names.claim_name(service.ref.name), spec.model.cache
    claim = client.V1PersistentVolumeClaim(
        metadata=owned_metadata(service, name, labels(VLLM, service.ref.name)),
        spec=client.V1PersistentVolumeClaimSpec(
            access_modes=[SHARED_ACCESS_MODE],
            storage_class_name=cache.storage_class_name,
            resources=client.V1VolumeResourceRequirements(
                requests={"storage": cache.size or _claim_size(shape_of(spec))}
            ),
        ),
    )
    return manifest(CLAIMS, service.ref.namespace, name, claim)


def _claim_size(shape: ModelShape | None) -> str:
    weights = weight_bytes(shape.parameters, shape.bits_per_weight) if shape else 0
    return f"{int(weights * _SIZE_MARGIN / _GIB) + 1}Gi"


def _pod(name: str, job: ModelJob, image: RunnerImage, platform: Platform) -> client.V1PodSpec:
    fetches = job.task == "fetch"
    home = client.V1Volume(name="home", empty_dir=client.V1EmptyDirVolumeSource())
    files = _claim_volume(name) if fetches else engine.uri_volume(job.spec)
    return client.V1PodSpec(
        service_account_name=ENGINE_ACCOUNT,
        automount_service_account_token=False,
        enable_service_links=False,
        restart_policy="Never",
        image_pull_secrets=surroundings.pull_secrets(platform, *image.pull_secrets),
        security_context=engine.restricted_pod(),
        containers=[_container(job, image, platform, mounted=files is not None)],
        volumes=[home, *([files] if files else ()), *surroundings.volumes(platform)],
    )


def _claim_volume(name: str) -> client.V1Volume:
    source = client.V1PersistentVolumeClaimVolumeSource(claim_name=names.claim_name(name))
    return client.V1Volume(name="models", persistent_volume_claim=source)


def _container(
    model_job: ModelJob, image: RunnerImage, platform: Platform, *, mounted: bool
) -> client.V1Container:
    spec, fetches = model_job.spec, model_job.task == "fetch"
    files = client.V1VolumeMount(name="models", mount_path=MODELS, read_only=not fetches)
    container = client.V1Container(
        name=names.MODEL_JOB_CONTAINER,
        image=image.name,
        image_pull_policy=image.pull_policy,
        args=_arguments(model_job, mounted=mounted),
        env=[*_environment(), *engine.token(spec), *surroundings.environment(platform)],
        resources=client.V1ResourceRequirements(
            requests={"cpu": "500m" if fetches else "100m", "memory": "256Mi"},
            limits={"memory": "1Gi"},
        ),
        security_context=engine.restricted(),
        termination_message_path=_REPORT_PATH,
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=[
            client.V1VolumeMount(name="home", mount_path="/tmp"),  # noqa: S108 - a mount
            *([files] if mounted else ()),
            *surroundings.mounts(platform),
        ],
    )
    if fetches:
        container.ports = [client.V1ContainerPort(name="progress", container_port=PORT)]
    return container


def _arguments(model_job: ModelJob, *, mounted: bool) -> list[str]:
    model = model_job.spec.model
    arguments = [model_job.task, f"--uri={model.uri}", f"--report={_REPORT_PATH}"]
    if model.revision:
        arguments.append(f"--revision={model.revision}")
    if model_job.task == "fetch":
        folder = f"{MODELS}/{names.folder_of(model)}"
        return [*arguments, f"--into={folder}", "--host=$(POD_IP)", f"--port={PORT}"]
    return [*arguments, f"--path={model_path(model.uri)}"] if mounted else arguments


def _environment() -> list[client.V1EnvVar]:
    field_ref = client.V1ObjectFieldSelector(field_path="status.podIP")
    address = client.V1EnvVarSource(field_ref=field_ref)
    return [
        client.V1EnvVar(name="HOME", value="/tmp"),  # noqa: S108 - a mount
        client.V1EnvVar(name="POD_IP", value_from=address),
    ]
